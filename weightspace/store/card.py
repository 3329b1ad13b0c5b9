"""The dataset card of a zoo, from which Hugging Face datasets opens its table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from weightspace.store.layout import TABLE, content_version

_DTYPES = {"double": "float64", "float": "float32"}


def card(title: str, schema: pa.Schema, num_rows: int, table: Mapping[str, Any], head: Mapping[str, Any]) -> str:
    """README.md of a zoo: YAML for `datasets.load_dataset`, then a description for people."""
    features = "".join(
        f"  - name: {field.name}\n    dtype: {_DTYPES.get(str(field.type), str(field.type))}\n" for field in schema
    )
    return f"""---
pretty_name: {json.dumps(title)}
tags:
- weight-space-learning
- recurrent-neural-networks
configs:
- config_name: default
  default: true
  version: {content_version(table["sha256"])}
  data_files:
  - split: train
    path: {TABLE}
dataset_info:
  config_name: default
  features:
{features}  splits:
  - name: train
    num_bytes: {table["bytes"]}
    num_examples: {num_rows}
  download_size: {table["bytes"]}
  dataset_size: {table["bytes"]}
---
{_body(title, num_rows, head)}"""


def _body(title: str, num_rows: int, head: Mapping[str, Any]) -> str:
    table = f"| label | unit | definition |\n|---|---|---|\n{_label_rows(head)}" if head["labels"] else "No labels."
    families = sorted({family["class"] for family in head["families"]})
    tasks = sorted({task["class"] for task in head["recipe"].get("tasks", [])}) or ["none"]
    return f"""
# {title}

{num_rows} rows, one per (model, snapshot), of recurrent networks.

Families: {", ".join(families)}. Tasks: {", ".join(tasks)}.

The table opens with `datasets.load_dataset(folder)`; all rows are under the key `train`, the zoo's own splits are the
columns `split`, `split_task`, `split_size` and `fold_family`. The weights are in `shards/`, read with
`weightspace.store.open_zoo(folder)`. `zoo.json` holds the recipe that builds this zoo again, and a sha256 of each file.

{table}
"""


def _label_rows(head: Mapping[str, Any]) -> str:
    return "\n".join(
        f"| `{name}` | {label['unit']} | {' '.join(label['definition'].split()).replace('|', '&#124;')} |"
        for name, label in sorted(head["labels"].items())
    )
