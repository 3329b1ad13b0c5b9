"""Training of a stack of models by gradients: updates, learning rates, exams and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.spec import Params, WeightSpec
from zoo_builder.learning.exams import Examination
from zoo_builder.learning.updates import Rate, Updates


@dataclass(kw_only=True)
class Training:
    """State of the training of a stack; models that learn no more are left unchanged."""

    spec: WeightSpec
    updates: Updates
    rate: Rate
    examination: Examination | None
    masks: Callable[[Params, int], Params]
    """New masks from all params (models, ...) after so many updates."""
    mask_updates: Sequence[int]
    """Numbers of updates after which masks change."""
    made: int = 0
    """Number of updates made."""
    _anyone_learns: bool = True

    def begin(self) -> None:
        """Set the masks that hold from the start."""
        self._change_masks()

    def go_on(self, stop: int) -> None:
        """Make updates up to number `stop`, the next exam or the next change of masks, then hold or make that."""
        if self.examination is not None:
            stop = min(stop, self.examination.next_after(self.made))
        stop = min([stop, *(update for update in self.mask_updates if update > self.made)])
        self._anyone_learns = self._anyone_learns and bool(self.updates.optimiser.state.learning.any())
        if not self._anyone_learns:
            self.made = stop
            return
        self.made += self.updates.make(self.made, stop, self.rate)
        self._change_masks()
        self._examine()

    def snapshot(self) -> Params:
        """Copy of all tensors on the CPU; exams record their latest results with it."""
        if self.examination is not None:
            self.examination.note()
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.updates.params.items()}

    def records(self) -> dict[str, Tensor]:
        """Records of the snapshots, (models, snapshots), float64."""
        return self.examination.records() if self.examination is not None else {}

    def _examine(self) -> None:
        """Hold the exam that is due now, if there is one."""
        if self.examination is not None and self.examination.due(self.made):
            optimiser = self.updates.optimiser
            optimiser.stop(self.examination.hold(self.made, self.updates.params, optimiser.state.learning))
            self._anyone_learns = bool(optimiser.state.learning.any())

    def _change_masks(self) -> None:
        """Change the masks of the models that still learn, if that is due now."""
        if self.made not in self.mask_updates:
            return
        fixed, learning = self.updates.fixed, self.updates.optimiser.state.learning
        changed = {}
        for name, mask in self.masks(self.updates.params, self.made).items():
            if name not in fixed or self.spec.tensors[name].role != "mask" or mask.shape != fixed[name].shape:
                masks = {key: tuple(fixed[key].shape) for key in fixed if self.spec.tensors[key].role == "mask"}
                raise ValueError(
                    f"A learner changes '{name}' of shape {tuple(mask.shape)} between updates, but the family has the "
                    f"masks {masks}; only these can change."
                )
            # A model that stopped or diverged keeps what it had.
            still = learning.reshape(-1, *[1] * (mask.dim() - 1))
            changed[name] = torch.where(still, mask.to(fixed[name]), fixed[name])
        self.updates.fixed = fixed | changed
