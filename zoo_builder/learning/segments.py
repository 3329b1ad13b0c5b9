"""Segments of episodes: models act for some steps, and the gradients of actor and critic on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from weightspace.families import Family
from weightspace.rollout import Streams
from weightspace.rollout.noise import draw_noise
from weightspace.rollout.sensitivities import Sensitivities, Sensitivity
from weightspace.spec import Params, State
from zoo_builder.tasks.environment import Environment, World, renewed

CRITIC = "learner.critic"
"""Name of the critic's weights (models, state + 1): of all states side by side, as the spec orders them, and a bias."""


@dataclass(frozen=True)
class Weighing:
    """Terms of the loss of a segment."""

    discount: float
    value_cost: float
    entropy_bonus: float


@dataclass(frozen=True)
class Carried:
    """Episodes of a stack of models between two segments: what the next segment begins with."""

    world: World
    state: State
    """States before the next step (models, episode, axis)."""
    begins: Tensor
    """Whether an episode begins with the next step (models, episode), bool: then the state is not carried on."""
    sensitivities: Sensitivities
    """Derivatives of the states by the params, 0 where an episode begins; empty where gradients are truncated."""


class Moment(NamedTuple):
    """One step of all episodes: the log-odds and values that depend on params, and what came of them."""

    log_odds: Tensor
    """Log-odds of the actions (models, episode, action)."""
    value: Tensor
    """What the critic expects (models, episode)."""
    action: Tensor
    """Actions taken (models, episode), int64."""
    reward: Tensor
    """Rewards (models, episode)."""
    ended: Tensor
    """Whether the episode ended (models, episode), bool."""


class Segments:
    """Segments of `length` steps in which models act, each with `episodes` episodes side by side.

    The state is carried from one segment to the next. Within a segment gradients go back through time. What happened
    before it reaches them through its first state s: to the gradients dL/ds (ds/dparams) is added, with the
    sensitivities ds/dparams carried forward (Schmidhuber, A fixed size storage O(n^3) time complexity learning
    algorithm for fully recurrent continually running networks, Neural Computation 1992). Gradients are then those of
    RTRL, exact while params stay. A truncated gradient leaves that term out.
    """

    def __init__(
        self,
        family: Family,
        environment: Environment,
        streams: Streams,
        values: Callable[[], Mapping[str, Tensor]],
        *,
        length: int,
        episodes: int,
        exact: bool,
    ) -> None:
        """`values` are the present ones of the environment's varying fields; `exact` asks for the gradients of RTRL."""
        self._family, self._environment, self._streams, self._values = family, environment, streams, values
        self._length, self._episodes = length, episodes
        self._sensitivity = Sensitivity(family) if exact else None

    def begin(self, params: Params) -> Carried:
        """First steps of new episodes of models with these params (models, ...)."""
        world = self._environment.begin(self._values(), self._streams, self._episodes)
        start = self._start(params)
        begins = torch.ones(start.shape[:2], dtype=torch.bool, device=start.device)
        sensitivities = {} if self._sensitivity is None else self._sensitivity.at_start(params, self._episodes)
        return Carried(world, self._first_state(params), begins, sensitivities)

    def next(self, params: Params, carried: Carried, weighing: Weighing) -> tuple[Tensor, Params, Carried]:
        """Losses (models,) of the next segment, their gradients (models, ...), and what is carried on from it.

        `params` (models, ...) are the family's and those of the critic; gradients are those of the trained ones.
        """
        leaves = {name: params[name].detach().requires_grad_() for name in (*self._family.spec.trained, CRITIC)}
        reached = () if self._sensitivity is None else self._sensitivity.memory.states
        before = {name: carried.state[name].detach().requires_grad_() for name in reached}
        with torch.enable_grad():
            moments, after, expected = self._act(params | leaves, carried, before)
            losses = actor_critic_losses(moments, expected, weighing)
        wanted = [*leaves.values(), *before.values()]
        derivatives = torch.autograd.grad(losses.sum(), wanted, allow_unused=True, materialize_grads=True)
        gradients = dict(zip(leaves, derivatives, strict=False))
        if self._sensitivity is not None:
            errors = dict(zip(before, derivatives[len(leaves) :], strict=True))
            for name, through in self._sensitivity.gradients(carried.sensitivities, errors).items():
                gradients[name] = gradients[name] + through
        return losses.detach(), gradients, after

    def _act(self, params: Params, carried: Carried, before: State) -> tuple[list[Moment], Carried, Tensor]:
        """The moments of a segment, what is carried on from it, and the values (models, episode) expected then."""
        state, world, begins = {**carried.state, **before}, carried.world, carried.begins
        sensitivities = carried.sensitivities
        kind = next(iter(state.values())).dtype
        noise = draw_noise(self._family.spec, self._streams, self._length + 1, self._episodes)
        luck = self._streams.uniform(self._length, self._episodes, dtype=torch.float64)
        moments = []
        for t in range(self._length):
            state = renewed(begins, self._first_state(params), state)
            x, drive = self._environment.observe(world).to(kind), {name: v[:, t].to(kind) for name, v in noise.items()}
            if self._sensitivity is not None:
                sensitivities = self._one_step_on(sensitivities, params, state, x, drive)
            state = torch.func.vmap(self._family.step)(params, state, x, drive)
            log_odds = torch.func.vmap(self._family.readout)(params, state)
            action = drawn_actions(log_odds.detach(), luck[:, t])
            world, reward, begins = self._move(world, action)
            moments.append(Moment(log_odds, self._valued(params, state), action, reward.to(kind), begins))
            nothing = {name: torch.zeros_like(value) for name, value in sensitivities.items()}
            sensitivities = renewed(begins, nothing, sensitivities)
        with torch.no_grad():
            first = renewed(begins, self._first_state(params), state)
            drive = {name: value[:, -1].to(kind) for name, value in noise.items()}
            x = self._environment.observe(world).to(kind)
            expected = self._valued(params, torch.func.vmap(self._family.step)(params, first, x, drive))
        resting = {name: value.detach() for name, value in state.items()}
        return moments, Carried(world, resting, begins, sensitivities), expected

    @torch.no_grad()
    def _one_step_on(
        self, sensitivities: Sensitivities, params: Params, state: State, x: Tensor, noise: Mapping[str, Tensor]
    ) -> Sensitivities:
        """Sensitivities one step on from a state."""
        assert self._sensitivity is not None
        plain, resting = ({name: value.detach() for name, value in part.items()} for part in (params, state))
        return self._sensitivity.after(sensitivities, plain, resting, x, noise)

    def _move(self, world: World, action: Tensor) -> tuple[World, Tensor, Tensor]:
        """World after an action, with new episodes for those that ended; rewards and ends (models, episode)."""
        outcome = self._environment.act(world, action, self._streams)
        # Drawn for all, so that a stream does not depend on who has ended.
        fresh = self._environment.begin(self._values(), self._streams, self._episodes)
        return renewed(outcome.ended, fresh, outcome.world), outcome.reward, outcome.ended

    def _start(self, params: Params) -> Tensor:
        first = params[self._family.spec.trained[0]]
        return first.new_zeros(len(first), self._episodes, 0)

    def _first_state(self, params: Params) -> State:
        """States before the first step of an episode (models, episode, axis)."""
        return torch.func.vmap(self._family.initial_state)(params, self._start(params))

    def _valued(self, params: Params, state: State) -> Tensor:
        """What the critic expects of states (models, episode, axis), (models, episode)."""
        side_by_side = torch.cat([state[name] for name in self._family.spec.states], dim=-1)
        weight, bias = params[CRITIC][:, None, :-1], params[CRITIC][:, -1:]
        return (side_by_side * weight).sum(-1) + bias


def drawn_actions(log_odds: Tensor, luck: Tensor) -> Tensor:
    """Actions (models, episode) with these log-odds (models, episode, action), by uniform numbers from 0 to 1."""
    passed = log_odds.double().softmax(-1).cumsum(-1) <= luck[..., None]
    return passed.sum(-1).clamp(max=log_odds.shape[-1] - 1)


def discounted(rewards: Tensor, ended: Tensor, expected: Tensor, discount: float) -> Tensor:
    """Returns G_t = r_t + discount G_{t+1} (models, time, episode), with no G_{t+1} behind an end.

    Behind the last step it is what is `expected` (models, episode).
    """
    following, returns = expected, []
    for t in range(rewards.shape[1] - 1, -1, -1):
        following = rewards[:, t] + discount * torch.where(ended[:, t], 0, following)
        returns.append(following)
    return torch.stack(returns[::-1], dim=1)


def actor_critic_losses(moments: list[Moment], expected: Tensor, weighing: Weighing) -> Tensor:
    """Losses (models,) of advantage actor-critic (A2C; Mnih et al., ICML 2016, arXiv 1602.01783).

    L = mean [-A log pi(a) + value_cost (G - V)^2 / 2 - entropy_bonus H(pi)] over steps and episodes, with the advantage
    A = G - V held constant. The policy that acted is the one that learns, so no importance weights are needed: those of
    V-trace (Espeholt et al., ICML 2018, arXiv 1802.01561) are all 1.
    """
    log_odds, value, action, reward, ended = (torch.stack(part, dim=1) for part in zip(*moments, strict=True))
    returns = discounted(reward, ended, expected, weighing.discount)
    log_policy = log_odds.log_softmax(-1)
    taken = log_policy.gather(-1, action[..., None])[..., 0]
    entropy = -(log_policy.exp() * log_policy).sum(-1)
    gained = (returns - value).detach()
    critic = weighing.value_cost * (returns - value).square() / 2
    return (critic - gained * taken - weighing.entropy_bonus * entropy).mean((1, 2))
