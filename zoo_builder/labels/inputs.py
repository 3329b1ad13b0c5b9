"""Inputs of driven models: sequences of their own task, the same at every snapshot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Streams
from weightspace.rollout.noise import draw_noise
from zoo_builder.members import Members
from zoo_builder.tasks import Batch, Split, Task

TRAJECTORIES = 32
"""Number of trajectories of each model; their starts are spread evenly over a sequence."""
SEQUENCES: dict[Split, int] = {"test": 256, "train": 256}
"""Sequences of each split on which a task is scored."""
SEQUENCES_TOGETHER = 256
"""Sequences that are rolled at once."""
KEPT = 2**23
"""Most numbers of inputs that are kept for the next snapshot; larger inputs are drawn again, the same ones."""


NoisyBatch = tuple[Batch, dict[str, Tensor]]
"""Sequences of a task, and the noise of their steps (models, time, batch, axis)."""


def _pieces(num_steps: int, length: int) -> int:
    """Sequences of a length that a trajectory of `num_steps` runs through, which may begin inside its first one."""
    return -(-num_steps // length) + 1


class Inputs:
    """Inputs of a stack of models, drawn when first asked for from the streams "labels/..." of each model."""

    def __init__(
        self,
        family: Family,
        task: Task | None,
        members: Members,
        device: torch.device,
        num_steps: int,
    ) -> None:
        self.family, self.task, self.members = family, task, members
        self.device, self.num_steps = device, num_steps
        self._kept: dict[Split, list[NoisyBatch]] = {}

    def streams(self, purpose: str, snapshots: int = 1) -> Streams:
        """Fresh streams of the models for one use, the same for each of several snapshots, one after another."""
        return Streams(self.members.seed, list(self.members.ids) * snapshots, f"labels/{purpose}", self.device)

    def batches(self, split: Split) -> Iterator[NoisyBatch]:
        """Batches of sequences of the task, each with the noise of its steps."""
        if split in self._kept:
            yield from self._kept[split]
            return
        drawn: list[NoisyBatch] = []
        for batch, noise in self._drawn(split):
            size = batch.x.numel() + batch.target.numel() + sum(value.numel() for value in noise.values())
            if size * (SEQUENCES[split] // SEQUENCES_TOGETHER) <= KEPT:
                drawn.append((batch, noise))
            yield batch, noise
        if drawn:
            self._kept[split] = drawn

    def _drawn(self, split: Split) -> Iterator[NoisyBatch]:
        assert self.task is not None
        streams = self.streams(f"answers/{split}")
        for _ in range(SEQUENCES[split] // SEQUENCES_TOGETHER):
            batch = self.task.sample(self.members.values, streams, SEQUENCES_TOGETHER, split)
            yield batch, draw_noise(self.family.spec, streams, *batch.x.shape[1:3])

    @cached_property
    def drive(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs (models, time, trajectory, input), starts (models, trajectory, start) and noise of all steps."""
        streams, num_steps = self.streams("driven"), self.num_steps
        recorded = self.members.recorded
        if self.task is not None:
            batch = self.task.sample(
                self.members.values, streams, _pieces(num_steps, self.task.num_steps) * TRAJECTORIES, "test"
            )
            x, start = self._one_after_another(batch.x), batch.start[:, :TRAJECTORIES]
        else:
            if recorded is None:
                x = streams.normal(num_steps, TRAJECTORIES, self.family.input_size)
            else:
                count = _pieces(num_steps, recorded.shape[2]) * TRAJECTORIES
                chosen = torch.arange(count, device=self.device) % recorded.shape[1]
                x = self._one_after_another(recorded.to(self.device)[:, chosen].transpose(1, 2))
            start = x.new_zeros(len(self.members.ids), TRAJECTORIES, 0)
        return x, start, draw_noise(self.family.spec, streams, num_steps, TRAJECTORIES)

    def _one_after_another(self, x: Tensor) -> Tensor:
        """Inputs (models, time, trajectory, input) of all steps from sequences (models, time, sequence, input)."""
        length, num_sequences = x.shape[1:3]
        number = torch.arange(TRAJECTORIES, device=self.device)
        # Trajectory l begins at the share l / TRAJECTORIES of its first sequence and goes on with its second one.
        moment = number * length // TRAJECTORIES + torch.arange(self.num_steps, device=self.device)[:, None]
        index = moment % length * num_sequences + moment // length * TRAJECTORIES + number
        chosen: Tensor = x.flatten(1, 2).index_select(1, index.flatten()).unflatten(1, (self.num_steps, TRAJECTORIES))
        return chosen

    @cached_property
    def directions(self) -> Tensor:
        """One random direction (models, trajectory, state) of length 1 each, float64: a corner of a cube."""
        size = self.family.spec.state_size
        words = self.streams("tangent").bits(TRAJECTORIES, -(-size // 32))
        signs = words[..., None] >> torch.arange(32, device=self.device) & 1
        return (2.0 * signs.flatten(2)[..., :size].double() - 1) / math.sqrt(size)
