"""Sizes of stacks: models computed together, by the device and the plan alone, whatever else is to be made."""

from __future__ import annotations

from zoo_builder.members import MULTIPLE
from zoo_builder.planning.plan import Cohort

STACK = 64
"""Number of models that are computed together on the CPU: these fit its cache."""
CUDA_STACK = 1024
"""Number of models that learn together on CUDA, where a stack takes hardly longer than a model."""
CUDA_CHUNK = 256
"""Number of models that are labelled and rolled out together on CUDA, all snapshots of each at once."""
CUDA_MEMORY = 8 * 2**30
"""Bytes that a stack may take on CUDA while it learns, so that it fits a small GPU, too."""


def models_together(cohort: Cohort, device: str) -> int:
    """Number of models of a cohort that learn as one stack, a multiple of MULTIPLE.

    It is the same for every GPU: on CUDA the last bits may depend on the size of a stack.
    """
    if device == "cpu":
        return STACK
    fitting = CUDA_MEMORY // max(cohort.learner.bytes_per_model(cohort.family, cohort.task), 1)
    return max(min(fitting, CUDA_STACK) // MULTIPLE, 1) * MULTIPLE


def chunk_size(device: str) -> int:
    """Number of models of a shard that are labelled and rolled out together."""
    return STACK if device == "cpu" else CUDA_CHUNK
