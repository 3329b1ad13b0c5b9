"""Trials of any environment of neurogym."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from weightspace.rollout import Streams
from weightspace.store import InputKind
from zoo_builder.tasks.base import Batch, Split, Task
from zoo_builder.tasks.categorical import Categorical
from zoo_builder.tasks.kept import kept
from zoo_builder.tasks.trials import Drawing, Trials, from_tensors, to_tensors, trials_of

TEST_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class NeuroGym(Categorical):
    """Which action is right? Trials of an environment of neurogym, answered during their decision period.

    The environment draws `num_trials` trials once, from `seed`, and all models see trials of these: a fifth is for
    tests, the rest for training. Trials end with the decision, silence (0) is before those that are shorter than the
    longest, and the last steps are scored, as many as the shortest decision has. The zoo keeps them, so that it is read
    and labelled without the environment's package, or with another version of it, which may draw others. An environment
    without noise may show the same trial in training and in tests. NeuroGym (Molano-Mazon et al., NeuroGym: an open
    resource for developing and sharing neuroscience tasks, PsyArXiv 2022).
    """

    env: str
    """Name in neurogym, such as PerceptualDecisionMaking-v0; or MODULE:CLASS, an environment of a package of your own
    that `--allow_import` allows."""
    options: str = "{}"
    """Options of the environment as JSON, such as '{"dt": 20}'."""
    period: str = "decision"
    """Name of the period that is scored; empty for every step."""
    num_trials: int = field(default=1000, metadata={"least": 5})
    """Trials that are drawn."""
    seed: int = field(default=0, metadata={"least": 0})
    """Seed of the environment."""
    file: str | None = None
    """A safetensors file of the trials, which several zoos may share: it is written where it is missing, and read from
    then on."""
    sha256: str | None = None
    """Hash of that file, which is refused if it has another; None for any."""

    input_kind: ClassVar[InputKind] = "values"
    input_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            options = json.loads(self.options)
        except json.JSONDecodeError:
            options = None
        if not isinstance(options, dict):
            raise ValueError(f"`options` (={self.options!r}) must be a mapping in JSON, such as '{{\"dt\": 20}}'.")
        if self.sha256 is not None and self.file is None:
            raise ValueError("`sha256` is the hash of a `file`, which is not given.")
        object.__setattr__(self, "_trials", self._trials_of_zoo() or trials_of(self._drawing, self.file, self.sha256))
        low, high = self.trials.x.min().item(), self.trials.x.max().item()
        if not low < high:
            raise ValueError(f"All inputs of '{self.env}' are {low:g}, so that there is nothing to decide on.")
        # Of each environment its own.
        object.__setattr__(self, "input_range", (low, high))

    @property
    def trials(self) -> Trials:
        """All trials, those to test on last."""
        trials: Trials = self.__dict__["_trials"]
        return trials

    @property
    def kept(self) -> Mapping[str, Tensor]:
        return {f"{self._drawing.name}.{key}": tensor for key, tensor in to_tensors(self.trials).items()}

    @property
    def _drawing(self) -> Drawing:
        fields = ("env", "options", "period", "num_trials", "seed")
        return Drawing(**{name: getattr(self, name) for name in fields})

    def _trials_of_zoo(self) -> Trials | None:
        tensors = kept(self._drawing.name)
        return from_tensors(tensors, f"The zoo's trials of '{self.env}'") if tensors else None

    @property
    def input_size(self) -> int:
        return self.trials.x.shape[2]

    @property
    def output_size(self) -> int:
        return self.trials.num_actions

    @property
    def num_steps(self) -> int:
        return self.trials.x.shape[1]

    def sample(self, values: Mapping[str, Tensor], streams: Streams, batch_size: int, split: Split) -> Batch:
        x, target, _ = self.trials
        first = len(x) - round(TEST_SHARE * len(x))
        part = slice(first, None) if split == "test" else slice(None, first)
        x, target = x[part].to(streams.device), target[part].to(streams.device)
        chosen = streams.integers(len(x), batch_size)
        shown = x.index_select(0, chosen.flatten()).unflatten(0, chosen.shape).transpose(1, 2).contiguous()
        right = target[chosen].transpose(1, 2).contiguous()
        return Batch(x=shown, start=x.new_zeros(len(streams), batch_size, 0), target=right)

    @classmethod
    def examples(cls) -> Sequence[Task]:
        own = "zoo_builder.tasks.two_choices:TwoChoices"
        return [cls(env=own, num_trials=60), cls(env=own, options='{"strength": 0.6}', num_trials=60, seed=3)]
