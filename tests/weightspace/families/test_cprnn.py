"""The second-order network in CP form."""

import torch

from weightspace.families.cprnn import CPRNN
from weightspace.families.elman import Elman
from weightspace.rollout import generator, rollout


def test_rank_0_is_an_elman_network():
    sizes = {"input_size": 2, "hidden_size": 4, "output_size": 3}
    family, elman = CPRNN(**sizes, rank=0), Elman(**sizes)
    params = {name: value[None] for name, value in family.spec.random_params(generator(0, "m", "params")).items()}
    layer = {"weight_ih", "weight_hh", "bias"}
    same = {f"{name}.0" if name in layer else name: value for name, value in params.items()}
    x = torch.randn(1, 6, 5, 2, dtype=torch.float64, generator=generator(0, "m", "x"))
    torch.testing.assert_close(rollout(family, params, x).outputs, rollout(elman, same, x).outputs)
