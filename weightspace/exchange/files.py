"""Files of tensors by name, safetensors and npz, of any framework, read into memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

SUFFIXES = (".safetensors", ".npz")
PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
CONVERSION = (
    "pickled files run code when they are opened; write such a state dict anew, where you trust it, with "
    '`safetensors.torch.save_file(torch.load("FILE", weights_only=True), "FILE.safetensors")`'
)


def tensor_files(folder: Path) -> list[Path]:
    """The files of tensors of a folder, sorted by name; ValueError if there is none, or two with one name."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a folder of state dicts, NAME.safetensors or NAME.npz each.")
    paths = sorted((path for path in folder.iterdir() if path.suffix in SUFFIXES), key=lambda path: path.name)
    if not paths:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        hint = f" It has {pickled[:3]}: {CONVERSION}." if pickled else ""
        raise ValueError(f"{folder} holds no state dicts; each is a NAME.safetensors or a NAME.npz.{hint}")
    names = [path.stem for path in paths]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{folder} holds {repeated[0]}.safetensors and {repeated[0]}.npz; rename one of them.")
    return paths


def read_tensors(path: Path, keys: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors or npz file, by names whose parts are joined by dots.

    `keys` gives tensors other names, those in the file first; what it does not name is left out. Arrays that are not
    numbers are left out, too.
    """
    tensors = _safetensors(path) if path.suffix == SUFFIXES[0] else _npz(path)
    if keys is not None:
        absent = sorted(set(keys) - set(tensors))
        if len(absent) == len(keys):
            found = sorted(tensors)[:20]
            raise ValueError(f"{path} holds none of the tensors {absent[:5]} of the key map, but {found}.")
        tensors = {keys[name]: tensor for name, tensor in tensors.items() if name in keys}
    # TensorFlow ends names of variables in :0, and JAX and TensorFlow separate their parts by slashes.
    return {name.removesuffix(":0").replace("/", "."): tensor for name, tensor in tensors.items()}


def read_keys(path: Path) -> dict[str, str]:
    """A key map: JSON of the name of a tensor in a file -> its name in torch.nn, Keras or Flax."""
    expected = 'expected JSON such as {"enc_w_hh": "encoder.weight_hh_l0", "enc_w_ih": "encoder.weight_ih_l0"}'
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"The key map {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise ValueError(f"The key map {path} is not JSON; {expected}.") from None
    if not isinstance(content, dict) or not content or not all(isinstance(v, str) and v for v in content.values()):
        raise ValueError(f"The key map {path} is no mapping of names to names; {expected}.")
    values = list(content.values())
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"The key map {path} calls several tensors '{repeated[0]}'; give each a name of its own.")
    return content


def read_inputs(path: Path) -> Tensor:
    """Input sequences (sequences, time, input) float32 of an npz or safetensors file: its only tensor, or `x`."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"The inputs {path} must be a file {' or '.join(SUFFIXES)}.")
    if not path.is_file():
        raise ValueError(f"There is no file {path} of inputs; it holds one tensor `x` (sequences, time, input).")
    tensors = read_tensors(path)
    x = next(iter(tensors.values())) if len(tensors) == 1 else tensors.get("x")
    if x is None or x.dim() != 3 or 0 in x.shape:
        shapes = {name: tuple(tensor.shape) for name, tensor in sorted(tensors.items())[:10]}
        raise ValueError(f"The inputs {path} hold {shapes}; expected one tensor `x` (sequences, time, input).")
    x = x.to(torch.float32)
    if not bool(x.isfinite().all()):
        raise ValueError(f"The inputs {path} are not all finite numbers in float32.")
    return x


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}.") from None


def _npz(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:
        # Errors of many types come up for damaged archives.
        raise ValueError(f"{path} cannot be read as npz: {' '.join(str(error).split())}.") from None
    return {name: _tensor(array) for name, array in arrays.items() if array.dtype.kind in "fiub"}


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    # Torch has neither unsigned integers beyond bytes nor other byte orders.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=") if array.dtype.kind == "f" else np.float64))
