"""The job that a builder gives its workers: one plan, and what to do for each of its shards."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Labelling:
    """Labels to measure of a finished zoo, and the key of the tables in staging."""

    names: tuple[str, ...]
    key: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Shards of the zoo in folder `out` to make or, with a `labelling`, to label; the same for every worker.

    Each worker makes the plan again from the recipe, which is shorter than the plan.
    """

    recipe: Mapping[str, Any]
    """The recipe that `read_recipe` returned."""
    out: str
    """Absolute path, the same on all machines."""
    device: str
    method: str
    allow_import: tuple[str, ...]
    """Packages of the user's own that may be imported."""
    identity: Mapping[str, Any] | None = None
    """Identity of the build (`build_identity`), on which the bytes depend; None where tables are only labelled."""
    plan_digest: str | None = None
    """Digest of the identity, written into each shard."""
    labelling: Labelling | None = None

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job that `to_json` wrote."""
        fields = json.loads(text)
        labelling = fields.pop("labelling")
        if labelling is not None:
            labelling = Labelling(tuple(labelling["names"]), labelling["key"])
        return cls(**{**fields, "allow_import": tuple(fields["allow_import"]), "labelling": labelling})
