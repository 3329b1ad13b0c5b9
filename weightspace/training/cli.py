"""Lightning's command line for the encoders of this package."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelSummary
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from weightspace import encoders, objectives
from weightspace.components import plugins
from weightspace.data.datamodule import ZooDataModule
from weightspace.terminal import printable
from weightspace.training.bar import TrainingBar
from weightspace.training.checkpoints import CHECKPOINTS, BestAndLast
from weightspace.training.module import EmbeddingModule
from weightspace.training.prediction import EmbeddingWriter
from weightspace.training.restoring import read_checkpoint, refuse_misfit
from weightspace.training.starting import start_from
from weightspace.training.trainer import TRAINER, interruptible, quiet, run_logger

Hint = Callable[[str], str]

RUNS = "runs"
START_HELP = """trained encoder of the same class and sizes to start from, with its input scales: a checkpoint, a folder
of `weightspace pretrained`, OWNER/NAME on the Hub, or `state-geometry-small`, which comes with the package"""
LOGGER: dict[str, Any] = {
    "class_path": "lightning.pytorch.loggers.CSVLogger",
    "init_args": {"save_dir": RUNS, "name": ""},
}
"""Default logger: runs go to runs/version_N, or to `--trainer.default_root_dir` itself."""


class FitOnlySave(SaveConfigCallback):
    """Saves the resolved config.yaml in the run folder of `fit`; validate, test and predict save none."""

    def __init__(self, parser: LightningArgumentParser, config: Any, run: Path | None = None) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.run = run

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save in `fit`, in the run folder of the first process."""
        if stage == "fit":
            run = Path(str(trainer.strategy.broadcast(self.run or trainer.log_dir)))
            if self.run is None and self.config.get("ckpt_path") is None:
                refuse_used(run, trainer.strategy.broadcast(kept_in(run / "checkpoints")))
            self.run = run
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write config.yaml; a resumed run overwrites it with its present options."""
        assert self.run is not None
        self.run.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, self.run / "config.yaml", skip_none=False, overwrite=True, multifile=False)


class TrainingCLI(LightningCLI):
    """Trains and evaluates an EmbeddingModule on a ZooDataModule; checkpoints are configured under `checkpoint`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the checkpoint options, with this package's defaults, `--start_from` of fit and `--out` of predict."""
        parser.add_lightning_class_args(BestAndLast, "checkpoint")
        parser.set_defaults({f"checkpoint.{name}": value for name, value in CHECKPOINTS.items()})
        if "fit" in self.subcommands():
            parser.add_argument("--start_from", type=str, help=START_HELP)
        if "predict" in self.subcommands():
            parser.add_argument("--out", type=str, help="file for the embeddings, as `weightspace embed` writes it")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer, with the plain progress bar and summary (Lightning's choice depends on installed packages)."""
        config = self._get(self.config_init, "trainer", default={})
        configured = config.get("callbacks") or []
        callbacks = list(configured) if isinstance(configured, list) else [configured]
        if config.get("enable_progress_bar") is not False:
            callbacks.append(TrainingBar())
        if config.get("enable_model_summary") is not False:
            callbacks.append(ModelSummary())
        logger = config.get("logger")
        refuse_barebones(config)
        self.run = self._run_folder(config) if self.subcommand == "fit" else None
        if self.run is not None and (logger is True or _is_default(self.config[self.subcommand].trainer.logger)):
            logger = run_logger(self.run)
        self.save_config_kwargs = {"run": self.run}
        callbacks += self._writers()
        # `enable_model_summary` would add a second summary.
        return super().instantiate_trainer(callbacks=callbacks, logger=logger, enable_model_summary=False, **kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> pl.Trainer:
        """The trainer, with checkpoints in the run folder for every logger and for none."""
        if config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, BestAndLast)]
        for callback in callbacks:
            if isinstance(callback, BestAndLast) and callback.dirpath is None and self.run is not None:
                callback.dirpath = str((self.run / "checkpoints").resolve())
        return super()._instantiate_trainer(config, callbacks)

    def _writers(self) -> list[EmbeddingWriter]:
        """The callback of `predict --out`, if the option is set."""
        options = self.config[self.subcommand]
        if options.get("out") is None:
            return []
        if options.get("ckpt_path") is None:
            raise ValueError("`--out` is for the embeddings of a trained encoder; give its `--ckpt_path`, too.")
        return [EmbeddingWriter(options.out)]

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Lightning's options; predictions are written to a file, so they are not also kept in memory."""
        options = super()._prepare_subcommand_kwargs(subcommand)
        return {**options, "return_predictions": False} if subcommand == "predict" else options

    def _run_folder(self, config: Mapping[str, Any]) -> Path | None:
        """The run folder: as configured, or that of the checkpoint to resume, or a new one; None: the logger's."""
        options = self.config[self.subcommand]
        root, checkpoint = config.get("default_root_dir"), options.get("ckpt_path")
        if root:
            if not checkpoint:
                refuse_used(Path(root), kept_in(options.checkpoint.get("dirpath") or Path(root) / "checkpoints"))
            return Path(root)
        if checkpoint is not None and Path(checkpoint).parent.name == "checkpoints":
            return Path(checkpoint).parent.parent
        if isinstance(config.get("logger"), CSVLogger | TensorBoardLogger):
            return None
        numbers = [path.name.removeprefix("version_") for path in Path(RUNS).glob("version_*")]
        return Path(RUNS) / f"version_{max((int(n) + 1 for n in numbers if n.isdecimal()), default=0)}"

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args`, without Lightning's warning that `sys.argv` is ignored."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Take the module from the checkpoint; refuse options that it would silently override."""
        requested, command = self._model_options(), self.config.get("subcommand")
        checkpoint = self.config[command].get("ckpt_path") if command else None
        if checkpoint is not None:
            # A wrong file is refused in one line: Lightning would show a traceback.
            refuse_misfit(checkpoint, read_checkpoint(checkpoint))
        super()._parse_ckpt_path()
        stored = self._model_options() if checkpoint is not None else {}
        for name, value in requested.items():
            if name in stored and stored[name] != value and value != _default(name, requested):
                raise ValueError(
                    f"`--model.{name} {value}` has no effect with this checkpoint, which was trained with "
                    f"{stored[name]}; leave the option out, or train anew without --ckpt_path."
                )

    def _model_options(self) -> dict[str, Any]:
        command = self.config.get("subcommand")
        return dict(_leaves("", self.config[command].as_dict().get("model", {}))) if command else {}

    def before_fit(self) -> None:
        """Start from a trained encoder where that is asked for; a run that is resumed has started already."""
        options = self.config["fit"]
        if options.get("start_from") is not None and options.get("ckpt_path") is None:
            start_from(self.model, options.start_from, self.datamodule)

    def _run_subcommand(self, subcommand: str) -> None:
        with interruptible(self.trainer):
            super()._run_subcommand(subcommand)


def kept_in(folder: Path | str) -> str:
    """The checkpoint in a folder from which a run would resume; "" if there is none."""
    checkpoints = sorted(Path(folder).glob("*.ckpt"), key=lambda path: (path.name == "last.ckpt", path.stat().st_mtime))
    return str(checkpoints[-1]) if checkpoints else ""


def refuse_used(run: Path, checkpoint: str) -> None:
    """Raise ValueError if a run folder already has a checkpoint."""
    if checkpoint:
        raise ValueError(f"{run} already holds a run; go on with `--ckpt_path {checkpoint}`, or choose another folder.")


def refuse_barebones(options: Mapping[str, Any]) -> None:
    """Raise ValueError for a barebones trainer, which has neither logger nor checkpoints."""
    if options.get("barebones"):
        raise ValueError(
            "`--trainer.barebones true` is refused, because it takes away the metrics and checkpoints that make a run; "
            "use `--trainer.logger false --trainer.enable_checkpointing false`."
        )


def _is_default(logger: Any) -> bool:
    """Whether a logger's config is the default `LOGGER`."""
    class_path: str = getattr(logger, "class_path", "")
    return class_path == LOGGER["class_path"] and bool(logger.init_args.save_dir == RUNS)


def _default(name: str, options: Mapping[str, Any]) -> Any:
    """The default of an option of the module, or of the encoder or objective named in `options`."""
    owner, _, key = name.rpartition(".init_args.")
    choices: dict[str, Mapping[str, Any]] = {"encoder": encoders.available(), "objective": objectives.available()}
    kind = choices.get(owner, {}).get(str(options.get(f"{owner}.class_path")).rpartition(".")[2], EmbeddingModule)
    parameter = inspect.signature(kind).parameters.get(key)
    return parameter.default if parameter else inspect.Parameter.empty


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), item)
    else:
        yield name, value


def answer(trainer: pl.Trainer) -> str:
    """Result of a training, in a line: its epochs, the lowest validation loss, and the checkpoint of it."""
    trained = f"Trained to epoch {trainer.current_epoch}, update {trainer.global_step}"
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestAndLast) and callback.best_model_path:
            best = callback.best_model_score
            lowest = "" if best is None else f"lowest {callback.monitor} {best:.4g} "
            return f"{trained}; {lowest}in {callback.best_model_path}"
    return f"{trained}; no checkpoint was asked for."


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn Lightning's MisconfigurationException into ValueError, which the command line prints."""
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


def run(argv: list[str], prog: str, hint: Hint) -> str | None:
    """Parse and run one of fit, validate, test, predict; `hint` improves the parser's error messages.

    Returns the answer of `fit`, in the first of several processes; None of the others, which have printed theirs.
    """

    class Parser(LightningArgumentParser):
        def error(self, message: str, *args: Any, **kwargs: Any) -> Any:
            # The message alone: the usage of a whole trainer is pages long.
            way_out = f"(`{prog} {argv[0]} --help_all` lists every option.)"
            self.exit(2, f"error: {printable(hint(str(message)))}\n{way_out}\n")

    class OneCommand(TrainingCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            # The parser of each command takes a second to make.
            return {argv[0]: LightningCLI.subcommands()[argv[0]]}

    # Short names in configs work for imported classes only.
    encoders.available(), objectives.available()
    with quiet(), user_errors():
        cli = OneCommand(
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
    return answer(cli.trainer) if argv[0] == "fit" and cli.trainer.is_global_zero else None
