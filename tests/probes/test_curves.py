"""Curves read from logs of trainings."""

import pytest

from probes.curves import LOSS, read_curves

HEAD = "cpu_minutes,epoch,step,train/loss,val/loss,val/r2_within_cell.a,val/r2_within_cell.b\n"
WHO = ("E", 1, "O", "in_distribution")


def test_validations_are_read_with_their_updates_and_times(tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text(HEAD + "0.5,0,9,,2.0,0.1,0.3\n,0,9,1.0,,,\n0.9,1,19,,1.0,0.2,0.6\n1.5,2,29,,nan,0.2,0.2\n")
    loss, mean = read_curves(log, *WHO)
    assert (loss.metric, loss.name, loss.seed, loss.objective, loss.part) == (LOSS, *WHO)
    assert (loss.updates, loss.cpu_minutes, loss.values) == ([10, 20], [0.5, 0.9], [2.0, 1.0])
    assert mean.values == pytest.approx([0.2, 0.4, 0.2])
    assert mean.updates == [10, 20, 30]


def test_a_log_without_times_has_curves_by_updates_alone(tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text("epoch,step,val/loss\n0,4,2.0\n1,9,1.0\n")
    (curve,) = read_curves(log, *WHO)
    assert curve.cpu_minutes is None
    assert curve.updates == [5, 10]


def test_there_is_no_curve_without_a_log_or_a_validation(tmp_path):
    assert read_curves(tmp_path / "absent.csv", *WHO) == []
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,4,2.0\n")
    assert read_curves(tmp_path / "metrics.csv", *WHO) == []
