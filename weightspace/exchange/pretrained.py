"""Encoders as folders that users of Hugging Face expect: model.safetensors, config.json and a card, here or on the Hub.

huggingface_hub's own mixin is not used: it reads config.json and passes its entries to a constructor before anything of
ours could check them, and its class is the one it is called on, where ours is found by the name in the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import jinja2
import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor

from weightspace import __version__, store
from weightspace.exchange.repository import is_repository, reaching, refuse_license, refuse_repository
from weightspace.store.layout import bytes_entry
from weightspace.terminal import shown

TENSORS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = "weightspace encoder, 1"
PACKAGED = Path(__file__).parent.parent / "pretrained"
DEFAULT = "state-geometry-small"
"""Name of the packaged encoder that embeds where no other is asked for."""
MAX_CONFIG = 2**20

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "encoder": str,
    "arguments": dict,
    "symmetry": list,
    "provenance": (dict, type(None)),
    "license": str,
    "files": dict,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What config.json says of an encoder: its class by name, the constructor's arguments, and how it was trained.

    `provenance` is None where it is not known, else a mapping with `objective`, `learned_with`, `label_adjacent`, and
    the `zoo`, `split` and `fold` of the training; what else it holds stands in the card.
    """

    encoder: str
    arguments: Mapping[str, Any]
    symmetry: list[str]
    provenance: Mapping[str, Any] | None
    license: str


def packaged() -> list[str]:
    """Names of the encoders that come with the package."""
    return sorted(path.parent.name for path in PACKAGED.glob(f"*/{CONFIG}"))


def write(folder: str | Path, config: Config, tensors: Mapping[str, Tensor]) -> Path:
    """Write the three files of an encoder into a folder; an encoder that was there is replaced, other files stay.

    config.json, which has the checksum of the tensors, is written last: a write that was cut short is noticed.
    """
    folder = Path(folder)
    refuse_license(config.license)
    if config.provenance is not None:
        refuse_provenance(config.provenance)
    _refuse_foreign(folder)
    _refuse_not_finite(f"the {config.encoder}", tensors)
    # Clones: tensors that share memory would be refused.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(copies)
    described = {**asdict(config), "format": FORMAT, "version": __version__, "files": {TENSORS: bytes_entry(data)}}
    text = store.pretty(described)
    card = _card(config, sum(tensor.numel() for tensor in tensors.values()), len(data))
    folder.mkdir(parents=True, exist_ok=True)
    store.write_durably(folder / TENSORS, data)
    store.write_durably(folder / CARD, card.encode())
    store.write_durably(folder / CONFIG, text)
    return folder


def read_config(source: str | Path, **hub: Any) -> Config:
    """The config of an encoder in a folder, in the package or on the Hub; ValueError where it is not understood.

    `hub` are options of huggingface_hub.hf_hub_download, such as `revision`.
    """
    content = _content(_file(source, CONFIG, hub))
    return Config(**{key: content[key] for key in Config.__dataclass_fields__})


def read_tensors(source: str | Path, **hub: Any) -> dict[str, Tensor]:
    """The tensors of an encoder, in their dtypes; ValueError where they are not those that its config.json lists."""
    expected = _content(_file(source, CONFIG, hub))["files"][TENSORS]
    path = _file(source, TENSORS, hub)
    if not path.is_file():
        raise ValueError(f"{path} is missing; {CONFIG} is there, so copy the whole folder again.")
    size = path.stat().st_size
    # Compared first: a file of any size is not read into memory.
    data = path.read_bytes() if size == expected["bytes"] else b""
    if not data or bytes_entry(data) != expected:
        raise ValueError(
            f"{path} is damaged, or not the file that {CONFIG} was written with: {size:,} bytes, expected "
            f"{expected['bytes']:,} with sha256 {expected['sha256'][:12]}...; take another copy of the folder."
        )
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {str(error).rstrip('.')}.") from None
    _refuse_not_finite(str(path), tensors)
    return tensors


def push(
    folder: Path, repo: str, *, commit_message: str, private: bool | None, token: str | bool | None,
    branch: str | None, create_pr: bool | None,
) -> str:  # fmt: skip
    """Upload the three files of a folder to the model repository `repo`, made if missing; returns its address."""
    refuse_repository(repo, "repo_id")
    api = huggingface_hub.HfApi()
    with reaching(f"The encoder was not uploaded to {repo}", writes=True):
        url = api.create_repo(repo, repo_type="model", private=private, token=token, exist_ok=True)
        if branch is not None:
            api.create_branch(repo, branch=branch, token=token, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="model",
            commit_message=commit_message,
            token=token,
            revision=branch,
            create_pr=create_pr,
            allow_patterns=[TENSORS, CONFIG, CARD],
        )
    return str(url)


def _file(source: str | Path, name: str, hub: Mapping[str, Any]) -> Path:
    """Path of one file of an encoder; a folder comes before a packaged encoder, and that before a repository."""
    if Path(source).is_dir():
        return Path(source) / name
    if str(source) in packaged():
        return PACKAGED / str(source) / name
    if not is_repository(str(source)):
        raise ValueError(
            f"{source} is no folder of an encoder, none of the packaged encoders {packaged()}, and no repository "
            "OWNER/NAME on the Hub."
        )
    with reaching(f"There is no folder {source}, and {name} of such a repository cannot be read", writes=False):
        return Path(str(huggingface_hub.hf_hub_download(str(source), name, **hub)))


def _content(path: Path) -> dict[str, Any]:
    """The content of config.json, with every entry that is used checked."""
    if path.is_file() and path.stat().st_size > MAX_CONFIG:
        raise ValueError(f"{path} has more than {MAX_CONFIG:,} bytes, and so is not the config of an encoder.")
    content = store.read_document(path)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not the config of an encoder of this package: its `format` is {shown(content.get('format'))}, "
            f"expected {FORMAT!r}, as `save_pretrained` writes it."
        )
    for key, kinds in _KINDS.items():
        if key not in content or not isinstance(content[key], kinds):
            raise ValueError(f"`{key}` (={shown(content.get(key))}) of {path} is not of the type that it must have.")
    entry = content["files"].get(TENSORS)
    if not (isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)):
        raise ValueError(f"`files` of {path} does not give the bytes and the sha256 of {TENSORS}.")
    if content["provenance"] is not None:
        try:
            refuse_provenance(content["provenance"])
        except ValueError as error:
            raise ValueError(f"`provenance` of {path}: {error}.") from None
    return content


def refuse_provenance(record: Mapping[str, Any]) -> None:
    """Raise ValueError unless a record of training says what embeddings must say of their encoder."""
    store.recorded_split(record)
    adjacent = record.get("label_adjacent")
    if record.get("learned_with") not in ("labels", "no_labels"):
        raise ValueError(f"`learned_with` (={shown(record.get('learned_with'))}) must be 'labels' or 'no_labels'")
    if not isinstance(adjacent, list) or not all(isinstance(name, str) for name in adjacent):
        raise ValueError(f"`label_adjacent` (={shown(adjacent)}) must be a list of names of labels")
    for key in ("objective", "zoo"):
        if not isinstance(record.get(key), str):
            raise ValueError(f"`{key}` (={shown(record.get(key))}) must be text")


def _refuse_foreign(folder: Path) -> None:
    """Raise ValueError for a folder with files that would be written over and are not those of an encoder."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a new folder.")
    if (folder / CONFIG).exists():
        _content(folder / CONFIG)
    elif any((folder / name).exists() for name in (TENSORS, CARD)):
        raise ValueError(f"{folder} holds other files of the names {TENSORS} or {CARD}; give a new folder.")


def _refuse_not_finite(owner: str, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"'{name}' of {owner} is not finite; take an earlier checkpoint, or another copy.")


def _card(config: Config, num_numbers: int, num_bytes: int) -> str:
    """Text of README.md: a head for the Hub, then a body for people."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = lambda value: " ".join(str(value).split()).replace("|", "&#124;")
    environment.filters["yaml"] = lambda value: yaml.safe_dump(value, sort_keys=True).strip()
    template = environment.from_string((Path(__file__).parent / "encoder_card.md.j2").read_text())
    head = huggingface_hub.ModelCardData(
        license=config.license,
        library_name="weightspace",
        tags=["weight-space-learning", "recurrent-neural-networks", "feature-extraction"],
    )
    body = template.render(
        config=config, trained=config.provenance, numbers=num_numbers, bytes=num_bytes, version=__version__,
        torch=torch.__version__,
    )  # fmt: skip
    return f"---\n{head.to_yaml()}\n---\n\n{body}"
