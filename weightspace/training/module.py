"""An encoder and an objective as a Lightning module, and the loop that trains them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from torch import Tensor

from weightspace.components.construction import plain
from weightspace.data.batch import Batch
from weightspace.data.datamodule import ZooDataModule
from weightspace.data.memory import room_for
from weightspace.data.sampling import EpochSampler, derive_key
from weightspace.encoders.base import Encoder
from weightspace.objectives.base import Objective
from weightspace.store import Stack, recorded_split
from weightspace.training.checkpoints import CHECKPOINTS, BestAndLast, seal_checkpoints
from weightspace.training.trainer import TRAINER, interruptible, quiet, refuse_unusable_options, run_logger


class Diverged(ValueError):
    """Training came to numbers that are not finite."""


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
        if not (0 < learning_rate < math.inf and 0 <= weight_decay < math.inf and 0 <= warmup <= 1):
            raise ValueError(
                f"`learning_rate` (={learning_rate}) must be above 0, `weight_decay` (={weight_decay}) at least 0, "
                f"both finite, and `warmup` (={warmup}) a share from 0 to 1."
            )
        if schedule not in ("cosine", "constant"):
            raise ValueError(f"`schedule` (={schedule!r}) must be 'cosine' or 'constant'.")
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
        self._stacks: list[Stack] = []

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
        """Tell the data module what this objective needs, and refuse what could only fail later."""
        seal_checkpoints(self.trainer)
        refuse_unusable_options(self.trainer)
        if self.trained_for is not None and stage != "predict":
            self.data.refuse_other_than(self.trained_for)
        objective = self.objective
        if stage == "predict":
            self.data.serve()
            self.data.refuse_unusable()
        else:
            self.data.serve(objective.targets, objective.needs_rollouts, objective.needs_neighbours)
        for family in self.data.families(self.data.rows_for(stage)):
            self.encoder.refuse_too_large(family)

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
        self._stacks = batch.stacks
        return self._run(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the validation loss and metrics."""
        self._run(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the test loss and metrics."""
        self._run(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Row numbers (models,) and embeddings (models, embedding_dim)."""
        with room_for(batch.stacks):
            return {"rows": batch.rows, "embedding": self.encoder(batch.stacks)}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's, but where memory does not suffice, the models are named."""
        with room_for(self._stacks):
            super().backward(loss, *args, **kwargs)

    def _run(self, batch: Batch, stage: str) -> Tensor:
        with room_for(batch.stacks):
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

        def share(step: int) -> float:
            # Of the rate that is asked for now, which a callback may have changed since the optimizer was made.
            return self._factor(step) * self.learning_rate / optimizer.param_groups[0]["initial_lr"]

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
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

    def on_train_epoch_end(self) -> None:
        """End a run that diverged, before the epoch is saved as a checkpoint."""
        self._refuse_diverged()

    def _refuse_diverged(self) -> None:
        """Raise Diverged where a mean loss of the epoch or a tensor of the module is not finite."""
        metrics = self.trainer.callback_metrics
        losses = {name: metrics[name] for name in ("train/loss", "val/loss") if name in metrics}
        wrong = [f"{name} is {value:.3g}" for name, value in losses.items() if not torch.isfinite(value)]
        wrong += [f"'{name}' is not finite" for name, value in self.state_dict().items() if not value.isfinite().all()]
        if not wrong:
            return
        kept = getattr(self.trainer.checkpoint_callback, "last_model_path", "")
        left = f"{kept} is the last epoch before" if kept else "no epoch before was kept as a checkpoint"
        raise Diverged(
            f"Training diverged in epoch {self.trainer.current_epoch}: {wrong[0]}; {left}. Train with a lower "
            f"`learning_rate` (={self.learning_rate:g}), or with `gradient_clip_val`."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say in plain words what the checkpoint holds; nothing that is not finite gets into one."""
        self._refuse_diverged()
        checkpoint["weightspace"] = {
            "encoder": type(self.encoder).__name__,
            "objective": type(self.objective).__name__,
            "learned_with": self.objective.learned_with,
            "label_adjacent": list(self.objective.label_adjacent),
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
    kept = BestAndLast(dirpath=run / "checkpoints", **CHECKPOINTS)
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
