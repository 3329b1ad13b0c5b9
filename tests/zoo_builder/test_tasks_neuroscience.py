"""Tasks of neuroscience, trial by trial, against plain versions of their definitions."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from weightspace.rollout import Streams
from zoo_builder.tasks.angle_memory import AngleMemory
from zoo_builder.tasks.context_decision import ContextDecision
from zoo_builder.tasks.distracted_match import DistractedMatch
from zoo_builder.tasks.flip_flop import FlipFlop

COUNT = 4000


def drawn(task, count=COUNT, values=None, ids=("a", "b")):
    return task.sample(values or {}, Streams(0, ids, "t"), count, "train")


def within_chance(hits, total, probability):
    """Whether a binomial count is within four standard deviations of its mean."""
    return abs(hits - total * probability) < 4 * math.sqrt(total * probability * (1 - probability))


def test_a_flip_flop_holds_the_last_pulse_of_each_channel():
    batch = drawn(FlipFlop(num_bits=3, num_steps=20, pulse_probability=0.2), 50)
    for m in range(2):
        for b in range(50):
            memory = [0.0, 0.0, 0.0]
            for t in range(20):
                for bit, pulse in enumerate(batch.x[m, t, b].tolist()):
                    assert pulse in (-1, 0, 1)
                    memory[bit] = pulse or memory[bit]
                assert batch.target[m, t, b].tolist() == memory
    assert (batch.x[:, 0] != 0).all()


def test_pulses_come_with_each_models_own_probability_and_fair_signs():
    values = {"pulse_probability": torch.tensor([0.05, 0.5], dtype=torch.float64)}
    later = drawn(FlipFlop(num_bits=2, num_steps=11), 1000, values).x[:, 1:]
    for m, probability in enumerate((0.05, 0.5)):
        pulses = int((later[m] != 0).sum())
        assert within_chance(pulses, 20_000, probability)
        assert within_chance(int((later[m] > 0).sum()), pulses, 0.5)


def test_the_score_of_signs_is_the_share_of_right_ones():
    task = FlipFlop(num_bits=2, num_steps=6)
    batch = drawn(task, 30)
    outputs = torch.randn(2, 6, 30, 2, generator=torch.Generator().manual_seed(0))
    for m, score in enumerate(task.score(outputs, batch).tolist()):
        assert score == pytest.approx(np.mean(np.sign(outputs[m].numpy()) == batch.target[m].numpy()))


def test_a_context_decision_is_the_sign_of_the_evidence_that_counts():
    # So strong that summed evidence never errs but where its mean is nearly 0.
    batch = drawn(ContextDecision(num_steps=9, strength=400.0), 1000)
    agreements, others = 0, 0
    for m in range(2):
        for b in range(1000):
            trial = batch.x[m, :, b].tolist()
            contexts = {tuple(step[2:]) for step in trial}
            assert len(contexts) == 1
            stream = {(1.0, 0.0): 0, (0.0, 1.0): 1}[contexts.pop()]
            sums = [sum(step[k] for step in trial) for k in (0, 1)]
            agreements += (sums[stream] > 0) == (batch.target[m, 0, b, 0].item() > 0)
            others += (sums[1 - stream] > 0) == (batch.target[m, 0, b, 0].item() > 0)
    assert agreements > 1980
    assert within_chance(others, 2000, 0.5)


@pytest.mark.parametrize("strength", [2.0, 5.0])
def test_who_sums_the_evidence_scores_as_the_closed_form_says(strength):
    task = ContextDecision(num_steps=16, strength=strength)
    batch = drawn(task, 20_000, ids=("a",))
    summed = (batch.x[..., :2] * batch.x[..., 2:]).sum((1, 3))
    outputs = torch.zeros(1, 16, 20_000, 1)
    outputs[:, -1, :, 0] = summed
    expected = scipy.stats.norm.cdf(strength * np.linspace(0, 1, 10_001)).mean()
    assert within_chance(task.score(outputs, batch).item() * 20_000, 20_000, expected)


def test_a_match_is_that_of_sample_and_test_whatever_lies_between():
    task = DistractedMatch(num_stimuli=4, max_delay=3, delay=3)
    delays = {"delay": torch.tensor([3.0, 1.0], dtype=torch.float64)}
    batch = drawn(task, COUNT, delays)
    tokens = batch.x.argmax(-1)
    assert torch.equal(batch.x.sum(-1), torch.ones(2, 9, COUNT))
    for m, delay in enumerate((3, 1)):
        kinds, samples, thirds = {"match": 0, "lure": 0, "third": 0}, [0] * 4, 0
        for b in range(COUNT):
            trial = tokens[m, :, b].tolist()
            first, distractor, test = trial[6 - 2 * delay], trial[7 - delay], trial[8]
            shown = [4] * (6 - 2 * delay) + [first] + [4] * delay + [distractor] + [4] * delay + [test]
            assert trial == shown
            assert first != distractor
            assert 4 not in (first, distractor, test)
            assert batch.target[m, 0, b].item() == (first == test)
            kinds["match" if test == first else "lure" if test == distractor else "third"] += 1
            samples[first] += 1
            thirds += test == min({0, 1, 2, 3} - {first, distractor})
        assert within_chance(kinds["match"], COUNT, 1 / 2)
        assert within_chance(kinds["lure"], COUNT, 1 / 4)
        # Either of the two stimuli that are left.
        assert within_chance(thirds, COUNT, 1 / 8)
        assert all(within_chance(count, COUNT, 1 / 4) for count in samples)


def test_an_angle_is_shown_held_and_asked_for():
    task = AngleMemory(cue=2, max_delay=5, delay=5, response=3)
    batch = drawn(task, 40, {"delay": torch.tensor([5.0, 2.0], dtype=torch.float64)})
    for m, delay in enumerate((5, 2)):
        for b in range(40):
            cosine, sine = batch.target[m, 0, b].tolist()
            assert cosine**2 + sine**2 == pytest.approx(1, abs=1e-6)
            expected = [[1.0, 0.0, 0.0]] * (5 - delay) + [[1.0, cosine, sine]] * 2 + [[1.0, 0.0, 0.0]] * delay
            assert batch.x[m, :, b].tolist() == expected + [[0.0, 0.0, 0.0]] * 3
            assert batch.target[m, :, b].tolist() == [[cosine, sine]] * 3


def test_a_response_is_right_within_36_degrees():
    task = AngleMemory(cue=1, max_delay=1, delay=1, response=2)
    batch = drawn(task, 500)
    outputs = torch.randn(2, 4, 500, 2, generator=torch.Generator().manual_seed(0))
    for m, score in enumerate(task.score(outputs, batch).tolist()):
        right = 0
        for b in range(500):
            x, y = (outputs[m, -2:, b].double().numpy()).mean(0)
            cosine, sine = batch.target[m, 0, b].tolist()
            error = abs(math.degrees(math.atan2(y, x) - math.atan2(sine, cosine))) % 360
            right += min(error, 360 - error) < 36
        assert score == right / 500
        assert within_chance(right, 500, 0.2)
    silent = task.score(torch.zeros(2, 4, 500, 2), batch)
    assert silent.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (FlipFlop, {"pulse_probability": 0.0}),
        (FlipFlop, {"num_bits": 0}),
        (ContextDecision, {"strength": 0.0}),
        (ContextDecision, {"noise": 0.6}),
        (DistractedMatch, {"num_stimuli": 2}),
        (DistractedMatch, {"delay": 11}),
        (AngleMemory, {"delay": 21}),
        (AngleMemory, {"response": 0}),
    ],
)
def test_a_trial_that_cannot_be_is_refused(kind, fields):
    with pytest.raises(ValueError, match=f"`{next(iter(fields))}`"):
        kind(**fields)


@pytest.mark.parametrize(("kind", "field"), [(FlipFlop, "pulse_probability"), (ContextDecision, "strength")])
def test_a_models_own_value_out_of_range_is_refused(kind, field):
    with pytest.raises(ValueError, match=f"`{field}` of a model must be"):
        drawn(kind(), 2, {field: torch.tensor([1.0, 0.0], dtype=torch.float64)})
