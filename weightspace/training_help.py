"""A short help for training commands, which answers before their libraries are loaded."""

from __future__ import annotations

from collections.abc import Mapping

from weightspace import recipes
from weightspace.components import faults, plugins

FULL = "--help_all"
OPTIONS: Mapping[str, str] = {
    "--config FILE": "recipe: a YAML file, or one of the names below; later options replace what it says",
    "--data.zoo DIR": "zoo folder",
    "--data.split NAME": "held-out rows: in_distribution, new_task, new_size or new_family (with --data.fold N)",
    "--data.batch_size N": "models at a time",
    "--model.encoder NAME": "class of the encoder (`zoo-builder list encoders`), options as --model.encoder.OPTION",
    "--model.objective NAME": "class of the objective (`zoo-builder list objectives`), options likewise",
    "--trainer.max_epochs N": "passes over the training rows",
    "--trainer.accelerator NAME": "cpu or gpu; also --trainer.devices, --trainer.precision and others of Lightning",
    "--trainer.default_root_dir DIR": "run folder (a new one, runs/version_N, unless given)",
    "--ckpt_path FILE": "checkpoint to go on from, or to judge",
    "--seed_everything N": "seed",
    "--print_config": "print the whole recipe that these options make, and end",
    FULL: "list every option",
}


def text(command: str, line: str) -> str:
    """Help of one training command, which `line` describes."""
    width = max(map(len, OPTIONS))
    options = "\n".join(f"  {option:{width}}  {meaning}" for option, meaning in OPTIONS.items())
    names = ", ".join(sorted(recipes.of_kind("encoder")))
    example = f"weightspace {command} --config supervised --data.zoo zoo"
    example += "" if command == "fit" else " --ckpt_path runs/version_0/checkpoints/best.ckpt"
    return (
        f"usage: weightspace {command} --config FILE [options]\n\n{line}\n\noptions:\n{options}\n\n"
        f"recipes: {names}\n\nexample:\n  {example}\n\n{plugins.HELP} {faults.HELP}"
    )
