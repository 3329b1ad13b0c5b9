"""The contract of every environment: worlds of each model alone, ends in time, an expert, and returns."""

import pytest
import torch

from weightspace.rollout import Streams
from zoo_builder import tasks
from zoo_builder.tasks.environment import Environment, renewed

IDS = ["a", "b", "c"]
EXAMPLES = [
    example for kind in tasks.available().values() if issubclass(kind, Environment) for example in kind.examples()
]


def random_actions(task, streams, episodes):
    return streams.integers(task.output_size, episodes)


def explored(task, ids, episodes=5, steps=None):
    """Inputs, rewards and ends (models, time, episode, ...) of random actions."""
    streams, luck = Streams(0, ids, "world"), Streams(0, ids, "luck")
    world, seen = task.begin({}, streams, episodes), []
    for _ in range(steps or task.longest):
        x = task.observe(world)
        outcome = task.act(world, random_actions(task, luck, episodes), streams)
        seen.append((x, outcome.reward, outcome.ended))
        world = outcome.world
    return [torch.stack(part, dim=1) for part in zip(*seen, strict=True)]


def test_there_is_an_environment():
    assert EXAMPLES


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_what_is_seen_and_earned_has_the_declared_shapes(task):
    x, rewards, ended = explored(task, IDS)
    assert (x.dtype, rewards.dtype, ended.dtype) == (torch.float32, torch.float32, torch.bool)
    assert x.shape == (3, task.longest, 5, task.input_size)
    assert rewards.shape == ended.shape == x.shape[:3]
    assert x.isfinite().all()
    assert rewards.isfinite().all()


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_every_episode_ends_in_time(task):
    ended = explored(task, IDS, episodes=50)[2]
    assert ended.any(1).all()
    assert task.num_steps <= task.longest


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_a_models_world_does_not_depend_on_its_neighbours(task):
    together, alone = explored(task, IDS), explored(task, ["b"])
    for all_models, single in zip(together, alone, strict=True):
        assert torch.equal(all_models[1:2], single)


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_how_much_is_drawn_does_not_depend_on_what_was_done(task):
    following = []
    for action in range(task.output_size):
        streams = Streams(0, IDS, "world")
        world = task.begin({}, streams, 4)
        for _ in range(task.longest):
            world = task.act(world, torch.full((3, 4), action), streams).world
        following.append(streams.bits(3))
    assert all(torch.equal(following[0], other) for other in following[1:])


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_the_expert_is_recorded_and_ends_its_episodes_with_the_last_step(task):
    streams = Streams(0, IDS, "train")
    batch, again = task.sample({}, streams, 6, "train"), Streams(0, IDS, "train")
    world = task.begin({}, again, 6)
    for t in range(task.num_steps):
        assert torch.equal(batch.x[:, t], task.observe(world))
        assert torch.equal(batch.target[:, t], task.expert(world))
        outcome = task.act(world, task.expert(world), again)
        world = outcome.world
        assert bool(outcome.ended.all()) == bool(outcome.ended.any()) == (t == task.num_steps - 1)


class Scripted:
    """A policy of numbers drawn beforehand, (time, models, episode, action)."""

    def __init__(self, log_odds):
        self.log_odds, self.step, self.seen = log_odds, 0, []

    def __call__(self, x):
        assert x.dtype == torch.float64
        self.seen.append(x)
        self.step += 1
        return self.log_odds[self.step - 1]


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_returns_are_those_of_a_loop_over_episodes(task):
    log_odds = torch.randn(task.longest, 3, 7, task.output_size, generator=torch.Generator().manual_seed(1))
    log_odds[..., 0] += 1
    returns = task.returns(Scripted(log_odds), {}, Streams(0, IDS, "world"), 7)
    streams = Streams(0, IDS, "world")
    world, rewards, ended = task.begin({}, streams, 7), [], []
    for t in range(task.longest):
        outcome = task.act(world, log_odds[t].argmax(-1), streams)
        world = outcome.world
        rewards.append(outcome.reward.tolist())
        ended.append(outcome.ended.tolist())
    for m in range(3):
        earned = []
        for episode in range(7):
            last = next(t for t in range(task.longest) if ended[t][m][episode])
            earned.append(sum(rewards[t][m][episode] for t in range(last + 1)))
        assert returns[m].item() == pytest.approx(sum(earned) / 7, abs=1e-6)


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_a_policy_that_is_not_finite_has_no_return_and_spares_the_others(task):
    log_odds = torch.zeros(task.longest, 3, 4, task.output_size)
    log_odds[0, 1, 2, 0] = torch.nan
    returns = task.returns(Scripted(log_odds), {}, Streams(0, IDS, "world"), 4)
    assert returns.isnan().tolist() == [False, True, False]


def test_new_episodes_take_the_places_of_those_that_ended():
    ended = torch.tensor([[True, False]])
    old, fresh = {"a": torch.zeros(1, 2), "b": torch.full((1, 2, 3), torch.nan)}, {"a": torch.ones(1, 2)}
    mixed = renewed(ended, fresh | {"b": torch.ones(1, 2, 3)}, old)
    assert mixed["a"].tolist() == [[1.0, 0.0]]
    assert mixed["b"].isnan().tolist() == [[[False] * 3, [True] * 3]]
