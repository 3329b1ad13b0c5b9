"""Lightning's command line for the encoders of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from weightspace import encoders, objectives
from weightspace.datamodule import ZooDataModule
from weightspace.module import CHECKPOINTS, TRAINER, EmbeddingModule, interruptible, quiet, run_logger

Hint = Callable[[str], str]

RUNS = "runs"
LOGGER: dict[str, Any] = {
    "class_path": "lightning.pytorch.loggers.CSVLogger",
    "init_args": {"save_dir": RUNS, "name": ""},
}
"""Runs go to runs/version_N, or straight to `--trainer.default_root_dir` where that is given."""


class FitOnlySave(SaveConfigCallback):
    """Saves the resolved config.yaml in the run folder of a training, and leaves evaluations alone."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save when fitting to a logger's folder; without one, nothing is written into the current directory."""
        if stage != "fit" or not trainer.loggers:
            return
        kept = Path(str(trainer.log_dir)) / self.config_filename
        self.overwrite = trainer.ckpt_path is not None
        if kept.exists() and not self.overwrite:
            raise ValueError(
                f"{kept.parent} already holds a run; go on with `--ckpt_path {kept.parent / 'checkpoints' / 'last.ckpt'}`, "
                "or choose another folder."
            )
        super().setup(trainer, pl_module, stage)


class TrainingCLI(LightningCLI):
    """Trains and evaluates an EmbeddingModule on a ZooDataModule; checkpoints are configured under `checkpoint`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Checkpoints that a config can change, with this package's defaults."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({f"checkpoint.{name}": value for name, value in CHECKPOINTS.items()})

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer, with plain progress bar and summary whatever else is installed."""
        config = self._get(self.config_init, "trainer", default={})
        callbacks = list(config.get("callbacks") or [])
        if config.get("enable_progress_bar") is not False:
            callbacks.append(TQDMProgressBar())
        if config.get("enable_model_summary") is not False:
            callbacks.append(ModelSummary())
        root, logger = config.get("default_root_dir"), config.get("logger")
        if root is not None and self.subcommand == "fit" and _is_default(self.config[self.subcommand].trainer.logger):
            logger = run_logger(Path(root))
        # The switch only says whether Lightning adds a summary of its own choice.
        return super().instantiate_trainer(callbacks=callbacks, logger=logger, enable_model_summary=False, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments given, without the warning that `sys.argv` holds some too."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Take the module from the checkpoint, and refuse options that it would silently overrule."""
        asked = self._model_options()
        super()._parse_ckpt_path()
        stored, defaults = self._model_options(), dict(_leaves("", self._defaults()))
        for name, value in asked.items():
            if name in stored and stored[name] != value and value != defaults.get(name, value):
                raise ValueError(
                    f"`--model.{name} {value}` has no effect with this checkpoint, which was trained with {stored[name]}; "
                    "leave the option out, or train anew without --ckpt_path."
                )

    def _model_options(self) -> dict[str, Any]:
        command = self.config.get("subcommand")
        return dict(_leaves("", self.config[command].as_dict().get("model", {}))) if command else {}

    def _defaults(self) -> Mapping[str, Any]:
        parser = self._parser(self.config["subcommand"])
        return parser.get_defaults(skip_validation=True).as_dict().get("model", {})

    def _run_subcommand(self, subcommand: str) -> None:
        with interruptible(self.trainer):
            super()._run_subcommand(subcommand)


def _is_default(logger: Any) -> bool:
    """Whether a logger's config is the one that is taken when none is asked for."""
    return getattr(logger, "class_path", "") == LOGGER["class_path"] and logger.init_args.save_dir == RUNS


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), item)
    else:
        yield name, value


def run(argv: list[str], prog: str, hint: Hint) -> None:
    """Parse and run one of fit, validate, test, predict; `hint` improves the parser's error messages."""

    class Parser(LightningArgumentParser):
        def error(self, message: str, *args: Any, **kwargs: Any) -> Any:
            # The usage of a whole trainer is pages long; the message alone is what helps.
            self.exit(2, f"error: {hint(str(message))}\n(`{prog} {argv[0]} --help` lists every option.)\n")

    # Short names in configs are those of classes that have been imported.
    encoders.available(), objectives.available()
    with quiet():
        TrainingCLI(
            EmbeddingModule,
            ZooDataModule,
            args=argv,
            parser_class=Parser,
            parser_kwargs={"prog": prog},
            save_config_callback=FitOnlySave,
            seed_everything_default=0,
            trainer_defaults={"logger": LOGGER, **TRAINER},
            auto_configure_optimizers=False,
        )
