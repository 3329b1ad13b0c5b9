"""An encoder and an objective as a Lightning module, and the loop that trains them."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from weightspace.batch import Batch
from weightspace.construction import plain
from weightspace.datamodule import ZooDataModule
from weightspace.encoders.base import Encoder
from weightspace.objectives.base import Objective
from weightspace.sampling import EpochSampler, derive_key
from weightspace.store import recorded_split


class EmbeddingModule(pl.LightningModule):
    """Trains an encoder with an objective by AdamW, with a linear warm-up and a schedule down to zero.

    `learning_rate` is the peak; `warmup` is the share of training it takes to get there. Input scales and target scales
    are learned from the training rows when training starts, once, and are part of the checkpoint.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        learning_rate: float = 2e-3,
        weight_decay: float = 1e-2,
        warmup: float = 0.05,
        schedule: Literal["cosine", "constant"] = "cosine",
        seed: int = 0,
    ) -> None:
        super().__init__()
        hyper_parameters = {
            "encoder": encoder,
            "objective": objective,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "warmup": warmup,
            "schedule": schedule,
            "seed": seed,
        }
        # Plain values and the instantiator Lightning trusts: the checkpoint is whole and holds no code.
        hyper_parameters = {name: plain(value) for name, value in hyper_parameters.items()}
        self.save_hyperparameters({**hyper_parameters, "_instantiator": "lightning.pytorch.cli.instantiate_module"})
        self.encoder, self.objective = encoder, objective
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup, self.schedule, self.seed = warmup, schedule, seed
        objective.build(encoder.embedding_dim)
        self.register_buffer("fitted", torch.tensor(False))
        self.spent, self.trained_for = 0.0, None

    fitted: Tensor
    spent: float
    """Share of a time budget that is used up, if there is one (see `StopAfter`)."""
    trained_for: tuple[str, int | None] | None
    """The split and fold whose held-out rows training has not seen, once there was training."""

    @property
    def data(self) -> ZooDataModule:
        """The data module this module is being run with."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ZooDataModule):
            raise ValueError(f"EmbeddingModule trains on a ZooDataModule, but the trainer got {type(data).__name__}.")
        return data

    def setup(self, stage: str) -> None:
        """Tell the data module what this objective needs."""
        if stage == "fit" and not len(self.data.rows("val")):
            raise ValueError(
                f"The zoo {self.data.zoo.path} has no validation rows, by which the best epoch is chosen; "
                "build it with `splits: {val: 0.1, ...}`."
            )
        if self.trained_for is not None and stage != "predict":
            self.data.refuse_other_than(self.trained_for)
        objective = self.objective
        self.data.serve(objective.targets, objective.needs_rollouts, objective.needs_neighbours)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Learn from a checkpoint which rows its training has seen."""
        self.trained_for = recorded_split(checkpoint["weightspace"])
        if self._trainer is not None and not self.trainer.predicting:
            self.data.refuse_other_than(self.trained_for)

    def on_fit_start(self) -> None:
        """Learn scales from the training rows, unless a checkpoint brought them along."""
        self.trained_for = recorded_split(self.data.division.record)
        if self.fitted:
            return
        self.encoder.fit_standardisation(stack.to(self.device) for stack in self.data.training_stacks())
        self.objective.fit_scales(self.data.training())
        self.fitted.fill_(True)

    def on_train_start(self) -> None:
        """Refuse a loader that Lightning has sharded a second time."""
        sampler = getattr(self.trainer.train_dataloader, "sampler", None)
        if not isinstance(sampler, EpochSampler):
            raise ValueError(
                "The training batches were sharded twice; make the Trainer with `use_distributed_sampler=False`."
            )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what dropout draws, so that a resumed run goes on bit for bit."""
        torch.manual_seed(derive_key(self.seed, "step", self.global_step, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one training batch."""
        return self._run(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the validation loss and metrics."""
        self._run(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the test loss and metrics."""
        self._run(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Row numbers (models,) and embeddings (models, embedding_dim)."""
        return {"rows": batch.rows, "embedding": self.encoder(batch.stacks)}

    def _run(self, batch: Batch, stage: str) -> Tensor:
        loss, metrics = self.objective(self.encoder, batch)
        shared: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": self.trainer.world_size > 1}
        self.log(f"{stage}/loss", loss, batch_size=len(batch), prog_bar=True, **shared)
        for name, (value, count) in metrics.items():
            self.log(f"{stage}/{name}", value, batch_size=count, **shared)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, with no weight decay on biases, norms and embeddings' one-dimensional parameters."""
        matrices = [p for p in self.parameters() if p.requires_grad and p.dim() > 1]
        vectors = [p for p in self.parameters() if p.requires_grad and p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.learning_rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _factor(self, step: int) -> float:
        """Share of the peak learning rate at a step, or at the share of the time budget spent if that is further on."""
        total = self.trainer.estimated_stepping_batches
        done = max(step / total if math.isfinite(total) and total > 0 else 0.0, self.spent)
        if done < self.warmup:
            return max(done / self.warmup, 1e-2)
        if self.schedule == "constant":
            return 1.0
        left = min((done - self.warmup) / max(1 - self.warmup, 1e-9), 1.0)
        return 0.5 * (1 + math.cos(math.pi * left))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say in plain words what the checkpoint holds."""
        checkpoint["weightspace"] = {
            "encoder": type(self.encoder).__name__,
            "objective": type(self.objective).__name__,
            "learned_with": self.objective.learned_with,
            "zoo": self.data.zoo.fingerprint,
            "models": self.data.division.models,
            **self.data.division.record,
        }


class StopAfter(Callback):
    """Stops training, with a last validation, once it has used its CPU minutes; the learning rate ends with them."""

    def __init__(self, cpu_minutes: float) -> None:
        if cpu_minutes <= 0:
            raise ValueError(f"`cpu_minutes` (={cpu_minutes}) must be above 0.")
        self.cpu_minutes = cpu_minutes
        self._start = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = time.process_time()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and end training when the budget is used up."""
        assert isinstance(pl_module, EmbeddingModule)
        pl_module.spent = (time.process_time() - self._start) / (60 * self.cpu_minutes)
        if pl_module.spent >= 1:
            trainer.should_stop = True


TRAINER: dict[str, Any] = {
    # The sampler shards batches over devices itself.
    "use_distributed_sampler": False,
    "gradient_clip_val": 1.0,
    "max_epochs": 30,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
}
"""How a Trainer is made here unless told otherwise."""

CHECKPOINTS: dict[str, Any] = {
    "filename": "best",
    "monitor": "val/loss",
    "save_last": True,
    "enable_version_counter": False,
    "save_on_train_epoch_end": True,
}
"""Keeps the best epoch by validation loss as `best.ckpt` and the latest as `last.ckpt`, at epoch ends only: there a
resumed run goes on exactly, because batches are a function of the epoch."""


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


def fit(
    module: EmbeddingModule,
    data: ZooDataModule,
    run: Path | str,
    *,
    max_epochs: int = 30,
    cpu_minutes: float | None = None,
    resume: bool = False,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train and return the path of the best checkpoint in the folder `run`; `resume` goes on from its last one."""
    run = Path(run)
    kept = ModelCheckpoint(dirpath=run / "checkpoints", **CHECKPOINTS)
    extra: list[Callback] = [StopAfter(cpu_minutes)] if cpu_minutes else []
    extra += [TQDMProgressBar()] if progress else []
    last = run / "checkpoints" / "last.ckpt"
    with quiet():
        trainer = pl.Trainer(
            **{**TRAINER, "max_epochs": max_epochs},
            logger=run_logger(run),
            callbacks=[kept, *extra, *callbacks],
            enable_progress_bar=progress,
            enable_model_summary=False,
            default_root_dir=run,
        )
        with interruptible(trainer):
            start = last if resume and last.exists() else None
            trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
    return Path(kept.best_model_path or kept.last_model_path)
