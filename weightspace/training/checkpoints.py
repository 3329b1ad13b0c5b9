"""Checkpoints on disk: written atomically with a checksum, of the best epoch and the last one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from weightspace.store import write_durably
from weightspace.store.checksum import refuse_damaged, sealed

CHECKPOINTS: dict[str, Any] = {
    "filename": "best",
    "monitor": "val/loss",
    "save_last": True,
    "enable_version_counter": False,
    "save_on_train_epoch_end": True,
}
"""Options of ModelCheckpoint: `best.ckpt` by validation loss and `last.ckpt`, at epoch ends only. A run that resumes
there is exact, because batches are a function of the epoch."""


class BestAndLast(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose `last.ckpt` would be the last epoch that was the best so far, not the last."""

    @property
    def state_key(self) -> str:
        """The key of Lightning's class, so that a run of an older version resumes with its best loss."""
        return str(super().state_key).replace(type(self).__qualname__, ModelCheckpoint.__qualname__)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the epoch as the last one, and as the best if it is."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._save_latest(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the epoch as the last one where epochs are saved after validation."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._save_latest(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save as Lightning does, but nothing in a `fast_dev_run`."""
        if not getattr(trainer, "fast_dev_run", False):
            super().on_train_end(trainer, pl_module)

    def _save_latest(self, trainer: pl.Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


class SealedCheckpoints(TorchCheckpointIO):
    """Checkpoint files written beside their destination and renamed (Lightning uses TMPDIR), with a checksum."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint atomically; remote paths are left to Lightning."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_durably(Path(path), sealed(buffer.getvalue()))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, place: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, refused if its checksum differs."""
        if Path(path).is_file():
            refuse_damaged(path, Path(path).read_bytes())
        return super().load_checkpoint(path, map_location, weights_only)


def seal_checkpoints(trainer: pl.Trainer) -> None:
    """Give a trainer `SealedCheckpoints`, unless its strategy has another CheckpointIO, as sharded ones have."""
    if type(getattr(trainer.strategy, "checkpoint_io", None)) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = SealedCheckpoints()
