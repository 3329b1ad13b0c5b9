"""Zoos as Hugging Face datasets: written, uploaded, and read back model by model."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import jinja2
import pyarrow.parquet as pq
import yaml
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict

from weightspace import __version__, store
from weightspace.exchange.flat import CONFIGURATIONS, model_of, write_rows
from weightspace.exchange.replaced import RECORD, record, refuse_foreign, replacing
from weightspace.exchange.repository import reaching, refuse_license, refuse_repository
from weightspace.store import Zoo, open_zoo

__all__ = ["export", "model_of", "push", "refuse_repository"]

CARD, TABLE = "README.md", "models.parquet"
MODELS = "models"
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
"""Numbers of rows, and the size that the Hub calls those below."""


def export(zoo: str | Path, out: str | Path, *, license: str = "apache-2.0") -> Path:
    """Write a finished zoo as a Hugging Face dataset folder `out`: a pure function of the zoo and the licence.

    Leaves `models.parquet` (the zoo's table), `weights/*.parquet` and, of a zoo that stores inputs and outputs,
    `rollouts/*.parquet` (see `flat.CONFIGURATIONS`), what the zoo keeps of its tasks, a card README.md, and export.json
    (head of the zoo's manifest, and a sha256 of each file): all that `exchange.unpacked` makes the zoo again of. The
    folder appears whole or not at all: an earlier export is replaced, a folder with other files is refused. Shards are
    read one by one, so memory does not grow with the zoo.
    """
    source, out = open_zoo(zoo), Path(out).resolve()
    refuse_license(license)
    if source.path.resolve() in out.parents:
        raise ValueError(f"{out} is inside the zoo {source.path}, which holds nothing else; give another folder.")
    with replacing(out) as work:
        refuse_foreign(out)
        _refuse_damage(source.path)
        with store.naming(work.new, 0):
            work.new.mkdir()
        _write(source, work.new, license)
        work.publish()
    return out


def push(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload an export to the dataset repository `repo` (OWNER/NAME), created if missing; returns its address.

    Other files in the folder are not uploaded. Weights and rollouts of an earlier upload that are not part of this one
    are removed. Needs the login of `hf auth login`.
    """
    folder, exported = Path(folder), record(Path(folder))
    refuse_repository(repo)
    api = huggingface_hub.HfApi()
    with reaching(f"{folder} is written, but not uploaded to {repo}", writes=True):
        url = api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="dataset",
            commit_message=f"Zoo {exported['zoo']['digest'][:12]}",
            allow_patterns=[RECORD, *exported["files"]],
            delete_patterns=[*(f"{name}/train-*-of-*.parquet" for name in CONFIGURATIONS), store.TASKS],
        )
    return str(url)


def _refuse_damage(path: Path) -> None:
    faults = store.verify(path)
    if faults:
        raise ValueError(
            f"{path} is damaged and was not exported: {faults[0].path} {faults[0].problem}. "
            f"`zoo-builder verify {path} --repair` makes it whole."
        )


def _write(zoo: Zoo, folder: Path, license: str) -> None:
    with store.naming(folder / TABLE, zoo.manifest["files"][TABLE]["bytes"]):
        shutil.copyfile(zoo.path / TABLE, folder / TABLE)
    store.flush(folder / TABLE)
    kept = _copy_tasks(zoo.path, folder)
    configs = {MODELS: [TABLE]}
    for name, configuration in CONFIGURATIONS.items():
        if name != "rollouts" or any(shard.has_rollouts for shard in zoo.shards):
            (folder / name).mkdir()
            written = write_rows(zoo, folder / name, configuration)
            configs[name] = [path.relative_to(folder).as_posix() for path in written]
    files = {name: store.file_entry(folder / name) for names in (*configs.values(), kept) for name in names}
    head = {key: value for key, value in zoo.manifest.items() if key not in ("files", "shards")}
    text = _card(zoo, folder, configs, files, license).encode()
    store.write_flushed(folder / CARD, text)
    files[CARD] = store.file_entry(folder / CARD)
    store.write_flushed(folder / RECORD, store.pretty({"zoo": head, "files": files, "license": license}))


def _copy_tasks(zoo: Path, folder: Path) -> list[str]:
    """Copy what a zoo keeps of its tasks; the names of the files, none where it keeps nothing."""
    if not (zoo / store.TASKS).is_file():
        return []
    shutil.copyfile(zoo / store.TASKS, folder / store.TASKS)
    store.flush(folder / store.TASKS)
    return [store.TASKS]


def _card(zoo: Zoo, folder: Path, configs: Mapping[str, Sequence[str]], files: Mapping[str, Any], license: str) -> str:
    """Text of README.md: a head for `datasets` with files and a version from their content, then a body for people."""
    infos, loading = DatasetInfosDict(), []
    for config, names in configs.items():
        size = sum(files[name]["bytes"] for name in names)
        splits = SplitDict()
        splits.add(datasets.SplitInfo("train", num_bytes=size, num_examples=zoo.num_rows))
        features = datasets.Features.from_arrow_schema(pq.read_schema(folder / names[0]))
        infos[config] = datasets.DatasetInfo(features=features, splits=splits, download_size=size, dataset_size=size)
        content = hashlib.sha256("".join(files[name]["sha256"] for name in names).encode()).hexdigest()
        entry = {
            "config_name": config,
            "version": store.content_version(content),
            "data_files": [{"split": "train", "path": list(names)}],
        }
        loading.append({**entry, "default": True} if config == MODELS else entry)
    data = huggingface_hub.DatasetCardData(
        license=license,
        pretty_name=zoo.manifest["recipe"].get("title", "A zoo of recurrent networks"),
        tags=["weight-space-learning", "recurrent-neural-networks", *_tags(zoo)],
        task_categories=["feature-extraction"],
        size_categories=[next((name for most, name in SIZES if zoo.num_rows < most), "n>10M")],
        library_name="weightspace",
        configs=loading,
    )
    infos.to_dataset_card_data(data)
    return f"---\n{data.to_yaml()}\n---\n\n{_body(zoo, configs, license)}"


def _tags(zoo: Zoo) -> list[str]:
    """Tags of the families and tasks of a zoo, as `family:GRU` and `task:Copy`, by which the Hub finds it."""
    table = pq.read_table(zoo.path / TABLE, columns=["family", "task"])
    return [
        f"{column}:{name}" for column in table.column_names for name in sorted(set(table[column].to_pylist()) - {None})
    ]


def _body(zoo: Zoo, configs: Iterable[str], license: str) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = lambda value: " ".join(str(value).split()).replace("|", "&#124;")
    template = environment.from_string((Path(__file__).parent / "hub_card.md.j2").read_text())
    manifest, schema = zoo.manifest, pq.read_schema(zoo.path / TABLE)
    described = {
        **{name: {"unit": unit, "definition": text} for name, (unit, text) in store.COLUMNS.items()},
        **manifest["labels"],
    }
    starts = [zoo.shard_rows(index).start for index in range(len(manifest["shards"]))]
    layouts = {type(zoo.family_of(row)).__name__: zoo.family_of(row).spec for row in reversed(starts)}
    values = {
        "manifest": manifest,
        "num_rows": zoo.num_rows,
        "license": license,
        "version": __version__,
        "columns": [(field.name, field.type, described.get(field.name, {})) for field in schema],
        "configurations": {name: CONFIGURATIONS[name].fields for name in configs if name != MODELS},
        "layouts": dict(sorted(layouts.items())),
        "counts": _counts(zoo),
        "recipe": yaml.safe_dump(manifest["recipe"], sort_keys=True).strip(),
    }
    try:
        return template.render(values)
    except (jinja2.TemplateError, TypeError, AttributeError) as error:
        # A manifest of unknown origin may lack entries, or have them in other types.
        raise ValueError(f"zoo.json of {zoo.path} does not say what a card needs: {error}.") from None


def _counts(zoo: Zoo) -> dict[str, dict[Any, tuple[int, int]]]:
    """For each column of splits, the numbers of models and of rows with each of its values."""
    names = ["split", "split_task", "split_size", "fold_family"]
    table = pq.read_table(zoo.path / TABLE, columns=["model_id", *names])
    counts = {}
    for name in names:
        grouped = table.group_by(name).aggregate([("model_id", "count_distinct"), ("model_id", "count")]).sort_by(name)
        counts[name] = {
            row[name]: (row["model_id_count_distinct"], row["model_id_count"]) for row in grouped.to_pylist()
        }
    return counts
