"""The job between a builder and its workers."""

import pytest

from zoo_builder.workers.job import Job, Labelling

MAKING = Job(
    recipe={"seed": 3, "learning": [{"class": "BPTT"}, {"class": "BPTT", "clip": 0.5}]},
    out="/somewhere/with spaces",
    device="cpu",
    method="native",
    allow_import=("mine", "yours"),
    identity={"executor": {"device": "cpu"}},
    plan_digest="abc",
)
LABELLING = Job(
    recipe={},
    out="/zoo",
    device="cuda",
    method="stacked",
    allow_import=(),
    labelling=Labelling(("Rank", "Memory"), "key"),
)


@pytest.mark.parametrize("job", [MAKING, LABELLING], ids=["making", "labelling"])
def test_a_job_comes_back_from_one_line_of_json(job):
    text = job.to_json()
    assert "\n" not in text
    assert Job.from_json(text) == job
