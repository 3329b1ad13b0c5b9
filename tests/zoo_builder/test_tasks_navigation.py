"""Walks of heads and animals, trial by trial, and the places that cells tell of."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from weightspace.rollout import Streams
from zoo_builder.tasks.head_direction import HeadDirection
from zoo_builder.tasks.path_integration import PathIntegration, away_from_walls

IDS = ["a", "b"]


def streams():
    return Streams(0, IDS, "t")


@pytest.mark.parametrize("bias", ["none", "turning", "anchored"])
def test_cells_answer_by_the_direction_that_the_turns_lead_to(bias):
    task = HeadDirection(cells=12, num_steps=9, bias=bias)
    batch = task.sample({}, streams(), 3, "train")
    angles = task.walk(streams(), 3)[0]
    for model in range(2):
        for trial in range(3):
            angle = float(angles[model, 0, trial, 0])
            codes = [batch.start[model, trial], *batch.target[model, :, trial]]
            for t, code in enumerate(codes):
                mu = [2 * math.pi * i / 12 for i in range(12)]
                expected = [math.exp(3.6475626111241503 * (math.cos(angle - m) - 1)) for m in mu]
                assert code.tolist() == pytest.approx(expected, abs=1e-4)
                angle += float(batch.x[model, t, trial, 0]) if t < 9 else 0


def test_turns_have_the_spread_of_the_paper_and_turning_heads_only_turn_one_way():
    turns = HeadDirection().sample({}, streams(), 500, "train").x.double()
    assert turns.std().item() == pytest.approx(0.2304, rel=0.02)
    assert abs(turns.mean().item()) < 0.01
    one_way = HeadDirection(bias="turning").sample({}, streams(), 500, "train").x
    assert torch.equal(one_way, turns.abs().float())


def test_an_anchored_head_is_where_its_stationary_distribution_is():
    angles = HeadDirection(bias="anchored").walk(streams(), 4000)[0]
    # Of small steps this would be von Mises with concentration 2 pull / variance of turns.
    expected = scipy.stats.vonmises(2 * 0.15 / 0.2304**2)
    for t in (0, 25, 50):
        length = abs(np.exp(1j * angles[:, t].double().numpy()).mean())
        assert length == pytest.approx(abs(expected.expect(lambda a: np.cos(a), lb=-np.pi, ub=np.pi)), abs=0.02)


def test_the_decoded_direction_is_the_one_that_was_coded():
    task = HeadDirection(cells=16)
    angles = torch.linspace(-3.1, 3.1, 50, dtype=torch.float64)[:, None]
    torch.testing.assert_close(task.decoded(task.activities(angles)), angles, rtol=0, atol=1e-3)


def plain_walk(task, start, headings, speeds):
    """One walk by the rules alone, in a box of 2.2 m."""
    place, places = np.array(start), [np.array(start)]
    heading = headings[0]
    for turn, speed in zip(headings[1:], speeds, strict=True):
        heading += turn
        length = 0.02 * speed
        ahead = (np.cos(heading), np.sin(heading))
        to_wall = [1.1 - at if part > 0 else 1.1 + at for at, part in zip(place, ahead, strict=True)]
        if min(to_wall) < 0.03:
            if to_wall[0] <= to_wall[1]:
                heading = math.pi / 2 if np.sin(heading) >= 0 else -math.pi / 2
            else:
                heading = 0.0 if np.cos(heading) >= 0 else math.pi
            length *= 0.25
        move = length * np.array([np.cos(heading), np.sin(heading)])
        if task.biased:
            move = move - 0.05 * place
        place = np.clip(place + move, -1.1, 1.1)
        places.append(place)
    return np.array(places)


@pytest.mark.parametrize("biased", [False, True])
def test_walks_are_those_of_each_animal_by_itself(biased):
    task, size, steps = PathIntegration(num_steps=120, biased=biased), 30, 120
    places, moves = task.walk(streams(), size)
    draws = streams()
    start, first = 1.1 * (2 * draws.uniform(size, 2) - 1), 2 * math.pi * draws.uniform(size)
    turns, shares = 11.52 * 0.02 * draws.normal(steps, size), draws.uniform(steps, size)
    speeds = scipy.stats.rayleigh(scale=0.26 * math.pi).ppf(shares.double().numpy())
    for trial in range(size):
        headings = [float(first[0, trial]), *turns[0, :, trial].tolist()]
        expected = plain_walk(task, start[0, trial].tolist(), headings, speeds[0, :, trial])
        np.testing.assert_allclose(places[0, :, trial].numpy(), expected, atol=2e-3)
    assert places.abs().max() <= 1.1
    torch.testing.assert_close(places.diff(dim=1), moves, rtol=0, atol=1e-6)


def test_near_a_wall_ahead_the_heading_is_along_it():
    places = torch.tensor([[1.09, 0.0], [1.09, 0.0], [0.0, -1.08], [1.09, 0.0], [0.0, 0.0]])
    heading = torch.tensor([0.3, -0.3, -2.0, 2.0, 1.0])
    turned, gives_way = away_from_walls(places, heading)
    assert gives_way.tolist() == [True, True, True, False, False]
    expected = [math.pi / 2, -math.pi / 2, math.pi, 2.0, 1.0]
    assert turned.tolist() == pytest.approx(expected)


def test_place_cells_answer_by_their_distance_and_the_closest_ones_tell_the_place():
    task = PathIntegration(cells=400, num_steps=3)
    batch = task.sample({}, streams(), 4, "train")
    places = task.walk(streams(), 4)[0]
    distance = np.linalg.norm(places[1, 1:, 2].numpy()[:, None] - task.centres.numpy(), axis=-1)
    np.testing.assert_allclose(batch.target[1, :, 2].numpy(), np.exp(-(distance**2) / 0.08), atol=1e-5)
    assert (task.decoded(batch.target) - places[:, 1:]).norm(dim=-1).mean() < 0.1
    assert torch.equal(task.centres, PathIntegration(cells=400, biased=True).centres)


def test_a_family_that_reads_no_start_is_refused():
    from weightspace.families.elman import Elman
    from zoo_builder.learning.bptt import BPTT

    task = HeadDirection(cells=6)
    with pytest.raises(ValueError, match="gives a start of size 6 to the first state, of which Elman reads 0"):
        BPTT().check(Elman(input_size=1, hidden_size=3, output_size=6), task)
