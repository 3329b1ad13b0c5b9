"""What `weightspace check` sees: native rollouts that are wrong, and tensors that an encoder does not read."""

import copy
import dataclasses
import json
import logging

import pytest
import torch

from tests.members import EXAMPLES
from tests.weightspace.test_native import Sorting
from weightspace import checks, encoders, families
from weightspace.cli import main
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.cprnn import CPRNN
from weightspace.families.elman import Elman
from weightspace.families.mgu import MGU
from weightspace.rollout import agreement, generator, native, newton, rollout, tangents
from weightspace.rollout.methods import native as method

NATIVE = {"native equals sequential", "native gradient equals sequential", "native tangents equal forward mode"}
IN_PARALLEL = {f"{method}{of} equals sequential" for method in ("deer", "quasi_deer") for of in ("", " gradient")}
FAMILY = Elman(input_size=2, hidden_size=3, output_size=2)


def failed(rows):
    return {row["move"] for row in rows if not row["passed"]}


def test_native_rollouts_and_tangents_of_a_family_have_a_row_each():
    assert {row["move"] for row in checks.family_rows(FAMILY)} >= NATIVE


@pytest.mark.parametrize("factor", [1 + 1e-8, torch.nan])
def test_native_numbers_that_are_wrong_fail(factor, monkeypatch):
    def wrong(*arguments, own=method.run_native):
        run = own(*arguments)
        return dataclasses.replace(run, outputs=run.outputs * factor)

    def wrong_tangents(*arguments, own=tangents.native_tangents):
        states, moved = own(*arguments)
        return states, {name: tangent * factor for name, tangent in moved.items()}

    monkeypatch.setattr(method, "run_native", wrong)
    monkeypatch.setattr(tangents, "native_tangents", wrong_tangents)
    rows = checks.family_rows(FAMILY)
    assert failed(rows) == NATIVE
    json.dumps(rows, allow_nan=False)


def test_a_wrong_row_without_a_number_is_printed_and_ends_with_status_1(monkeypatch, capsys):
    row = checks._row("move", True, torch.float64, torch.nan, 1.0)
    monkeypatch.setattr(checks, "check_families", lambda name: [row | {"name": "name"}])
    for flags in ([], ["--json"]):
        with pytest.raises(SystemExit) as end:
            raise SystemExit(main(["check", "families", *flags]))
        assert end.value.code == 1
        assert ("null" if flags else "FAILED       nan") in capsys.readouterr().out


def test_a_family_that_is_refused_natively_says_why_and_passes():
    rows = checks.family_rows(Sorting(input_size=2, hidden_size=3, output_size=2))
    (row,) = (row for row in rows if "native" in row["move"])
    assert row["passed"]
    assert row["declared"]
    assert row["error"] == 0
    assert "aten.sort" in row["move"]


def test_rollouts_in_parallel_over_time_have_a_row_each_for_values_and_gradients():
    rows = checks.family_rows(FAMILY)
    assert {row["move"] for row in rows} >= IN_PARALLEL
    assert failed(rows) == set()


def test_wrong_states_and_wrong_jacobians_at_the_solution_fail(monkeypatch):
    def wrong_states(*arguments, own=newton.Newton._solved):
        states, report = own(*arguments)
        return states * (1 + 1e-7), report

    with monkeypatch.context() as patched:
        patched.setattr(newton.Newton, "_solved", wrong_states)
        assert failed(checks.family_rows(FAMILY)) == IN_PARALLEL

    def wrong_jacobians(*arguments, own=newton.jacobians_at):
        return own(*arguments) * (1 + 1e-6)

    monkeypatch.setattr(newton, "jacobians_at", wrong_jacobians)
    assert failed(checks.family_rows(FAMILY)) == {move for move in IN_PARALLEL if "gradient" in move}


class Backward(torch.autograd.Function):
    """A sine whose derivative is known backward alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.sin(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * torch.cos(x)


class OnlyBackward(Elman):
    def step(self, params, state, x, noise):
        return {name: Backward.apply(value) for name, value in super().step(params, state, x, noise).items()}


def test_a_family_without_jacobians_is_named_with_the_reason_and_left_to_torch():
    family = OnlyBackward(input_size=2, hidden_size=3, output_size=2)
    rows = {row["move"]: row["passed"] for row in checks.family_rows(family) if "deer" in row["move"]}
    assert list(rows.values()) == [True, True]
    for name, move in zip(("deer", "quasi_deer"), rows, strict=True):
        assert move.startswith(f"{name} rollout, left to torch: torch has no Jacobian of its step: ")
    params = {name: value[None] for name, value in family.init(generator(0, "m", "init")).items()}
    x = torch.ones(1, 3, 1, 2)
    run = rollout(family, params, x, method="deer")
    assert run.report == {}
    torch.testing.assert_close(run.outputs, rollout(family, params, x).outputs)


def test_without_a_compiler_native_rows_are_left_out_and_one_line_says_so(monkeypatch, caplog):
    for name in ("why_not", "why_not_here"):
        monkeypatch.setattr(native, name, lambda *arguments: "no C compiler was found")
    agreement._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        rows = [*checks.family_rows(FAMILY), *checks.family_rows(FAMILY)]
    assert not any("native" in row["move"] for row in rows)
    assert [record.getMessage() for record in caplog.records] == [
        "Native rollouts are not checked: no C compiler was found."
    ]


def rows_of(family, encoder=None):
    return list(checks._encoder_rows(encoder or checks._untrained(MessagePassing), family))


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_every_tensor_but_masks_has_a_row_of_sensitivity(family):
    rows = {row["move"]: row["declared"] for row in rows_of(family)}
    for name, tensor in family.spec.tensors.items():
        assert (rows.get(f"another {name} of {type(family).__name__}") is False) == (tensor.role != "mask")


class Forgetful(MessagePassing):
    """Message passing that does not see one tensor."""

    unseen = "factor_b"

    def forward(self, stacks):
        blank = [
            dataclasses.replace(stack, params={**stack.params, self.unseen: torch.ones_like(stack.params[self.unseen])})
            for stack in stacks
        ]
        return super().forward(blank)


class Absolute(MessagePassing):
    """Message passing that sees the sizes of weights, but no signs."""

    symmetry = MessagePassing.symmetry | {"sign"}

    def forward(self, stacks):
        sizes = [{name: value.abs() for name, value in stack.params.items()} for stack in stacks]
        return super().forward([dataclasses.replace(s, params=p) for s, p in zip(stacks, sizes, strict=True)])


SECOND_ORDER = CPRNN(input_size=3, hidden_size=5, output_size=2, rank=4)


def test_a_tensor_that_an_encoder_does_not_see_fails():
    found = failed(rows_of(SECOND_ORDER, checks._untrained(Forgetful)))
    assert found == {"another factor_b of CPRNN", "half of gauge scale_b, on axis 0 of factor_b alone, of CPRNN"}


def test_every_charge_of_a_gauge_of_signs_and_scales_has_a_row():
    moves = {row["move"] for row in rows_of(SECOND_ORDER)}
    for gauge, tensor, axis in (("b", "a", 0), ("b", "b", 0), ("c", "a", 0), ("c", "c", 1)):
        assert f"half of gauge scale_{gauge}, on axis {axis} of factor_{tensor} alone, of CPRNN" in moves


def test_an_encoder_that_states_signs_is_tested_on_the_signs_of_all_gauges_and_must_see_half_of_a_move():
    rows = rows_of(SECOND_ORDER, checks._untrained(Absolute))
    stated = {f"gauge {name} of CPRNN" for name in ("sign@hidden", "scale_b@rank", "scale_c@rank")}
    assert {row["move"] for row in rows if row["declared"]} == {"declared permutations of CPRNN", *stated}
    assert not stated & failed(rows)
    assert all(move.startswith("half of gauge") for move in failed(rows))
    assert len(failed(rows)) == 4


def test_an_encoder_that_states_scales_it_sees_fails():
    class Scaled(MessagePassing):
        symmetry = MessagePassing.symmetry | {"scale"}

    assert {"gauge scale_b@rank of CPRNN", "gauge scale_c@rank of CPRNN"} <= failed(
        rows_of(SECOND_ORDER, checks._untrained(Scaled))
    )


def test_checking_encoders_gives_the_same_rows_again(monkeypatch):
    monkeypatch.setattr(families, "available", lambda: {"MGU": MGU})
    rows = checks.check_encoders()
    assert checks.check_encoders() == rows
    assert failed(rows) == set()
    assert encoders.available()


def test_assertions_list_the_rows_that_failed_and_leave_the_encoder_as_it_was(monkeypatch):
    monkeypatch.setattr(families, "available", lambda: {"CPRNN": CPRNN})
    encoder = checks._untrained(Absolute).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    rows = checks.encoder_rows("Absolute", copy.deepcopy(encoder))
    with pytest.raises(AssertionError) as failure:
        checks.assert_encoder(encoder)
    title, *lines = str(failure.value).splitlines()
    assert title == f"{len(lines)} of {len(rows)} checks failed:"
    assert len(lines) == sum(not row["passed"] for row in rows)
    assert {line.split(": ")[1] for line in lines} == failed(rows)
    assert all("Absolute: " in line and "expected a change, relative change is " in line for line in lines)
    assert encoder.training
    torch.testing.assert_close(encoder.state_dict(), before, rtol=0, atol=0)


def test_a_family_that_breaks_its_declaration_is_named_with_the_move():
    class Shifted(Elman):
        def step(self, params, state, x, noise):
            return {name: value + 0.1 for name, value in super().step(params, state, x, noise).items()}

    checks.assert_family(FAMILY)
    with pytest.raises(AssertionError, match=r"(?s)checks failed:\n  Shifted\(.*gauge sign.*expected no change"):
        checks.assert_family(Shifted(input_size=2, hidden_size=3, output_size=2))
