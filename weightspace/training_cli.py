"""Lightning's command line for the encoders of this package."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from weightspace import encoders, objectives, plugins
from weightspace.checkpoints import CHECKPOINTS, BestAndLast
from weightspace.datamodule import ZooDataModule
from weightspace.module import EmbeddingModule
from weightspace.prediction import EmbeddingWriter
from weightspace.restoring import read_checkpoint, refuse_misfit
from weightspace.terminal import printable
from weightspace.trainer import TRAINER, interruptible, quiet, run_logger

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
        # A run that goes on writes the options it goes on with.
        self.overwrite = self.config.get("ckpt_path") is not None
        if stage == "fit" and trainer.loggers:
            super().setup(trainer, pl_module, stage)


class TrainingCLI(LightningCLI):
    """Trains and evaluates an EmbeddingModule on a ZooDataModule; checkpoints are configured under `checkpoint`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Checkpoints that a config can change, with this package's defaults."""
        parser.add_lightning_class_args(BestAndLast, "checkpoint")
        parser.set_defaults({f"checkpoint.{name}": value for name, value in CHECKPOINTS.items()})
        if "predict" in self.subcommands():
            parser.add_argument("--out", type=str, help="file for the embeddings, as `weightspace embed` writes it")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer, with plain progress bar and summary whatever else is installed."""
        config = self._get(self.config_init, "trainer", default={})
        callbacks = list(config.get("callbacks") or [])
        if config.get("enable_progress_bar") is not False:
            callbacks.append(TQDMProgressBar())
        if config.get("enable_model_summary") is not False:
            callbacks.append(ModelSummary())
        logger = config.get("logger")
        if self.subcommand == "fit" and _is_default(self.config[self.subcommand].trainer.logger):
            run = self._run_folder(config.get("default_root_dir"), self.config[self.subcommand].get("ckpt_path"))
            logger = run_logger(run) if run else logger
        callbacks += self._writers()
        # The switch only says whether Lightning adds a summary of its own choice.
        return super().instantiate_trainer(callbacks=callbacks, logger=logger, enable_model_summary=False, **kwargs)

    def _writers(self) -> list[EmbeddingWriter]:
        """What `predict --out` asks for."""
        options = self.config[self.subcommand]
        if options.get("out") is None:
            return []
        if options.get("ckpt_path") is None:
            raise ValueError("`--out` is for the embeddings of a trained encoder; give its `--ckpt_path`, too.")
        return [EmbeddingWriter(options.out, options.ckpt_path)]

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Lightning's, but predictions that are written need not be kept."""
        options = super()._prepare_subcommand_kwargs(subcommand)
        return {**options, "return_predictions": False} if subcommand == "predict" else options

    def _run_folder(self, root: str | None, checkpoint: str | None) -> Path | None:
        """The folder a run is told to use, or goes on in, or None for a new one."""
        going_on = checkpoint is not None and Path(checkpoint).parent.name == "checkpoints"
        run = Path(root) if root else Path(str(checkpoint)).parent.parent if going_on else None
        if run is not None and (run / "config.yaml").exists() and not checkpoint:
            last = run / "checkpoints" / "last.ckpt"
            raise ValueError(f"{run} already holds a run; go on with `--ckpt_path {last}`, or choose another folder.")
        return run

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments given, without the warning that `sys.argv` holds some too."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Take the module from the checkpoint, and refuse options that it would silently overrule."""
        asked, command = self._model_options(), self.config.get("subcommand")
        checkpoint = self.config[command].get("ckpt_path") if command else None
        if checkpoint is not None:
            # Says in one line what is wrong with it, where Lightning would show a traceback.
            refuse_misfit(checkpoint, read_checkpoint(checkpoint))
        super()._parse_ckpt_path()
        stored = self._model_options()
        for name, value in asked.items():
            if name in stored and stored[name] != value and value != _default(name, asked):
                raise ValueError(
                    f"`--model.{name} {value}` has no effect with this checkpoint, which was trained with "
                    f"{stored[name]}; leave the option out, or train anew without --ckpt_path."
                )

    def _model_options(self) -> dict[str, Any]:
        command = self.config.get("subcommand")
        return dict(_leaves("", self.config[command].as_dict().get("model", {}))) if command else {}

    def _run_subcommand(self, subcommand: str) -> None:
        with interruptible(self.trainer):
            super()._run_subcommand(subcommand)


def _is_default(logger: Any) -> bool:
    """Whether a logger's config is the one that is taken when none is asked for."""
    return getattr(logger, "class_path", "") == LOGGER["class_path"] and logger.init_args.save_dir == RUNS


def _default(name: str, options: Mapping[str, Any]) -> Any:
    """The default of an option of the module, or of the encoder or objective that `options` name."""
    owner, _, key = name.rpartition(".init_args.")
    choices: dict[str, Mapping[str, Any]] = {"encoder": encoders.available(), "objective": objectives.available()}
    made = choices.get(owner, {}).get(str(options.get(f"{owner}.class_path")).rpartition(".")[2], EmbeddingModule)
    parameter = inspect.signature(made).parameters.get(key)
    return parameter.default if parameter else inspect.Parameter.empty


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), item)
    else:
        yield name, value


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what Lightning calls a misconfiguration into a ValueError, the error of users here."""
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


def run(argv: list[str], prog: str, hint: Hint) -> None:
    """Parse and run one of fit, validate, test, predict; `hint` improves the parser's error messages."""

    class Parser(LightningArgumentParser):
        def error(self, message: str, *args: Any, **kwargs: Any) -> Any:
            # The usage of a whole trainer is pages long; the message alone is what helps.
            self.exit(2, f"error: {printable(hint(str(message)))}\n(`{prog} {argv[0]} --help` lists every option.)\n")

    class OneCommand(TrainingCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            # The parser of each command takes a second to make.
            return {argv[0]: LightningCLI.subcommands()[argv[0]]}

    # Short names in configs are those of classes that have been imported.
    encoders.available(), objectives.available()
    with quiet(), user_errors():
        OneCommand(
            EmbeddingModule,
            ZooDataModule,
            args=argv,
            parser_class=Parser,
            parser_kwargs={"prog": prog, argv[0]: {"epilog": plugins.HELP}},
            save_config_callback=FitOnlySave,
            seed_everything_default=0,
            trainer_defaults={"logger": LOGGER, **TRAINER},
            auto_configure_optimizers=False,
        )
