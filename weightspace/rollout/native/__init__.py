"""Native rollouts: a family's step, traced once, runs in C with the whole time loop of a model in cache."""

from weightspace.rollout.native.availability import (
    compiler_version,
    measures_here,
    usable,
    why_not,
    why_not_here,
)
from weightspace.rollout.native.descent import can_descend_on, descend, descend_on
from weightspace.rollout.native.function import run_native

__all__ = [
    "can_descend_on",
    "compiler_version",
    "descend",
    "descend_on",
    "measures_here",
    "run_native",
    "usable",
    "why_not",
    "why_not_here",
]
