"""The zoo on disk: its format, its reader and its writer, together.

A zoo folder holds

    README.md         dataset card, so that `datasets.load_dataset(folder)` opens the table
    zoo.json          the manifest: format and generator version, executor, recipe, families, labels, shards with sha256
    models.parquet    one row per (model, snapshot), the shards' tables one after another
    tasks.safetensors trials that a task does not draw again from its fields, where there are any
    shards/NNNNN/     params.safetensors (rows, ...), rollouts.safetensors, table.parquet, shard.json

and `.staging/` while it is being built. Everything but `.staging/` is promised: a pure function of the recipe.
"""

from __future__ import annotations

from weightspace.store.cells import cell_codes, cell_means, codes, read_config, stratum_codes
from weightspace.store.documents import read as read_document
from weightspace.store.durable import (
    PLAN,
    STAGING,
    DiskFull,
    NotWritten,
    Staging,
    clean_staging,
    empty_staging,
    flush,
    fsync_folder,
    naming,
    write_durably,
    write_flushed,
)
from weightspace.store.inside import refuse_links
from weightspace.store.label_columns import LabelColumn, refuse_missing_column
from weightspace.store.layout import (
    FORMAT,
    SHARDS,
    TASKS,
    bytes_entry,
    canonical,
    content_version,
    digest,
    file_entry,
    is_intact,
    pretty,
)
from weightspace.store.lock import locked
from weightspace.store.manifest import DamagedManifest
from weightspace.store.reader import Model, Selection, Stack, Zoo, open_zoo
from weightspace.store.retabled import publish_tables, stage_table, staged_tables, unfinished_labelling
from weightspace.store.shards import SHARD_FILES, absent_shards, good_shards, made_by_builder, remove_shard
from weightspace.store.splits import (
    SPLITS,
    Division,
    NothingHeldOutError,
    SplitName,
    divide,
    divisions,
    folds,
    recorded_split,
    split_title,
)
from weightspace.store.table import COLUMNS, SCHEMA
from weightspace.store.task_io import InputKind, OutputKind, TaskIO
from weightspace.store.verify import Fault, verify
from weightspace.store.writer import ShardContent, finish, write_shard

__all__ = [
    "COLUMNS",
    "FORMAT",
    "PLAN",
    "SCHEMA",
    "SHARDS",
    "SHARD_FILES",
    "SPLITS",
    "STAGING",
    "TASKS",
    "DamagedManifest",
    "DiskFull",
    "Division",
    "Fault",
    "InputKind",
    "LabelColumn",
    "Model",
    "NotWritten",
    "NothingHeldOutError",
    "OutputKind",
    "Selection",
    "ShardContent",
    "SplitName",
    "Stack",
    "Staging",
    "TaskIO",
    "Zoo",
    "absent_shards",
    "bytes_entry",
    "canonical",
    "cell_codes",
    "cell_means",
    "clean_staging",
    "codes",
    "content_version",
    "digest",
    "divide",
    "divisions",
    "empty_staging",
    "file_entry",
    "finish",
    "flush",
    "folds",
    "fsync_folder",
    "good_shards",
    "is_intact",
    "locked",
    "made_by_builder",
    "naming",
    "open_zoo",
    "pretty",
    "publish_tables",
    "read_config",
    "read_document",
    "recorded_split",
    "refuse_links",
    "refuse_missing_column",
    "remove_shard",
    "split_title",
    "stage_table",
    "staged_tables",
    "stratum_codes",
    "unfinished_labelling",
    "verify",
    "write_durably",
    "write_flushed",
    "write_shard",
]
