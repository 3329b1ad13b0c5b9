"""A budget of CPU minutes for one training."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class StopAfter(Callback):
    """Stops training, after a last validation, at a budget of CPU minutes; the learning rate follows the budget."""

    def __init__(self, cpu_minutes: float) -> None:
        if cpu_minutes <= 0:
            raise ValueError(f"`cpu_minutes` (={cpu_minutes}) must be above 0.")
        self.cpu_minutes = cpu_minutes
        self._start = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self._start = time.process_time()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the share used, and stop training at 1."""
        pl_module.spent = (time.process_time() - self._start) / (60 * self.cpu_minutes)
        if pl_module.spent >= 1:
            trainer.should_stop = True
