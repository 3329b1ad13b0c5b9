"""Learning-rate schedules against torch.optim.lr_scheduler, and where they meet the optimiser."""

import pytest
import torch
from torch.optim import lr_scheduler as reference

from weightspace.families.elman import Elman
from zoo_builder import learning
from zoo_builder.learning.base import fresh_params
from zoo_builder.learning.bptt import BPTT
from zoo_builder.learning.optimiser import Hyperparameters, StackedAdamW
from zoo_builder.learning.schedule import SHAPES, Schedule
from zoo_builder.members import Members
from zoo_builder.tasks.delayed_recall import DelayedRecall

NUM_UPDATES = 40
WARM_UPS = [0.0, 4.0, 8.0, 16.0]
FINALS = [0.5, 0.01, 0.1, 0.3]
DROPS = 3
# What torch makes of the updates after the warm-up, given how many there are and the final factor.
SCHEDULERS = {
    "constant": lambda optimiser, rest, final: reference.ConstantLR(optimiser, factor=1.0),
    "linear": lambda optimiser, rest, final: reference.LinearLR(optimiser, 1.0, final, total_iters=rest),
    "cosine": lambda optimiser, rest, final: reference.CosineAnnealingLR(optimiser, rest, eta_min=final),
    "exponential": lambda optimiser, rest, final: reference.ExponentialLR(optimiser, final ** (1 / rest)),
    "step": lambda optimiser, rest, final: reference.StepLR(optimiser, rest // (DROPS + 1), final ** (1 / DROPS)),
}


def torch_rates(shape, warm_up, final):
    """The rates of torch's own schedulers, one after the other, for a rate of 1."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    main = SCHEDULERS[shape](optimiser, NUM_UPDATES - warm_up, final)
    if warm_up:
        rising = reference.LinearLR(optimiser, start_factor=1 / (warm_up + 1), total_iters=warm_up)
        main = reference.SequentialLR(optimiser, [rising, main], milestones=[warm_up])
    rates = []
    for _ in range(NUM_UPDATES):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        main.step()
    return rates


@pytest.mark.parametrize("shape", SHAPES)
# The schedulers of torch warn of the way in which SequentialLR itself steps them.
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_a_schedule_is_that_of_torch_for_each_model(shape):
    schedule = Schedule(shape=shape, drops=DROPS)
    warm_up, final = (torch.tensor(values, dtype=torch.float64) for values in (WARM_UPS, FINALS))
    found = torch.stack([schedule.factor(u, NUM_UPDATES, warm_up, final) for u in range(NUM_UPDATES)], dim=1)
    for m in range(len(WARM_UPS)):
        assert found[m].tolist() == pytest.approx(torch_rates(shape, int(WARM_UPS[m]), FINALS[m]), rel=1e-9)


def test_every_shape_has_a_reference():
    assert set(SCHEDULERS) == set(SHAPES)


def test_steps_of_uneven_length_drop_as_often_as_asked():
    schedule = Schedule(shape="step", drops=2)
    final = torch.tensor([0.25], dtype=torch.float64)
    rates = [schedule.factor(u, 10, torch.zeros(1, dtype=torch.float64), final).item() for u in range(10)]
    assert rates == pytest.approx([1.0] * 4 + [0.5] * 3 + [0.25] * 3)


def test_the_optimiser_takes_each_models_rate_at_each_update():
    family, ids = Elman(input_size=1, hidden_size=3, output_size=2), ["a", "b", "c"]
    params = fresh_params(family, 0, ids)
    rate, decay = torch.tensor([1e-2, 3e-2, 1e-1]), torch.tensor([0.0, 0.1, 0.5])
    stacked = StackedAdamW(family.spec, params, Hyperparameters(rate, decay, torch.zeros(3)))
    alone = [{k: v[m].clone().requires_grad_() for k, v in params.items()} for m in range(3)]
    optimisers = [
        torch.optim.AdamW(own.values(), lr=float(rate[m]), weight_decay=float(decay[m])) for m, own in enumerate(alone)
    ]
    schedulers = [reference.CosineAnnealingLR(optimiser, 12, eta_min=0.0) for optimiser in optimisers]
    schedule, draws = Schedule(shape="cosine", final=0.0), torch.Generator().manual_seed(0)
    nothing = torch.zeros(3, dtype=torch.float64)
    for update in range(12):
        gradients = {k: torch.randn(v.shape, generator=draws) for k, v in params.items()}
        for m, own in enumerate(alone):
            for name, tensor in own.items():
                tensor.grad = gradients[name][m].clone()
            optimisers[m].step()
            schedulers[m].step()
        stacked.update(torch.zeros(3), gradients, schedule.factor(update, 12, nothing, nothing))
    for name, tensor in stacked.params().items():
        torch.testing.assert_close(tensor, torch.stack([own[name].detach() for own in alone]), atol=1e-6, rtol=1e-6)


def test_a_learner_follows_its_schedule_and_each_model_its_own_warm_up():
    family, ids = Elman(input_size=1, hidden_size=3, output_size=2), ["a", "b", "c"]
    task = DelayedRecall(num_steps=5, delay=2)
    warm_up = {"schedule.warm_up": torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64)}

    def learn(settings, **options):
        learner = BPTT(num_updates=6, batch_size=4, **options)
        return learner.learn(family, task, Members(0, ids, {}, settings), [1, 6]).params["weight_hh.0"]

    plain, warmed = learn({}), learn(warm_up, schedule=Schedule())
    # A model without a warm-up is as if there were no schedule, and the first update of the others has a third and a
    # sixth of the rate.
    assert torch.equal(plain[0], warmed[0])
    rates = {"learning_rate": torch.tensor([3e-3, 3e-3 / 3, 3e-3 / 6], dtype=torch.float64)}
    torch.testing.assert_close(learn(rates)[:, 0], warmed[:, 0], atol=1e-7, rtol=1e-6)
    assert not torch.equal(plain[1:, 1], warmed[1:, 1])


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"shape": "cosin"}, r"`shape` \(='cosin'\) of Schedule must be one of \['constant', 'linear'"),
        ({"warmup": 3}, r"Schedule has no option 'warmup'.*'warm_up'"),
        ({"shape": "step", "drops": 0}, r"`drops` \(=0\) must be at least 1"),
        ({"shape": "exponential", "final": 0.0}, r"`final` \(=0\) must be above 0"),
        ({"final": -1.0}, r"`schedule.final` \(=-1\) must be a finite number 0 or more"),
        ({"warm_up": 400}, r"`schedule.warm_up` \(=400\) must be below `num_updates` \(=400\)"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_with_the_way_out(schedule, message):
    with pytest.raises(ValueError, match=message):
        learning.load("BPTT", {"schedule": schedule})
