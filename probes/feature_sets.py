"""What probes read: files of embeddings, each for the split it was made for, and the baselines, for any split."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from weightspace import features
from weightspace.features import Features
from weightspace.store import Division, Zoo, folds, recorded_split, split_title
from weightspace.store.checksum import refuse_damaged_embeddings

DTYPES = ("F16", "BF16", "F32", "F64")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+=,@:()/#-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class FeatureSet(ABC):
    """Features called `embedding:NAME`, `statistics`, `spectra` or `metadata`.

    learned_with: `labels`, `no_labels`, or None if not learned.
    """

    name: str
    learned_with: str | None = None

    learned: ClassVar[bool]
    """Whether training made them; what it did not is a baseline, which is probed with gradient boosting too."""

    @abstractmethod
    def on(self, division: Division) -> Features:
        """Features (rows of the zoo) that no held-out row of the division has shaped."""

    def unavailable(self, divisions: Sequence[Division]) -> str | None:
        """Why there are no such features for all of these divisions, or None if there are."""
        return None


@dataclass(frozen=True, kw_only=True)
class Embedding(FeatureSet):
    """Embeddings (rows, embedding_dim) by the split and fold that their encoder was trained for."""

    made_for: Mapping[tuple[str, int | None], np.ndarray]

    learned: ClassVar[bool] = True

    def on(self, division: Division) -> Features:
        """The embeddings of the encoder that was trained for the division."""
        values = self.made_for[division.split, division.fold]
        return Features(values, [f"embedding[{column}]" for column in range(values.shape[1])])

    def unavailable(self, divisions: Sequence[Division]) -> str | None:
        """Which encoders are missing: any other than that trained for a division may have seen its held-out rows."""
        missing = [division.name for division in divisions if (division.split, division.fold) not in self.made_for]
        there = "; ".join(split_title(*key) for key in self.made_for)
        return f"no encoder was trained for {'; '.join(missing)}, only for {there}" if missing else None


@dataclass(frozen=True, kw_only=True)
class Baseline(FeatureSet):
    """Features that are measured; `choose` takes the mask (rows) of those by which columns are chosen."""

    choose: Callable[[np.ndarray], Features]

    learned: ClassVar[bool] = False

    def on(self, division: Division) -> Features:
        """The features in columns that the training rows have chosen."""
        return self.choose(division.train)


def baselines(zoo: Zoo) -> list[Baseline]:
    """What every embedding stands beside: statistics and spectra of the weights, and the record of each model."""
    described = {"statistics": features.statistics_of, "spectra": features.spectra_of}
    made: dict[str, Callable[[np.ndarray], Features]] = {
        name: features.columns_of(zoo, describe).features for name, describe in described.items()
    }
    made["metadata"] = partial(features.metadata, zoo.table)
    return [Baseline(name=name, choose=choose) for name, choose in made.items()]


def read_embeddings(paths: Sequence[Path | str], zoo: Zoo) -> list[Embedding]:
    """Read files of embeddings of a zoo; files of one name are one encoder trained anew for several splits or folds."""
    files: dict[tuple[str, str, int | None], Path] = {}
    found: dict[str, Embedding] = {}
    for path in map(Path, paths):
        one = _read_embedding(path, zoo)
        for split, fold in one.made_for:
            earlier = files.setdefault((one.name, split, fold), path)
            if earlier != path:
                raise ValueError(
                    f"{earlier} and {path} are both named '{one.name}' and made for {split_title(split, fold)}; embed "
                    "one under another name."
                )
        if one.name in found and found[one.name].learned_with != one.learned_with:
            raise ValueError(f"'{one.name}' was learned with labels and without; embed {path} under another name.")
        made_for = {**found[one.name].made_for, **one.made_for} if one.name in found else one.made_for
        found[one.name] = Embedding(name=one.name, learned_with=one.learned_with, made_for=made_for)
    return list(found.values())


def _refuse_wild(path: Path, values: np.ndarray, zoo: Zoo) -> None:
    """Raise ValueError for embeddings (rows, embedding_dim) beyond float32, but of models that had diverged."""
    usable = np.array(zoo.table.column("status").to_pylist(), dtype=object) != "diverged"
    wild = np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max).all(axis=1) & usable)
    if len(wild):
        raise ValueError(
            f"{path} holds embeddings that are not finite in float32 in {len(wild)} row(s), the first being row "
            f"{wild[0]}; embed the zoo again with another checkpoint."
        )


def _read_embedding(path: Path, zoo: Zoo) -> Embedding:
    import safetensors

    if not path.is_file():
        raise ValueError(f"There is no file {path}; `weightspace embed` writes one.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["weightspace"])
            kept = file.get_slice("embedding")
            shape, dtype = tuple(kept.get_shape()), kept.get_dtype()
            embeddings = file.get_tensor("embedding") if dtype in DTYPES else None
            found, learned_with = record["zoo"], record["learned_with"]
            name, (split, fold) = str(record.get("name") or path.stem), recorded_split(record)
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)[:200]
        raise ValueError(f"{path} is not a file of `weightspace embed`: {reason}.") from None
    if embeddings is None:
        raise ValueError(f"{path} holds embeddings of dtype {dtype}, expected one of {DTYPES}; embed it again.")
    refuse_damaged_embeddings(path, record, embeddings)
    values = embeddings.double().numpy()
    if found != zoo.fingerprint:
        raise ValueError(
            f"{path} embeds the zoo {str(found)[:12]}, but this zoo is {zoo.fingerprint[:12]}; run `weightspace embed` "
            "on this zoo."
        )
    if len(shape) != 2 or shape[0] != zoo.num_rows or not values.size:
        raise ValueError(f"{path} holds embeddings {shape}, but the zoo has {zoo.num_rows} rows; embed it again.")
    _refuse_wild(path, values, zoo)
    if learned_with not in ("labels", "no_labels", None) or not NAME.fullmatch(name):
        raise ValueError(
            f"{path} says learned_with {str(learned_with)[:80]!r} and name {name[:80]!r}, which are not understood."
        )
    if fold not in folds(zoo.table, split):
        raise ValueError(f"{path} was made for {split_title(split, fold)}, but this zoo has no such fold.")
    return Embedding(name=f"embedding:{name}", learned_with=learned_with, made_for={(split, fold): values})
