"""The JSON beside a state dict that says what it holds, each option known and of its type."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from weightspace import families
from weightspace.components.discovery import near_match, refuse_unknown_options
from weightspace.families.layered import UNREPRESENTED, Layered, refuse_unrepresented

EXAMPLE = json.dumps({"class": "LSTM", "input_size": 3, "hidden_size": 8, "readout": "head", "output_size": 1})
MAX_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the tensors of a model are in its state dict."""

    recurrent: str = ""
    """Name of the recurrent layer, in front of the names of its tensors; empty where they have nothing in front."""
    readout: str | None = None
    """Name of the nn.Linear that reads the last layer, None where there is none."""
    bias: bool = True
    readout_bias: bool = True


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """Options of torch.nn that change neither the weights nor what a model computes in evaluation mode."""

    batch_first: bool = False
    dropout: int | float = 0.0


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar says: the family, whether its weights are named as in a cell of torch.nn, and the layout."""

    kind: type[Layered]
    fields: dict[str, Any]
    is_cell: bool
    layout: Layout


def convertible() -> dict[str, type[Layered]]:
    """The families that come from and go to torch.nn, by the names of the classes there, cells among them."""
    found: dict[str, type[Layered]] = {}
    for kind in families.available().values():
        if issubclass(kind, Layered):
            for torch_class in (kind.torch_class, kind.torch_cell):
                # The families of this package come first, and no other takes their place.
                if torch_class is not None:
                    found.setdefault(torch_class.__name__, kind)
    return found


def kind_of(name: Any, what: str) -> type[Layered]:
    """The family of a class of torch.nn; ValueError where there is none."""
    known = convertible()
    if not isinstance(name, str) or name not in known:
        near = near_match(name, known) if isinstance(name, str) else ""
        raise ValueError(f"{what} is a {_short(name)}; only torch.nn's {sorted(known)} have a family.{near}")
    return known[name]


def read_sidecar(file: Path, path: Path) -> Sidecar:
    """Read the sidecar `file` of the state dict `path`; ValueError says what does not fit, and what would."""
    said = _read(file, path)
    name = said.pop("class")
    kind = kind_of(name, str(path))
    hints = {**_types(Layout), **_types(Ignored), **_types(kind)}
    hints.pop("has_readout")
    refuse_unknown_options(str(file), [key for key in said if key not in UNREPRESENTED], sorted(hints))
    for key, value in said.items():
        _refuse_type(file, key, value, hints.get(key))
    try:
        refuse_unrepresented(kind, said)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    layout = Layout(**{key: said[key] for key in _types(Layout) if key in said})
    fields = {"num_layers": 1, **{key: said[key] for key in _types(kind) if key in said}}
    fields["has_readout"] = layout.readout is not None
    if layout.readout is None:
        fields.setdefault("output_size", said.get("hidden_size"))
    for key in ("input_size", "hidden_size", "output_size"):
        if fields.get(key) is None:
            raise ValueError(f"{file} does not say the `{key}` of {path.name}.")
    is_cell = kind.torch_cell is not None and name == kind.torch_cell.__name__
    if is_cell and fields["num_layers"] != 1:
        raise ValueError(f"`num_layers` (={fields['num_layers']}) of {file} must be 1, as a {name} is one layer.")
    return Sidecar(kind, fields, is_cell, layout)


def _read(file: Path, path: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{path} lacks {file.name}, which says what it holds, such as {EXAMPLE}.")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file} has more than {MAX_BYTES:,} bytes; expected something such as {EXAMPLE}.")
    try:
        said = json.loads(file.read_bytes(), object_pairs_hook=_without_repeats)
    except _RepeatedError as error:
        raise ValueError(f"{file} gives {_short(str(error))} more than once; give it once.") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{file} is not JSON; it says what {path.name} holds, such as {EXAMPLE}.") from None
    if not isinstance(said, dict) or "class" not in said:
        raise ValueError(f"{file} does not say the `class` of {path.name}; expected something such as {EXAMPLE}.")
    return said


class _RepeatedError(ValueError):
    pass


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys differ: of two equal ones Python would keep the last without a word."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedError(key)
        found[key] = value
    return found


def _types(kind: Any) -> Mapping[str, Any]:
    """The types of the fields of a dataclass."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _refuse_type(file: Path, key: str, value: Any, hint: Any) -> None:
    # Choices are for the family to check.
    allowed = (hint,) if isinstance(hint, type) else typing.get_args(hint) if isinstance(hint, UnionType) else None
    if allowed is not None and type(value) not in allowed:
        name = getattr(hint, "__name__", hint)
        raise ValueError(f"`{key}` (={_short(value)}) of {file} must be of type {name}.")


def _short(value: Any) -> str:
    """A value of a stranger as an error shows it: its beginning."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
