"""The command `zoo-builder import`: options, and what it prints."""

from __future__ import annotations

import dataclasses
from typing import Any

DESCRIPTION = (
    "Makes a zoo of networks that were trained elsewhere: layers and cells of torch.nn, Keras and Flax in files "
    "NAME.safetensors or NAME.npz. What tensors cannot say stands in NAME.json beside a file, or is said here for all."
)
EPILOG = "Example: zoo-builder import --state_dicts models --out zoo --labels Rank FixedPoints"


def add_options(parser: Any) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("--state_dicts", type=str, required=True, metavar="DIR", help="folder of the files")
    parser.add_argument("--out", type=str, required=True, help="the zoo's folder")
    parser.add_argument(
        "--inputs",
        type=str,
        metavar="FILE",
        help="sequences (sequences, time, input), npz or safetensors, that drive models when labels are measured "
        "(noise unless given)",
    )
    parser.add_argument("--labels", nargs="+", type=str, default=[], help="names, as in `zoo-builder list labels`")
    parser.add_argument("--recurrent", type=str, metavar="NAME", help="the recurrent module (every one unless given)")
    parser.add_argument("--readout", type=str, metavar="NAME", help="the linear map that reads it (none unless given)")
    parser.add_argument("--nonlinearity", choices=["tanh", "relu"], help="of an RNN, whose tensors do not say it")
    parser.add_argument(
        "--key_map", type=str, metavar="FILE", help="JSON of the name of a tensor in the files -> its name in torch.nn"
    )
    parser.add_argument("--title", type=str, help="title of the zoo")
    parser.add_argument("--seed", type=int, default=0, help="of splits and of noise that drives models")
    parser.add_argument("--workers", type=int, help="number of processes that measure labels (one per core)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def brought(options: Any) -> tuple[dict[str, Any], str]:
    """Make the zoo that the options of the command ask for; returns its record as plain data and as text."""
    from weightspace.exchange.readings import Words
    from zoo_builder.bring import TITLE, bring

    built = bring(
        options.state_dicts,
        options.out,
        inputs=options.inputs,
        labels=options.labels,
        words=Words.of(options.recurrent, options.readout, options.nonlinearity, options.key_map),
        title=options.title or TITLE,
        seed=options.seed,
        workers=options.workers,
    )
    record = {**dataclasses.asdict(built), "path": str(built.path)}
    return record, f"{built.path}: {built.models:,} models in {built.shards:,} shards"
