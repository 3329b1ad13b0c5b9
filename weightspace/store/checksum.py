"""Checksums inside checkpoints and embeddings, by which damage is detected on reading."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64
_END = b"PK\x05\x06"
"""Signature of the last 22 bytes of a zip archive without a comment."""


def sealed(archive: bytes) -> bytes:
    """A zip archive (a checkpoint of torch) with the sha256 of its bytes as its comment, which readers ignore."""
    body = archive[:-2] + struct.pack("<H", _COMMENT)
    return body + _MARK + hashlib.sha256(body).hexdigest().encode()


def refuse_damaged(path: object, archive: bytes) -> None:
    """Raise ValueError if the bytes of an archive do not fit its checksum; archives of older versions have none.

    This detects damage, not forgery: the checksum can be changed along with the file.
    """
    if archive[-22:-18] == _END and archive[-2:] == b"\0\0":
        return
    body, mark, digest = archive[:-_COMMENT], archive[-_COMMENT:-64], archive[-64:]
    if mark != _MARK or digest != hashlib.sha256(body).hexdigest().encode():
        raise ValueError(
            f"{path} is damaged or cut short: its bytes do not fit its checksum, or it has none; take another copy, "
            "or the other checkpoint of the run."
        )


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of named tensors: their names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def embedding_digest(record: Mapping[str, Any], embeddings: Tensor) -> str:
    """sha256 (hex) of embeddings (models, embedding_dim) and of their record without its `sha256`."""
    content = {key: value for key, value in record.items() if key != "sha256"}
    text = json.dumps([content, str(embeddings.dtype), list(embeddings.shape)], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(embeddings.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def refuse_damaged_embeddings(path: object, record: Mapping[str, Any], embeddings: Tensor) -> None:
    """Raise ValueError if embeddings or their record changed since they were written.

    Files of older versions have no checksum.
    """
    if "sha256" in record and record["sha256"] != embedding_digest(record, embeddings):
        raise ValueError(f"{path} is damaged: its embeddings do not fit their checksum; embed the models again.")
