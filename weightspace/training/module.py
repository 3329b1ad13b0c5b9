"""An encoder and an objective as a Lightning module, and the loop that trains them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from weightspace.components.construction import plain
from weightspace.data.batch import Batch
from weightspace.data.datamodule import ZooDataModule
from weightspace.data.memory import room_for
from weightspace.data.sampling import EpochSampler
from weightspace.encoders.base import Encoder
from weightspace.objectives.base import Objective
from weightspace.rollout.streams import derive_key
from weightspace.store import Stack, recorded_split
from weightspace.training.bar import TrainingBar
from weightspace.training.budget import StopAfter
from weightspace.training.captured import CapturedEncoder
from weightspace.training.checkpoints import CHECKPOINTS, BestAndLast, seal_checkpoints
from weightspace.training.divergence import refuse_diverged
from weightspace.training.provenance import described, provenance_of
from weightspace.training.schedule import Schedule, share_of_peak
from weightspace.training.trainer import TRAINER, interruptible, quiet, refuse_unusable_options, run_logger


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
        schedule: Schedule = "cosine",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (0 < learning_rate < math.inf and 0 <= weight_decay < math.inf and 0 <= warmup <= 1):
            raise ValueError(
                f"`learning_rate` (={learning_rate}) must be above 0, `weight_decay` (={weight_decay}) at least 0, "
                f"both finite, and `warmup` (={warmup}) a share from 0 to 1."
            )
        if schedule not in get_args(Schedule):
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
        self.spent, self.trained_for, self.started_from = 0.0, None, None
        self._stacks: list[Stack] = []
        self._sums: dict[str, tuple[Tensor, int]] = {}
        # In a list, so that the encoder's parameters are those of one module alone.
        self._reader: list[CapturedEncoder] = []

    fitted: Tensor
    spent: float
    """Share of the time budget used so far; 0 without a budget (see `StopAfter`)."""
    trained_for: tuple[str, int | None] | None
    """The split and fold whose held-out rows training has not seen; None before training."""
    started_from: Mapping[str, Any] | None
    """The record of the encoder that training started from (see `starting`); None for a new one."""

    @property
    def data(self) -> ZooDataModule:
        """The data module of the trainer."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ZooDataModule):
            raise ValueError(f"EmbeddingModule trains on a ZooDataModule, but the trainer got {type(data).__name__}.")
        return data

    def setup(self, stage: str) -> None:
        """Request the data that the objective needs; refuse rows and options that would fail later."""
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
        """Read the split of the training, and what is recorded of it, from a checkpoint."""
        self.trained_for = recorded_split(checkpoint["weightspace"])
        self.started_from = checkpoint["weightspace"].get("started_from")
        self.encoder.provenance = provenance_of(described(self.objective, self.started_from), checkpoint)
        if self._trainer is not None and not self.trainer.predicting:
            self.data.refuse_other_than(self.trained_for)

    def on_fit_start(self) -> None:
        """Fit input and target scales on the training rows, unless a checkpoint contains them."""
        # What is recorded of an earlier training is no longer all there is to say.
        self.encoder.provenance = None
        self.trained_for = recorded_split(self.data.division.record)
        if self.fitted:
            return
        if self.started_from is None:
            self.encoder.fit_standardisation(stack.to(self.device) for stack in self.data.training_stacks())
        self.objective.fit_scales(self.data.training())
        self.fitted.fill_(True)

    def on_train_start(self) -> None:
        """Refuse a loader whose sampler Lightning has replaced by a distributed one."""
        sampler = getattr(self.trainer.train_dataloader, "sampler", None)
        if not isinstance(sampler, EpochSampler):
            raise ValueError(
                "The training batches were sharded twice; make the Trainer with `use_distributed_sampler=False`."
            )
        self._reader = [CapturedEncoder(self.encoder)]

    def on_train_end(self) -> None:
        """Release the memory of captured passes."""
        self._reader = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed torch for the step: dropout of a resumed run is then the same bit for bit."""
        torch.manual_seed(derive_key(self.seed, "step", self.global_step, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one training batch."""
        self._stacks = batch.stacks
        self._reader[0].begin_step()
        return self._run(batch, "train", self._reader[0])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Validation loss and metrics of one batch, logged when the epoch ends."""
        self._run(batch, "val", self.encoder)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Test loss and metrics of one batch, logged when the epoch ends."""
        self._run(batch, "test", self.encoder)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Row numbers (models,) and embeddings (models, embedding_dim)."""
        with room_for(batch.stacks):
            return {"rows": batch.rows, "embedding": self.encoder(batch.stacks)}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward pass; an out-of-memory error names the models."""
        with room_for(self._stacks):
            super().backward(loss, *args, **kwargs)

    def _run(self, batch: Batch, stage: str, encoder: Encoder) -> Tensor:
        with room_for(batch.stacks):
            loss: Tensor
            loss, metrics = self.objective(encoder, batch)
        for name, (value, count) in {"loss": (loss, len(batch)), **metrics}.items():
            total, seen = self._sums.get(f"{stage}/{name}", (torch.zeros((), device=loss.device), 0))
            self._sums[f"{stage}/{name}"] = (total + value.detach() * count, seen + count)
        return loss

    def _log_epoch(self, stage: str) -> None:
        """Log the epoch's means: once, because logging every batch takes as long as a small encoder."""
        for name in [name for name in self._sums if name.startswith(f"{stage}/")]:
            total, count = self._sums.pop(name)
            is_loss, is_parallel = name == f"{stage}/loss", self.trainer.world_size > 1
            self.log(name, total / count, batch_size=count, prog_bar=is_loss, sync_dist=is_parallel)

    def on_validation_epoch_end(self) -> None:
        """Log the validation loss and metrics."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log the test loss and metrics."""
        self._log_epoch("test")

    def configure_optimizers(self) -> Any:
        """AdamW, with no weight decay on biases, norms and embeddings' one-dimensional parameters."""
        matrices = [p for p in self.parameters() if p.requires_grad and p.dim() > 1]
        vectors = [p for p in self.parameters() if p.requires_grad and p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        # An encoder has a hundred small tensors, which `foreach` moves together; fused, mixed precision could not clip.
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.learning_rate, foreach=True)

        def share(step: int) -> float:
            # A callback may have changed `learning_rate` since the optimizer was made.
            initial: float = optimizer.param_groups[0]["initial_lr"]
            return self._factor(step) * self.learning_rate / initial

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _factor(self, step: int) -> float:
        """Learning rate over its peak, by the share of steps or of the time budget, whichever is larger."""
        total = self.trainer.estimated_stepping_batches
        done = max(step / total if math.isfinite(total) and total > 0 else 0.0, self.spent)
        return share_of_peak(done, self.warmup, self.schedule)

    def on_train_epoch_end(self) -> None:
        """Log the training loss and metrics; raise Diverged before the epoch is saved as a checkpoint."""
        self._log_epoch("train")
        self._refuse_diverged()

    def _refuse_diverged(self) -> None:
        callback = self.trainer.checkpoint_callback
        refuse_diverged(
            self.state_dict(),
            self.trainer.callback_metrics,
            epoch=self.trainer.current_epoch,
            last_good=getattr(callback, "last_model_path", ""),
            learning_rate=self.learning_rate,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record of encoder, objective, zoo and split; raise Diverged if a number is not finite."""
        self._refuse_diverged()
        checkpoint["weightspace"] = {
            "encoder": type(self.encoder).__name__,
            **described(self.objective, self.started_from),
            "zoo": self.data.zoo.fingerprint,
            "models": self.data.division.models,
            **self.data.division.record,
        }


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
    """Train and return the path of the best checkpoint in the folder `run`; `resume` starts from its last one."""
    run = Path(run)
    checkpoints = BestAndLast(dirpath=run / "checkpoints", **CHECKPOINTS)
    extra: list[Callback] = [StopAfter(cpu_minutes)] if cpu_minutes else []
    extra += [TrainingBar()] if progress else []
    last = run / "checkpoints" / "last.ckpt"
    with quiet():
        trainer = pl.Trainer(
            **{**TRAINER, "max_epochs": max_epochs},
            logger=run_logger(run),
            callbacks=[checkpoints, *extra, *callbacks],
            enable_progress_bar=progress,
            enable_model_summary=False,
            default_root_dir=run,
        )
        with interruptible(trainer):
            resumed = last if resume and last.exists() else None
            trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    return Path(checkpoints.best_model_path or checkpoints.last_model_path)
