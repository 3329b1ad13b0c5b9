"""The Trainer: its defaults, refused options, logger, interruption, and silenced messages."""

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
"""Default options of a Trainer."""


def refuse_unusable_options(trainer: pl.Trainer) -> None:
    """Raise ValueError for options of a trainer that would have no effect or a wrong one here."""
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
    """A logger that writes `metrics.csv` into the run folder; an earlier file is renamed `metrics-N.csv`."""
    metrics = run / "metrics.csv"
    with suppress(FileNotFoundError):
        # A new run has no metrics yet; of several processes another may have renamed them.
        number = 1 + sum(1 for _ in run.glob("metrics-*.csv"))
        metrics.rename(run / f"metrics-{number}.csv")
    return CSVLogger(save_dir=run, name="", version="")


@contextmanager
def interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Raise KeyboardInterrupt at Ctrl-C during training, where Lightning exits with status 1."""
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
    """Silence tips and warnings of Lightning that do not apply here."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def is_useful(record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in ("Tip:", "available:", "Loading `train_dataloader`"))

    log.addFilter(is_useful)
    try:
        with warnings.catch_warnings():
            # Shards are memory-mapped and cached: worker processes would only copy them.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # A resumed run uses its folder again, where `run_logger` has renamed the earlier metrics.
            warnings.filterwarnings("ignore", message="(Experiment logs|Checkpoint) directory.* is not empty.*")
            # Evaluation saves no checkpoints, so their folder does not matter.
            warnings.filterwarnings("ignore", message="The dirpath has changed.*")
            # Lightning itself uses deprecated parts of jsonargparse and torch.
            warnings.filterwarnings("ignore", message="(?s).*(JsonargparseDeprecationWarning|was deprecated in v4)")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        log.removeFilter(is_useful)
