"""What driven models are given: sequences of their own task, the same at every snapshot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Streams
from weightspace.rollout.noise import draw_noise
from zoo_builder.tasks import Batch, Split, Task

LANES = 32
"""Number of trajectories of each model; they start at evenly spread places of a sequence."""
SEQUENCES: dict[Split, int] = {"test": 256, "train": 256}
"""Sequences of each split on which a task is scored."""
SEQUENCES_TOGETHER = 256
"""How many of them are rolled at once."""
KEPT = 2**23
"""Numbers of inputs that are kept for the next snapshot; larger ones are drawn again, and come out the same."""


Given = tuple[Batch, dict[str, Tensor]]


class Inputs:
    """Inputs of a stack of models, drawn when first asked for from the streams "labels/..." of each model."""

    def __init__(
        self,
        family: Family,
        task: Task | None,
        values: Mapping[str, Tensor],
        seed: int,
        model_ids: Sequence[str],
        device: torch.device,
        num_steps: int,
    ) -> None:
        self.family, self.task, self.values = family, task, values
        self.seed, self.model_ids, self.device, self.num_steps = seed, model_ids, device, num_steps
        self._kept: dict[Split, list[Given]] = {}

    def streams(self, purpose: str, snapshots: int = 1) -> Streams:
        """Fresh streams of the models for one use, the same for each of several snapshots, one after another."""
        return Streams(self.seed, list(self.model_ids) * snapshots, f"labels/{purpose}", self.device)

    def batches(self, split: Split) -> Iterator[Given]:
        """Batches of sequences of the task, and the noise that models are given with each."""
        if split in self._kept:
            yield from self._kept[split]
            return
        drawn: list[Given] = []
        for batch, noise in self._drawn(split):
            size = batch.x.numel() + batch.target.numel() + sum(value.numel() for value in noise.values())
            if size * (SEQUENCES[split] // SEQUENCES_TOGETHER) <= KEPT:
                drawn.append((batch, noise))
            yield batch, noise
        if drawn:
            self._kept[split] = drawn

    def _drawn(self, split: Split) -> Iterator[Given]:
        assert self.task is not None
        streams = self.streams(f"answers/{split}")
        for _ in range(SEQUENCES[split] // SEQUENCES_TOGETHER):
            batch = self.task.sample(self.values, streams, SEQUENCES_TOGETHER, split)
            yield batch, draw_noise(self.family.spec, streams, *batch.x.shape[1:3])

    @cached_property
    def drive(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs (models, time, lane, input), starts (models, lane, start) and noise of all steps."""
        streams, num_steps = self.streams("driven"), self.num_steps
        if self.task is None:
            x = streams.normal(num_steps, LANES, self.family.input_size)
            start = x.new_zeros(len(self.model_ids), LANES, 0)
        else:
            length = self.task.num_steps
            pieces = -(-num_steps // length) + 1
            batch = self.task.sample(self.values, streams, pieces * LANES, "test")
            lanes = torch.arange(LANES, device=self.device)
            # Lane l reads its first sequence from step l / LANES of its length on, then its second one, and so on.
            moment = lanes * length // LANES + torch.arange(num_steps, device=self.device)[:, None]
            sequence = moment // length * LANES + lanes
            place = moment % length * (pieces * LANES) + sequence
            x = batch.x.flatten(1, 2).index_select(1, place.flatten()).unflatten(1, (num_steps, LANES))
            start = batch.start[:, :LANES]
        return x, start, draw_noise(self.family.spec, streams, num_steps, LANES)

    @cached_property
    def directions(self) -> Tensor:
        """One random direction (models, lane, state) of length 1 per trajectory, float64: a corner of a cube."""
        size = self.family.spec.state_size
        words = self.streams("tangent").bits(LANES, -(-size // 32))
        signs = words[..., None] >> torch.arange(32, device=self.device) & 1
        return (2.0 * signs.flatten(2)[..., :size].double() - 1) / math.sqrt(size)
