"""Trainings whose numbers are no longer finite, refused before they are saved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Diverged(ValueError):
    """A loss or a parameter became infinite or NaN in training."""


def refuse_diverged(
    state: Mapping[str, Tensor], metrics: Mapping[str, Tensor], *, epoch: int, last_good: str, learning_rate: float
) -> None:
    """Raise Diverged where a mean loss of the epoch or a tensor of the module is not finite.

    `last_good` is the path of the checkpoint of the epoch before, empty without one.
    """
    losses = {name: metrics[name] for name in ("train/loss", "val/loss") if name in metrics}
    problems = [f"{name} is {value:.3g}" for name, value in losses.items() if not torch.isfinite(value)]
    problems += [f"'{name}' is not finite" for name, value in state.items() if not value.isfinite().all()]
    if not problems:
        return
    kept = f"{last_good} is the last epoch before" if last_good else "no epoch before was kept as a checkpoint"
    raise Diverged(
        f"Training diverged in epoch {epoch}: {problems[0]}; {kept}. Train with a lower `learning_rate` "
        f"(={learning_rate:g}), or with `gradient_clip_val`."
    )
