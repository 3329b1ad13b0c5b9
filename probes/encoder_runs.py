"""Encoders trained, frozen and measured one at a time; a finished run is read back from its folder."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import safetensors.numpy
import torch
from lightning.pytorch.callbacks import Callback

from probes.curves import CPU_MINUTES
from probes.targets import Target
from weightspace import encoders as encoder_files
from weightspace import objectives as objective_files
from weightspace.data.datamodule import ZooDataModule
from weightspace.data.targets import Target as Learned
from weightspace.store import write_durably
from weightspace.store.splits import SplitName
from weightspace.training.embed import embed_rows, embed_stacks, opened
from weightspace.training.module import EmbeddingModule, fit
from weightspace.training.restoring import load

resource: Any = None
with contextlib.suppress(ImportError):
    # There is no such module but on POSIX.
    import resource

logger = logging.getLogger(__name__)

MAX_EPOCHS = 40
MAX_EPOCHS_IN_BUDGET = 10_000
"""With a budget of CPU minutes or updates the budget ends training, not the number of epochs."""
RECORD, EMBEDDINGS = "finished.json", "embeddings.safetensors"
BEST = Path("checkpoints", "best.ckpt")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """End of one training: after CPU minutes or updates if set, else after epochs."""

    cpu_minutes: float | None = None
    updates: int | None = None
    max_epochs: int = MAX_EPOCHS


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of an encoder: its size, its speed when embedding, and what training took."""

    parameters: int
    models_per_cpu_second: float
    peak_memory_mb: float
    training_cpu_seconds: float


COSTS = ("parameters", "models_per_cpu_second", "peak_memory_mb")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One encoder to be trained with one objective and seed for one split or fold, and what came of it.

    embeddings (rows, embedding_dim) and costs are None where training failed, for the reason in `error`.
    """

    encoder: str
    objective: str | None
    seed: int
    split: SplitName
    fold: int | None
    learned_with: str | None = None
    label_adjacent: tuple[str, ...] = ()
    queries: bool = False
    costs: Costs | None = None
    error: str | None = None
    embeddings: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def folder(self) -> str:
        """Name of the run's folder, with the split and fold where it is not of `in_distribution`."""
        of_part = "" if self.split == "in_distribution" else f"-{self.split}"
        of_part += "" if self.fold is None else f"-{self.fold}"
        return f"{self.encoder}-{self.objective or 'untrained'}-{self.seed}{of_part}"

    @property
    def record(self) -> dict[str, Any]:
        """All but the embeddings, as JSON; costs stand beside the rest, null where there are none."""
        fields = asdict(replace(self, embeddings=None, costs=None))
        fields = {name: value for name, value in fields.items() if name not in ("embeddings", "costs")}
        costs = asdict(self.costs) if self.costs else dict.fromkeys((*COSTS, "training_cpu_seconds"))
        return {**fields, "label_adjacent": list(self.label_adjacent), **costs}


class StopAfterUpdates(Callback):
    """Stops training, with a last validation, after a number of updates; the learning rate ends with them."""

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and end training after the last update."""
        assert isinstance(pl_module, EmbeddingModule)
        pl_module.spent = trainer.global_step / self.updates
        if trainer.global_step >= self.updates:
            trainer.should_stop = True


class LogsTime(Callback):
    """Logs the CPU minutes of a training beside each validation, for its learning curve."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = time.process_time()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the time since the start."""
        pl_module.log(CPU_MINUTES, (time.process_time() - self._start) / 60)


def frozen(checkpoint: Path | str) -> encoder_files.Encoder:
    """The encoder of a checkpoint, or of a name that `Encoder.from_pretrained` reads, ready to embed."""
    return opened(checkpoint).eval()


def finished(
    run: Run, zoo: Path | str, out: Path, targets: Sequence[Target], budget: Budget, progress: bool = False
) -> Run:
    """The run with its embeddings and costs: read back where it is there, else trained; or with its error."""
    data = ZooDataModule(zoo, seed=run.seed, split=run.split, fold=run.fold)
    settings = {"zoo": data.zoo.fingerprint, "targets": [repr(target) for target in targets], "budget": asdict(budget)}
    earlier = _read(out / run.folder, settings)
    if earlier is not None:
        logger.info("Reading back %s.", run.folder)
        return earlier
    logger.info("Training %s.", run.folder)
    try:
        done = train(run, data, out / run.folder, targets, budget, progress)
    except Exception as error:
        # Encoders and objectives may be of users and fail in any way; the others are compared all the same.
        logger.warning("%s failed: %s", run.folder, error)
        return replace(run, error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    _write(out / run.folder, done, settings)
    return done


def _read(folder: Path, settings: Mapping[str, Any]) -> Run | None:
    """The run of a folder if it is finished and was made with these settings."""
    if not (folder / RECORD).is_file() or not (folder / EMBEDDINGS).is_file():
        return None
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if record.pop("settings") != settings:
        return None
    costs = Costs(**{name: record.pop(name) for name in (*COSTS, "training_cpu_seconds")})
    embeddings = safetensors.numpy.load_file(folder / EMBEDDINGS)["embedding"]
    adjacent = tuple(record.pop("label_adjacent"))
    return Run(**record, costs=costs, label_adjacent=adjacent, embeddings=embeddings)


def _write(folder: Path, run: Run, settings: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    assert run.embeddings is not None
    # A record of other settings would pass for that of the new embeddings if the process were killed in between.
    (folder / RECORD).unlink(missing_ok=True)
    write_durably(folder / EMBEDDINGS, safetensors.numpy.save({"embedding": run.embeddings}))
    text = json.dumps({**run.record, "settings": settings}, sort_keys=True, allow_nan=False, indent=1)
    write_durably(folder / RECORD, text.encode())


def make(encoder: str, objective: str, targets: Sequence[Target], seed: int) -> EmbeddingModule:
    """An encoder of its default size with an objective, initialised by the seed.

    `Supervised`, or another objective that takes `targets`, learns the very targets that are probed, with their bounds.
    """
    torch.manual_seed(seed)
    encoder_class: Any = encoder_files.available()[encoder]
    objective_class: Any = objective_files.available()[objective]
    takes_targets = "targets" in inspect.signature(objective_class.__init__).parameters
    options = {"targets": _learned(targets)} if takes_targets else {}
    return EmbeddingModule(encoder_class(), objective_class(**options), seed=seed)


def _learned(targets: Sequence[Target]) -> list[Learned]:
    return [
        Learned(name=target.name, low=target.low, high=target.high, trained_only=target.trained_only)
        for target in targets
        if target.kind == "regression"
    ]


def train(
    run: Run, data: ZooDataModule, folder: Path, targets: Sequence[Target], budget: Budget, progress: bool
) -> Run:
    """Train an encoder in a folder and embed every row of the zoo with its best checkpoint; or embed it untrained."""
    _forget_peak_memory()
    start = time.process_time()
    if run.objective is None:
        torch.manual_seed(run.seed)
        untrained_class: Any = encoder_files.available()[run.encoder]
        encoder = untrained_class().eval()
        data.serve()
        with torch.no_grad():
            encoder.fit_standardisation(data.training_stacks())
    else:
        module = make(run.encoder, run.objective, targets, run.seed)
        bounded = bool(budget.cpu_minutes or budget.updates)
        best = fit(
            module,
            data,
            folder,
            max_epochs=MAX_EPOCHS_IN_BUDGET if bounded else budget.max_epochs,
            cpu_minutes=budget.cpu_minutes,
            progress=progress,
            callbacks=[LogsTime(), *([StopAfterUpdates(budget.updates)] if budget.updates else [])],
        )
        objective = module.objective
        adjacent = tuple(getattr(objective, "label_adjacent", ()))
        run = replace(run, learned_with=objective.learned_with, label_adjacent=adjacent)
        encoder = load(best).encoder.eval()
    cpu_seconds = time.process_time() - start
    embeddings = embed_rows(encoder, data).double().numpy()
    costs = Costs(
        parameters=sum(p.numel() for p in encoder.parameters()),
        models_per_cpu_second=_throughput(encoder, data),
        peak_memory_mb=_peak_memory_mb(),
        training_cpu_seconds=cpu_seconds,
    )
    return replace(run, embeddings=embeddings, costs=costs, queries=encoder.queries)


def _throughput(encoder: encoder_files.Encoder, data: ZooDataModule, seconds: float = 1.0) -> float:
    """Models embedded per second of CPU time, loading left out, over about a second of batches."""
    batches = [batch.stacks for _, batch in zip(range(8), data.predict_dataloader(), strict=False)]
    embed_stacks(encoder, batches[0])
    models, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        for stacks in batches:
            embed_stacks(encoder, stacks)
            models += sum(len(stack) for stack in stacks)
    return models / (time.process_time() - start)


def _forget_peak_memory() -> None:
    """Make the peak start from now, where Linux lets us; elsewhere it is that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logger.debug("The peak of memory cannot be reset here.")


def _peak_memory_mb() -> float:
    """Peak resident memory of this process, in MiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if resource else 0.0
