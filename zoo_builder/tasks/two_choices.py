"""A decision between two streams of evidence, as an environment with the interface of neurogym."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Discrete(NamedTuple):
    """Actions 0 to n - 1."""

    n: int


class TwoChoices:
    """Which of two inputs is larger on average? A template for an environment of one's own.

    A trial has the periods fixation, stimulus (`shortest` to `longest` steps, drawn) and decision. Inputs are a line
    that is 1 until the decision, and two streams: 0.5 more or less by `strength` / 2, with uniform noise, in [0, 1].
    The right action is 0 before the decision, then 1 or 2 for the larger stream.
    """

    action_space = Discrete(3)

    def __init__(self, strength: float = 0.2, shortest: int = 3, longest: int = 6, decision: int = 2) -> None:
        self.strength, self.shortest, self.longest, self.decision = strength, shortest, longest, decision
        self.start_ind: dict[str, int] = {}
        self.end_ind: dict[str, int] = {}
        self.seed(0)

    def seed(self, seed: int | None = None) -> None:
        """Begin a new series of trials."""
        self.rng = np.random.default_rng(seed)

    def new_trial(self) -> dict[str, Any]:
        """Draw a trial: `ob` (time, input), `gt` (time,), and the first step of each period and the one after it."""
        larger, steps = int(self.rng.integers(2)), int(self.rng.integers(self.shortest, self.longest + 1))
        self.start_ind = {"fixation": 0, "stimulus": 1, "decision": 1 + steps}
        self.end_ind = {"fixation": 1, "stimulus": 1 + steps, "decision": 1 + steps + self.decision}
        self.ob = np.zeros((self.end_ind["decision"], 3))
        self.ob[: 1 + steps, 0] = 1
        means = 0.5 + self.strength / 2 * np.array([1 - 2 * larger, 2 * larger - 1])
        spread = (1 - self.strength) / 2
        self.ob[1 : 1 + steps, 1:] = means + spread * self.rng.uniform(-1, 1, size=(steps, 2))
        self.gt = np.zeros(len(self.ob), dtype=np.int64)
        self.gt[1 + steps :] = 1 + larger
        return {"larger": larger}
