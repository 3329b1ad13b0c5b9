"""The study of offline reactivation: its measures in closed form, and a small run."""

import json
import math

import pytest
import scipy.stats
import torch

from zoo_builder.studies.offline_reactivation import (
    BINS,
    OfflineReactivation,
    circular_variance,
    divergence,
    mean_step,
)
from zoo_builder.studies.run import run_study


def test_the_divergence_of_counted_bins_is_that_of_scipy():
    centres = -math.pi + (torch.arange(BINS) + 0.5) * 2 * math.pi / BINS
    asleep, awake = torch.arange(1, BINS + 1), torch.arange(BINS, 0, -1)
    directions = {
        "quiescent": centres.repeat_interleave(asleep)[None, :, None].double(),
        "awake": centres.repeat_interleave(awake)[None, :, None].double(),
    }
    expected = scipy.stats.entropy(asleep + 0.5, awake + 0.5)
    assert divergence(directions).item() == pytest.approx(expected)
    assert divergence({"quiescent": directions["awake"], "awake": directions["awake"]}).item() == 0


def test_steps_and_circular_variance_of_a_walk_round_the_circle():
    angles = (0.25 * math.pi * torch.arange(8, dtype=torch.float64)).expand(2, 3, -1).permute(0, 2, 1)
    walk = torch.atan2(angles.sin(), angles.cos())
    assert mean_step(walk).tolist() == pytest.approx([math.pi / 4] * 2)
    assert circular_variance(walk).tolist() == pytest.approx([1, 1])
    assert circular_variance(torch.full((1, 9, 2), 3.1, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_a_small_run_leaves_a_result_and_fails_where_nothing_was_learned(tmp_path):
    result = run_study(OfflineReactivation(hidden_size=6, cells=6, num_updates=2, models=2), tmp_path)
    assert not result["passed"]
    assert json.loads((tmp_path / "OfflineReactivation/result.json").read_text()) == result
    assert (tmp_path / "OfflineReactivation/figure.png").read_bytes().startswith(b"\x89PNG")
