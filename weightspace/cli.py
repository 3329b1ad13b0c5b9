"""The command `weightspace`: train encoders, embed zoos, check symmetry, or run the whole pipeline."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

from weightspace import __version__, recipes, training_help
from weightspace.components import faults, plugins, usage
from weightspace.terminal import printable

TRAINING = {
    "fit": "Train an encoder on a zoo.",
    "validate": "Loss and metrics of a checkpoint on the validation rows.",
    "test": "Loss and metrics of a checkpoint on the test rows.",
    "predict": "Embed every row on any number of devices or machines (`--out FILE`).",
}
ALLOWED_IMPORTS = ["weightspace", "zoo_builder", "probes", "lightning.pytorch", "torch.optim", "torch.nn"]
"""Packages whose classes a config or checkpoint may name; others are imported only with `--allow_import`."""

EXAMPLES = (
    """examples:
  weightspace quickstart --out first
  weightspace fit --config configs/encoder/supervised.yaml --data.zoo first/zoo
  weightspace fit --config ... --data.zoo first/zoo --data.split new_family --data.fold 0   (that fold is never seen)
  weightspace fit --config ... --data.zoo first/zoo --ckpt_path runs/version_0/checkpoints/last.ckpt   (goes on)
  weightspace embed --checkpoint runs/version_0/checkpoints/best.ckpt --zoo first/zoo --out embeddings.safetensors
  weightspace embed --checkpoint runs/version_0/checkpoints/best.ckpt --state_dicts models --out mine.safetensors
  weightspace embed --state_dicts models --out mine.safetensors   (by the encoder that comes with the package)
  weightspace pretrained --checkpoint runs/version_0/checkpoints/best.ckpt --out encoder --push OWNER/NAME
  weightspace check families --json
  weightspace export --zoo first/zoo --out dataset --push OWNER/NAME

"""
    + f"{plugins.HELP}\n{faults.HELP}"
)


# Not called `embed`: the parser would look for a shorter path of the function, and find the face's, which loads torch.
def write_embeddings(
    *,
    out: Path,
    checkpoint: str | None = None,
    zoo: Path | None = None,
    state_dicts: Path | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    name: str | None = None,
) -> int:
    """Write frozen embeddings of every row of a zoo, or of every state dict of a folder.

    Args:
        checkpoint: best.ckpt or last.ckpt of a run, a folder of `weightspace pretrained`, its repository OWNER/NAME
            on the Hub, or the name of a packaged encoder (by default one trained without labels).
        out: File to write (safetensors: `embedding` in the row order of models.parquet, or in that of file names).
        zoo: Zoo folder.
        state_dicts: Folder of NAME.safetensors or .npz; NAME.json says what the tensors of a layer do not.
        batch_size: Models at a time.
        device: cpu or cuda.
        name: Name of the embeddings in tables, ENCODER-OBJECTIVE by default.
    """
    from weightspace.training import embed as embedding

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options: dict[str, Any] = {"batch_size": batch_size, "device": device, "name": name}
    if zoo is not None and state_dicts is None:
        print(embedding.embed(checkpoint, zoo, out, **options))
    elif state_dicts is not None and zoo is None:
        print(embedding.embed_state_dicts(checkpoint, state_dicts, out, **options))
    else:
        raise ValueError("Give what to embed, either `--zoo DIR` or `--state_dicts DIR`.")
    return 0


def pretrained(
    *,
    checkpoint: Path,
    out: Path,
    zoo: Path | None = None,
    probes: Path | None = None,
    name: str | None = None,
    push: str | None = None,
    license: str = "apache-2.0",
    private: bool = False,
) -> int:
    """Write the encoder of a checkpoint as a folder for others: model.safetensors, config.json and a card.

    Args:
        checkpoint: best.ckpt or last.ckpt of a run.
        out: Folder to write; an encoder there is replaced.
        zoo: Zoo that it was trained on, whose recipe is added to the card.
        probes: probes.json of its embeddings, from which figures are added to the card.
        name: Name of its embeddings in `probes`, ENCODER-OBJECTIVE by default.
        push: Model repository (OWNER/NAME) to upload the folder to, after `hf auth login`.
        license: Licence of the encoder, as an identifier of the Hub.
        private: Whether a repository that `push` makes is private.
    """
    from weightspace.exchange.repository import refuse_repository
    from weightspace.training.export import export

    if push is not None:
        refuse_repository(push)
    encoder = export(checkpoint, out, zoo=zoo, probes=probes, name=name, license=license)
    print(out)
    if push is not None:
        print(encoder.push_to_hub(push, license=license, private=private or None))
    return 0


def check(what: Literal["families", "encoders"], *, name: str | None = None, json: bool = False) -> int:
    """Prove declared symmetry numerically; exit status 1 if a check fails.

    Args:
        what: families or encoders.
        name: Check only this one.
        json: Print one JSON document.
    """
    from weightspace import checks

    rows = checks.check_families(name) if what == "families" else checks.check_encoders(name)
    if json:
        print(_json({"rows": rows}))
    else:
        for row in rows:
            verdict = "ok    " if row["passed"] else "FAILED"
            error = math.nan if row["error"] is None else row["error"]
            print(f"{verdict} {error:9.2e}  {row['dtype']:8s} {row['name']}: {row['move']}")
    return 0 if all(row["passed"] for row in rows) else 1


def quickstart(*, out: Path = Path("quickstart"), size: Literal["tiny", "default"] = "default") -> int:
    """Build a zoo, train encoders with and without labels, embed, probe and report; a second run resumes.

    Args:
        out: Folder for everything.
        size: tiny takes about a minute.
    """
    from weightspace import quickstart as pipeline

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for line in pipeline.summary(pipeline.quickstart(out=out, size=size)):
        print(printable(line))
    return 0


def export(*, zoo: Path, out: Path, push: str | None = None, license: str = "apache-2.0", private: bool = False) -> int:
    """Write a zoo as a Hugging Face dataset folder: table, weights, and a card that describes them.

    Args:
        zoo: Zoo folder.
        out: Folder to write; an earlier export there is replaced.
        push: Dataset repository (OWNER/NAME) to upload the folder to, after `hf auth login`.
        license: Licence of the dataset, as an identifier of the Hub.
        private: Whether a repository that `push` makes is private.
    """
    from weightspace.exchange import hub

    if push is not None:
        # Before the export, which may take long.
        hub.refuse_repository(push)
    print(hub.export(zoo, out, license=license))
    if push is not None:
        print(hub.push(out, push, private=private))
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "embed": write_embeddings,
    "pretrained": pretrained,
    "check": check,
    "export": export,
    "quickstart": quickstart,
}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit status 0 done, 1 a check found something, 2 bad usage or input, 130 interrupted."""
    argv, debug = faults.take_option(sys.argv[1:] if argv is None else argv)
    try:
        argv = plugins.take_option(argv)
        # Set before parsing: a class outside the list is refused before its module is imported.
        with _limited_imports():
            if argv and argv[0] in TRAINING:
                return _train(argv)
            settings = vars(_parser().parse_args(argv))
            command = settings.pop("command")
            return COMMANDS[command](**vars(settings[command]))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"error: {printable(faults.line_of(error, debug))}", file=sys.stderr)
        return 2


@contextmanager
def _limited_imports() -> Iterator[None]:
    """Limit imports by the parser to `ALLOWED_IMPORTS` and enabled packages; restore the earlier limits at the end."""
    settings = _process_settings()
    limits = ("import_path_verdicts", "import_paths_enforced")
    before: dict[str, Any] = {name: settings[name] for name in limits if name in settings}
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*ALLOWED_IMPORTS, *plugins.allowed()])
    try:
        yield
    finally:
        settings.update(before)


def _process_settings() -> dict[str, Any]:
    """The process-wide settings of jsonargparse, whose public function can add limits but not restore them."""
    try:
        from jsonargparse._common import parsing_settings
    except ImportError:
        # A release that stores them elsewhere: the caller keeps the narrower limits.
        return {}
    return parsing_settings


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(usage.in_words(message, self.prog), ex)


def _parser() -> ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    texts: dict[str, Any] = {"description": __doc__, "epilog": EXAMPLES, "formatter_class": plain}
    parser = _Parser(prog="weightspace", version=__version__, **texts)
    commands = parser.add_subcommands(dest="command", required=True)
    for name, line in TRAINING.items():
        commands.add_subcommand(name, _Parser(), help=line)
    for name, function in COMMANDS.items():
        description = (function.__doc__ or "").split("Args:")[0].strip()
        examples = (line.strip() for line in EXAMPLES.splitlines() if f"weightspace {name} " in line)
        epilog = f"example:\n  {next(examples)}\n\n{plugins.HELP}"
        subparser = _Parser(
            prog=f"weightspace {name}", description=description, epilog=epilog, formatter_class=plain
        )
        flags = {"json"} & set(inspect.signature(function).parameters)
        subparser.add_function_arguments(function, as_positional=True, skip=set(flags))
        for flag in flags:
            subparser.add_argument(f"--{flag}", action="store_true", help="Print one JSON document.")
        commands.add_subcommand(name, subparser, help=(function.__doc__ or "").split("\n")[0])
    return parser


def _train(argv: list[str]) -> int:
    """fit, validate, test and predict, by Lightning's command line."""
    if {"-h", "--help"} & set(argv):
        print(training_help.text(argv[0], TRAINING[argv[0]]))
        return 0
    argv = ["--help" if argument == training_help.FULL else argument for argument in argv]
    from weightspace.training.cli import run
    from weightspace.training.divergence import Diverged
    from weightspace.training.hints import with_hint

    try:
        answer = run(recipes.with_paths(argv), prog="weightspace", hint=with_hint)
    except Diverged as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    if answer is not None:
        print(printable(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
