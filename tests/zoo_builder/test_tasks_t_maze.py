"""The T-maze against a walk in plain Python, and models that know the way."""

import pytest
import torch

from tests.zoo_builder.linear_family import Linear
from weightspace.rollout import Streams
from zoo_builder import labels
from zoo_builder.members import Members
from zoo_builder.tasks.delayed_recall import DelayedRecall
from zoo_builder.tasks.t_maze import FORWARD, LEFT, PATIENCE, RIGHT, TMaze

IDS = ["a", "b", "c"]


def walked(length, way, actions):
    """Places, rewards and the step of the end of one walk."""
    passed, places, rewards = 0, [], []
    for step, action in enumerate(actions):
        places.append("entrance" if passed == 0 else "junction" if passed == length else "corridor")
        if passed == length and action != FORWARD:
            return places, [*rewards, 1.0 if action == way else -0.1], step
        if passed == length or action != FORWARD:
            rewards.append(-0.1)
        else:
            rewards.append(0.0)
            passed += 1
    return places, rewards, len(actions) - 1


def test_walks_are_those_of_a_loop_in_plain_python():
    maze, episodes = TMaze(corridor_length=3), 40
    streams, luck = Streams(0, IDS, "world"), Streams(0, IDS, "luck")
    world = maze.begin({}, streams, episodes)
    ways, steps, lengths = world["way"], [], set()
    for _ in range(maze.longest):
        # Forward twice as often as each turn.
        actions = (luck.integers(4, episodes) - 1).clamp(min=0)
        outcome = maze.act(world, actions, streams)
        steps.append((maze.observe(world), actions, outcome.reward, outcome.ended))
        world = outcome.world
    for m in range(3):
        for episode in range(episodes):
            walk = [[part[m, episode].tolist() for part in step] for step in steps]
            x, actions, rewards, ended = (list(part) for part in zip(*walk, strict=True))
            places, expected, last = walked(3, int(ways[m, episode]), actions)
            assert rewards[: last + 1] == pytest.approx(expected)
            assert ended[: last + 1] == [False] * last + [True]
            lengths.add(last + 1)
            for seen, where in zip(x, places, strict=False):
                sign = [0.0, 1.0, 1.0] if ways[m, episode] == LEFT else [1.0, 1.0, 0.0]
                assert where != "entrance" or seen == sign
                assert where != "junction" or seen == [0.0, 1.0, 0.0]
                assert where != "corridor" or (seen[1] == 0 and 0 < seen[0] < 1 and 0 < seen[2] < 1)
    assert {4, PATIENCE * 4} <= lengths


def test_both_ways_are_as_frequent_and_nothing_but_the_sign_tells_them_apart():
    batch = TMaze(corridor_length=4).sample({}, Streams(0, IDS, "train"), 2000, "train")
    left = batch.target[:, -1] == LEFT
    assert (left | (batch.target[:, -1] == RIGHT)).all()
    assert (batch.target[:, :-1] == FORWARD).all()
    # Four standard errors of a share of one half.
    assert (left.double().mean(1) - 0.5).abs().max() < 2 / 2000**0.5
    means = [batch.x[:, 1:].transpose(1, 2)[ways].mean((0, 1)) for ways in (left, ~left)]
    assert (means[0] - means[1]).abs().max() < 4 * (2 / 12 / 12_000) ** 0.5


def test_walls_of_a_quiet_maze_look_all_the_same():
    batch = TMaze(corridor_length=3, noisy=False).sample({}, Streams(0, IDS, "train"), 4, "train")
    assert (batch.x[:, 1:3] == torch.tensor([1.0, 0.0, 1.0])).all()


def test_the_score_is_the_share_of_right_turns_at_the_junction():
    maze = TMaze(corridor_length=2)
    batch = maze.sample({}, Streams(0, IDS, "test"), 10, "test")
    outputs = torch.zeros(3, 3, 10, 3)
    outputs[:, -1] = torch.nn.functional.one_hot(batch.target[:, -1], 3).float()
    outputs[1, -1, :4] = torch.tensor([1.0, 0.0, 0.0])
    outputs[2, 0, 0, 0] = torch.inf
    assert maze.score(outputs, batch).tolist() == pytest.approx([1.0, 0.6, 1.0])
    outputs[2, -1, 0, 0] = torch.inf
    assert maze.score(outputs, batch).isnan().tolist() == [False, False, True]


def test_networks_that_act_earn_what_they_know():
    """Three networks in a quiet maze: one keeps the sign and turns by it, one turns the other way, one never turns."""
    family, maze = Linear(input_size=3, hidden_size=2, output_size=3), TMaze(corridor_length=4, noisy=False)
    # The first unit keeps the difference of the outer inputs, the second is their sum: 1, 2, ... and 0 at the junction.
    a, b = torch.diag(torch.tensor([1.0, 0.0])), torch.tensor([[1.0, 0.0, -1.0], [1.0, 0.0, 1.0]])
    c = torch.tensor([[[0.0, 0.5], [-turn, 0.0], [turn, 0.0]] for turn in (0.3, -0.3, 0.0)])
    params = {"a": a.expand(3, 2, 2), "b": b.expand(3, 2, 3), "c": c}
    measured = labels.measure(["EpisodeReturn", "Performance"], family, params, maze, Members(0, IDS))
    assert measured["episode_return"].tolist() == pytest.approx([1.0, -0.1, -0.1 * (maze.longest - 4)], abs=1e-6)
    assert measured["score"].tolist() == [1.0, 0.0, 0.0]


def test_where_there_is_no_world_there_is_no_return():
    family, task = Linear(input_size=1, hidden_size=2, output_size=2), DelayedRecall(num_steps=5, delay=1)
    params = {name: torch.zeros(3, *family.spec.shape(name)) for name in family.spec.tensors}
    assert labels.measure(["EpisodeReturn"], family, params, task, Members(0, IDS))["episode_return"].isnan().all()
