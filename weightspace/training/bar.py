"""The bar of a training: one for all its epochs, from the first update to the last."""

from __future__ import annotations

import math
import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm

SECONDS_IN_FILES = 10.0
"""Time between two states of a bar that goes to a file, where each is a line of its own."""


class TrainingBar(TQDMProgressBar):
    """One bar of a whole training, in text on stderr, also in notebooks: it names the epoch and losses, and ends full.

    It begins with the first update, so that what comes before does not spoil the estimate; a run that goes on begins
    where it was stopped. A training that a callback or a budget ends is whole then; one that fails or is interrupted
    keeps its share. The loss is that of a batch until the first epoch has one. Validation during training has no bar;
    validate, test and predict have those of Lightning.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm[Any] | None = None

    def on_sanity_check_start(self, *_: Any) -> None:
        """Show nothing: batches before the first update are no progress."""

    def on_sanity_check_end(self, *_: Any) -> None:
        """Show nothing."""

    def on_train_start(self, *_: Any) -> None:
        """Show nothing before the first update."""
        self.bar = None

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Name the epoch."""
        if self.bar is not None:
            self.bar.set_description(_epoch(trainer), refresh=False)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Begin the bar before the first update."""
        if self.bar is None:
            total = trainer.estimated_stepping_batches
            self.bar = tqdm(
                desc=_epoch(trainer),
                total=int(total) if math.isfinite(total) else None,
                initial=trainer.global_step,
                unit=" updates",
                disable=self.is_disabled,
                dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else SECONDS_IN_FILES,
                file=sys.stderr,
            )
            # Where Lightning looks for it, to print above it.
            self.train_progress_bar = self.bar  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Count the updates, which are fewer than the batches where gradients are accumulated."""
        assert self.bar is not None
        # Losses are read now and then only: on a GPU each reading waits for it.
        if self.bar.update(trainer.global_step - self.bar.n):
            loss = trainer.progress_bar_metrics or {"loss": float(outputs["loss"])}
            self.bar.set_postfix(loss, refresh=False)

    def on_train_epoch_end(self, *_: Any) -> None:
        """Show nothing: the losses of the epoch come after this."""

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """End the bar at 100%, with the last losses."""
        if self.bar is not None:
            self.bar.total = self.bar.n
            self.bar.set_postfix(trainer.progress_bar_metrics)
            self.bar.close()

    def on_exception(self, *_: Any) -> None:
        """Leave the bar where it is."""
        if self.bar is not None:
            self.bar.close()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin the bar of `validate`."""
        if trainer.state.fn == "validate":
            super().on_validation_start(trainer, pl_module)

    def on_validation_batch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
        """Count the batches of `validate`."""
        if trainer.state.fn == "validate":
            super().on_validation_batch_start(trainer, *rest)

    def on_validation_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        """Count the batches of `validate`."""
        if trainer.state.fn == "validate":
            super().on_validation_batch_end(trainer, *rest)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """End the bar of `validate`."""
        if trainer.state.fn == "validate":
            super().on_validation_end(trainer, pl_module)


def _epoch(trainer: pl.Trainer) -> str:
    last = trainer.max_epochs
    return f"Epoch {trainer.current_epoch + 1}" + (f"/{last}" if last is not None and last > 0 else "")
