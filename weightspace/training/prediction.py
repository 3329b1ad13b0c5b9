"""Embeddings from any number of devices and machines, gathered by row into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from weightspace.data.batch import Batch
from weightspace.training.embed import record, write_embeddings
from weightspace.training.module import EmbeddingModule


class EmbeddingWriter(Callback):
    """Writes the embeddings of `predict` as `weightspace embed` does: every row once, in the order of models.parquet.

    Each process embeds different batches; at the end all rows are gathered, and the first process writes them.
    """

    def __init__(self, out: Path | str) -> None:
        self.out = Path(out)
        self._parts: list[tuple[Tensor, Tensor]] = []

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Discard batches of an earlier prediction."""
        self._parts = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows and embeddings of a batch."""
        self._parts.append((outputs["rows"].cpu(), outputs["embedding"].float().cpu()))

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather all rows, check that each was embedded exactly once, and write."""
        assert isinstance(pl_module, EmbeddingModule)
        zoo = pl_module.data.zoo
        rows, embeddings = _gathered(pl_module, *(torch.cat(part) for part in zip(*self._parts, strict=True)))
        missing = int((torch.bincount(rows, minlength=zoo.num_rows) != 1).sum())
        if missing:
            raise ValueError(
                f"{missing} of {zoo.num_rows} rows were not embedded exactly once, so nothing was written; leave out "
                "trainer options that limit or repeat batches."
            )
        if trainer.is_global_zero:
            ordered = torch.empty_like(embeddings)
            ordered[rows] = embeddings
            write_embeddings(self.out, ordered, record(pl_module.encoder, zoo))
        trainer.strategy.barrier()


def _gathered(module: EmbeddingModule, rows: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (models,) and embeddings (models, embedding_dim) of all processes, whose numbers may differ."""
    if module.trainer.world_size == 1:
        return rows, embeddings
    count = torch.tensor([len(rows)], device=module.device)
    longest = int(torch.as_tensor(module.all_gather(count)).max())
    padding = longest - len(rows)
    # all_gather needs equal sizes: row number -1 marks padding.
    padded = torch.nn.functional.pad(rows, (0, padding), value=-1).to(module.device)
    values = torch.nn.functional.pad(embeddings, (0, 0, 0, padding)).to(module.device)
    rows = torch.as_tensor(module.all_gather(padded)).flatten().cpu()
    embeddings = torch.as_tensor(module.all_gather(values)).flatten(0, 1).cpu()
    return rows[rows >= 0], embeddings[rows >= 0]
