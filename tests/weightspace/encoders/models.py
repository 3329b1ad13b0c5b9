"""Stacks of random models for tests of encoders, and the same models with their units in another order."""

from __future__ import annotations

import torch

from tests.trial_members.decays import Decays
from tests.trial_members.delays import Delays
from tests.trial_members.liquid import Liquid
from weightspace.encoders import Encoder
from weightspace.families import Family
from weightspace.families.second_order import SecondOrder
from weightspace.families.wave_rnn import WaveRNN
from weightspace.rollout import generator
from weightspace.spec import GroupElement
from weightspace.store import Stack

TRIALS = [example for kind in (SecondOrder, Liquid, WaveRNN, Delays, Decays) for example in kind.examples()]


def stack_of(family: Family, models: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> Stack:
    draws = [family.spec.random_params(generator(seed, str(i), "models"), dtype) for i in range(models)]
    return Stack(family, {k: torch.stack([d[k] for d in draws]) for k in family.spec.tensors}, torch.arange(models))


def permuted(stack: Stack) -> Stack:
    spec = stack.family.spec
    element = spec.random_elements(len(stack), generator(1, "permuted", "units"), torch.float64)
    still = {name: torch.ones_like(factor) for name, factor in element.gauges.items()}
    return Stack(stack.family, spec.act_stacked(GroupElement(element.permutations, still), stack.params), stack.rows)


def fitted(encoder: Encoder, *stacks: Stack) -> Encoder:
    """The encoder in float64, its scales learned from these stacks."""
    encoder.double().eval().fit_standardisation(iter(stacks))
    return encoder
