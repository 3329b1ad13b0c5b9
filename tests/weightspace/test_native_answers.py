"""Answers judged inside a native rollout against the same judgement of outputs by torch."""

import pytest
import torch

from tests.weightspace.test_native import stack
from weightspace.families.gru import GRU
from weightspace.rollout import generator, rollout
from weightspace.rollout.criterion import NOT_ASKED, Criterion
from weightspace.rollout.forward import answered
from weightspace.rollout.native.forward import native_verdicts

MODELS, TIME, BATCH = 3, 6, 41


def questions(heads, classes, scored, dtype=torch.float64, asked=0.8):
    """A family, params, inputs and a criterion with steps that do not count and heads that are not asked."""
    family, draw = GRU(input_size=2, hidden_size=5, output_size=heads * classes), generator(0, "m", "answers")
    x = torch.randn(MODELS, TIME, BATCH, 2, generator=draw, dtype=torch.float64).to(dtype)
    target = torch.randint(classes, (MODELS, scored, BATCH, heads), generator=draw)
    target[torch.rand(target.shape, generator=draw) > asked] = NOT_ASKED
    weight = torch.rand(MODELS, scored, generator=draw)
    if scored > 1:
        weight[1, 0] = 0
    params = {name: value.to(dtype) for name, value in stack(family, MODELS).items()}
    return family, params, x, x.new_zeros(MODELS, BATCH, 0), Criterion("cross_entropy", target, weight, classes)


def judged(outputs, criterion):
    """Share of right answers, weighted, and loss, from outputs."""
    target, weight = criterion.target, criterion.weight[:, :, None, None].double()
    log_odds = outputs[:, -target.shape[1] :].double().unflatten(-1, (-1, criterion.classes))
    asked = (target != NOT_ASKED) * weight
    right = (log_odds.argmax(-1) == target) * weight
    return right.sum((1, 2, 3)) / asked.sum((1, 2, 3)), criterion(outputs.double())


@pytest.mark.parametrize(("heads", "classes", "scored"), [(1, 2, TIME), (1, 10, 1), (4, 3, 2), (1, 1, 3)])
def test_right_answers_and_losses_are_those_of_the_outputs(heads, classes, scored):
    family, params, x, start, criterion = questions(heads, classes, scored)
    expected = judged(rollout(family, params, x, start).outputs, criterion)
    for found, own in zip(answered(family, params, x, start, {}, criterion), expected, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-12, atol=1e-14)


def test_in_float32_only_answers_that_rounding_decides_may_be_others():
    family, params, x, start, criterion = questions(2, 3, TIME, asked=1.0)
    narrow = {name: value.float() for name, value in params.items()}
    found, loss = answered(family, narrow, x.float(), start.float(), {}, criterion)
    wide = {name: value.double() for name, value in narrow.items()}
    outputs = rollout(family, wide, x.float().double(), start).outputs
    torch.testing.assert_close(loss, criterion(outputs), rtol=1e-5, atol=0)
    log_odds = outputs.unflatten(-1, (-1, 3))
    best = log_odds.topk(2).values
    clear = best[..., 0] - best[..., 1] > 1e-5
    right = (log_odds.argmax(-1) == criterion.target) & clear
    weight = criterion.weight[:, :, None, None].double()
    total = (weight * torch.ones_like(right)).sum((1, 2, 3))
    least, most = (weight * right).sum((1, 2, 3)) / total, (weight * (right | ~clear)).sum((1, 2, 3)) / total
    assert bool((found >= least - 1e-7).all() & (found <= most + 1e-7).all())
    assert bool((most - least < 0.02).all())


def test_outputs_that_are_not_finite_make_score_and_loss_nan_where_they_count():
    family, params, x, start, criterion = questions(1, 3, TIME)
    params = {name: value.clone() for name, value in params.items()}
    name = next(name for name in params if name.startswith("weight_ih"))
    params[name][0, 0] = torch.inf
    x[1, -TIME, 0, 0] = torch.nan
    score, loss = answered(family, params, x, start, {}, criterion)
    # The first model's numbers overflow; the second model's first input spoils all that one sequence answers later on.
    assert score.isnan().tolist() == loss.isnan().tolist() == [True, True, False]
    hidden = Criterion("cross_entropy", criterion.target, torch.zeros_like(criterion.weight), 3)
    verdicts = native_verdicts(family, params, x, start, {}, hidden)
    assert bool((verdicts == 0).all())


def test_verdicts_do_not_depend_on_neighbours_or_threads():
    family, params, x, start, criterion = questions(2, 3, 4, torch.float32)
    together = native_verdicts(family, params, x, start, {}, criterion)
    one = slice(1, 2)
    own = {name: value[one] for name, value in params.items()}
    alone = Criterion("cross_entropy", criterion.target[one], criterion.weight[one], 3)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(native_verdicts(family, own, x[one], start[one], {}, alone), together[one])
            assert torch.equal(native_verdicts(family, params, x, start, {}, criterion), together)
    finally:
        torch.set_num_threads(threads)


def test_questions_that_do_not_fit_the_outputs_are_refused():
    family, params, x, start, criterion = questions(2, 3, 2)
    wrong = Criterion("cross_entropy", criterion.target[..., :1], criterion.weight, 3)
    with pytest.raises(ValueError, match="targets of shape"):
        native_verdicts(family, params, x, start, {}, wrong)
