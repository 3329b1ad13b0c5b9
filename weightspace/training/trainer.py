"""How a Trainer is made and run here: defaults, what it may not be told, its log, and how it is interrupted."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger

TRAINER: dict[str, Any] = {
    # The sampler shards batches over devices itself.
    "use_distributed_sampler": False,
    "gradient_clip_val": 1.0,
    "max_epochs": 30,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
}
"""How a Trainer is made here unless told otherwise."""


def refuse_unusable_options(trainer: pl.Trainer) -> None:
    """Raise ValueError for options of a trainer that could not do here what they say."""
    if "mixed" not in trainer.precision and trainer.precision != "32-true":
        raise ValueError(
            f"`precision` (={trainer.precision}) is refused, because zoos are read in float32; choose `32-true`, "
            "`bf16-mixed` or `16-mixed`."
        )
    overfit = getattr(trainer, "overfit_batches", 0)
    if overfit:
        raise ValueError(
            f"`overfit_batches` (={overfit}) is refused, because it takes away the sampler that makes "
            "the batches; use `limit_train_batches`."
        )


def run_logger(run: Path) -> CSVLogger:
    """Writes `metrics.csv` into the run folder; that of an earlier part of the run is kept as `metrics-N.csv`."""
    metrics = run / "metrics.csv"
    with suppress(FileNotFoundError):
        # There are none yet, or another process of this run was quicker.
        number = 1 + sum(1 for _ in run.glob("metrics-*.csv"))
        metrics.rename(run / f"metrics-{number}.csv")
    return CSVLogger(save_dir=run, name="", version="")


@contextmanager
def interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Make Ctrl-C during training a KeyboardInterrupt again, where Lightning exits with status 1."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what Lightning says that helps nobody here."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def informs(record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in ("Tip:", "available:", "Loading `train_dataloader`"))

    log.addFilter(informs)
    try:
        with warnings.catch_warnings():
            # Shards are mapped and cached: worker processes would only copy them.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # A run that goes on does so in its own folder, where `run_logger` has put the earlier metrics aside.
            warnings.filterwarnings("ignore", message="(Experiment logs|Checkpoint) directory.* is not empty.*")
            # Evaluating keeps no checkpoints, so it does not matter where the training kept them.
            warnings.filterwarnings("ignore", message="The dirpath has changed.*")
            # Lightning's own use of jsonargparse and torch.
            warnings.filterwarnings("ignore", message="(?s).*(JsonargparseDeprecationWarning|was deprecated in v4)")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        log.removeFilter(informs)
