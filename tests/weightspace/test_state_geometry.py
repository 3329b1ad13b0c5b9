"""StateGeometry: its targets against numpy, what they must not see, and that they can be learned."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import safetensors
import torch
from torch import nn

from tests.weightspace.test_reconstruction import EXAMPLES, Invariant, batch_of, moves_of, stack_of
from tests.weightspace.zoos import write_zoo
from weightspace import checks
from weightspace.data.batch import Training
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.families.lif import LIF
from weightspace.families.lstm import LSTM
from weightspace.objectives.behaviour import draw_inputs, observe, responses, share_suffix
from weightspace.objectives.emulator import Emulator
from weightspace.objectives.gram import distance, gram, gram_of_states
from weightspace.objectives.state_geometry import KICK_STEPS, StateGeometry
from weightspace.responses import ADJACENT
from weightspace.rollout import rollout
from weightspace.store import Stack
from weightspace.training.embed import embed, load
from weightspace.training.module import EmbeddingModule, fit
from zoo_builder.labels.activity import SHARE, Activity, dimension

ELMAN = Elman(input_size=1, hidden_size=4, output_size=1)
STATE_RANKS = ("state_effective_rank", "state_participation_ratio", "state_stable_rank")
EVERYTHING = {"outputs": 1.0, "kicks": 1.0, "summaries": 1.0}


@dataclass(frozen=True, kw_only=True)
class Noisy(Elman):
    """tanh Elman whose state gets noise of deviation 0.1."""

    def declare(self):
        """Elman's declaration with noise."""
        return replace(super().declare(), noise={"e": "hidden.0"})

    def step(self, params, state, x, noise):
        """Elman's step, and noise."""
        return {"h.0": super().step(params, state, x, noise)["h.0"] + 0.1 * noise["e"]}


def geometry(*stacks, **options):
    torch.manual_seed(0)
    objective = StateGeometry(**{"width": 8, "drawn_steps": 10, **options})
    objective.build(6)
    empty = torch.empty(0, 0)
    objective.fit_scales(Training(targets=empty, cell_means=empty, input_size=1, output_size=1, stacks=stacks))
    return objective.double()


def places(states):
    return {name: value.flatten(1, 2) for name, value in states.items()}


def moved(stack):
    spec = stack.family.spec
    return replace(stack, params=spec.act_stacked(moves_of(stack.family, len(stack)), stack.params))


def test_the_gram_matrix_of_an_elman_network_equals_a_loop_in_numpy():
    stack = stack_of(ELMAN, models=2)
    x = torch.randn(2, 3, 5, 1, dtype=torch.float64)
    found, size = gram_of_states(places(observe(stack, x, key=0).run.states))
    for model in range(2):
        w_ih, w_hh, bias = (stack.params[n][model].numpy() for n in ("weight_ih.0", "weight_hh.0", "bias.0"))
        states = np.zeros((5, 3, 4))
        h = np.zeros((3, 4))
        for t in range(5):
            h = np.tanh(x[model, :, t].numpy() @ w_ih.T + h @ w_hh.T + bias)
            states[t] = h
        flat = states.reshape(15, 4)
        centred = flat - flat.mean(0)
        matrix = centred @ centred.T
        np.testing.assert_allclose(found[model], matrix / np.trace(matrix) * 15, rtol=1e-9, atol=1e-12)
        assert size[model].item() == pytest.approx(math.log(flat.var(0).mean()), rel=1e-9)


def test_every_state_counts_the_same_whatever_its_scale_and_constant_ones_do_not_count():
    torch.manual_seed(0)
    a, b = torch.randn(2, 9, 3, dtype=torch.float64), torch.randn(2, 9, 5, dtype=torch.float64)
    both, size = gram_of_states({"a": a, "b": b})
    torch.testing.assert_close(both, (gram(a)[0] + gram(b)[0]) / 2)
    scaled, changed = gram_of_states({"a": 1000 * a, "b": b})
    torch.testing.assert_close(scaled, both)
    torch.testing.assert_close(changed - size, torch.full_like(size, math.log(1000)))
    # Rounding about a constant is no geometry.
    still = 7.3 + 1e-12 * torch.randn(2, 9, 4, dtype=torch.float64)
    torch.testing.assert_close(gram_of_states({"a": a, "still": still})[0], gram(a)[0])
    assert gram_of_states({"still": still})[0].isnan().all()


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_declared_permutations_and_signs_change_neither_states_nor_outputs_geometry(family):
    stack = stack_of(family, models=3)
    seen = observe(stack, draw_inputs(stack, 4, 8, key=1), key=5)
    # Noise is drawn for units, with which it moves.
    noise = checks.noise_moved(family.spec, moves_of(family, 3), seen.noise)
    again = rollout(family, moved(stack).params, seen.x, noise=noise)
    pairs = [
        (*gram_of_states(places(run.states)), gram(run.outputs.flatten(1, 2))[0]) for run in (seen.run, again)
    ]
    for found, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_the_loss_does_not_see_the_group_that_its_encoder_does_not_see():
    for family in (Elman(input_size=2, hidden_size=5, output_size=3, num_layers=2), LSTM.examples()[0]):
        stack = stack_of(family)
        objective, encoder = geometry(stack, outputs=1.0, summaries=1.0), Invariant().double()
        losses = [objective(encoder, batch_of(one, key=3))[0].item() for one in (stack, moved(stack))]
        assert losses[1] == pytest.approx(losses[0], rel=1e-10)
        other = replace(stack, params={**stack.params, "weight_hh.0": stack.params["weight_hh.0"].roll(1, -2)})
        assert objective(encoder, batch_of(other, key=3))[0].item() != pytest.approx(losses[0], rel=1e-4)


def test_distance_is_relative_and_sends_no_gradient_where_nothing_is_to_be_imitated():
    z = torch.randn(3, 6, 2, dtype=torch.float64, requires_grad=True)
    wanted = gram(torch.randn(3, 6, 4, dtype=torch.float64))[0]
    centred, given = (z - z.mean(1, keepdim=True)).detach().numpy(), wanted.numpy().copy()
    expected = [np.linalg.norm(k - c @ c.T) ** 2 / np.linalg.norm(k) ** 2 for k, c in zip(given, centred, strict=True)]
    np.testing.assert_allclose(distance(wanted, z).detach(), expected, rtol=1e-10)
    wanted[1], wanted[2] = torch.nan, 0.0
    found = distance(wanted, z)
    assert found.isnan().tolist() == [False, True, True]
    found.nansum().backward()
    assert z.grad.isfinite().all()
    assert (z.grad[1:] == 0).all()


def test_pairs_of_sequences_share_their_last_inputs():
    x = torch.randn(2, 5, 6, 3)
    shared = share_suffix(x, 4)
    assert torch.equal(shared[:, [0, 2, 4]], x[:, [0, 2, 4]])
    assert torch.equal(shared[:, [1, 3], :2], x[:, [1, 3], :2])
    assert torch.equal(shared[:, [1, 3], 2:], x[:, [0, 2], 2:])
    assert torch.equal(share_suffix(x, 0), x)


def test_shared_inputs_show_memory_in_the_geometry():
    family = Elman(input_size=1, hidden_size=4, output_size=1, nonlinearity="relu")
    stack = stack_of(family, models=2)
    params = {name: torch.zeros_like(value) for name, value in stack.params.items()}
    params["weight_ih.0"] += 1.0
    # Model 1 keeps .9 of its state at every step, model 0 a tenth.
    params["weight_hh.0"] += torch.tensor([0.1, 0.9]).double()[:, None, None] * torch.eye(4).double()
    x = share_suffix(torch.rand(2, 2, 12, 1).double(), 6)
    states = observe(Stack(family, params, stack.rows), x, key=0).run.states["h.0"]
    apart = (states[:, :, 0] - states[:, :, 1]).norm(dim=-1)
    ratios = apart[:, 7:] / apart[:, 6:-1]
    torch.testing.assert_close(ratios, torch.tensor([0.1, 0.9]).double()[:, None].expand(2, 5), atol=1e-6, rtol=1e-6)


def test_responses_of_a_linear_network_are_powers_of_its_recurrent_matrix():
    family = Elman(input_size=1, hidden_size=4, output_size=1, nonlinearity="relu")
    stack = stack_of(family, models=1)
    params = {name: torch.zeros_like(value) for name, value in stack.params.items()}
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    params["weight_hh.0"][0] = 0.8 * rotation
    params["weight_ih.0"] += 0.1
    # All units stay above 0, so that the network is linear.
    params["bias.0"] += 100.0
    params["bias.0"][0] -= params["weight_hh.0"][0] @ torch.full((4,), 100.0, dtype=torch.float64)
    stack = Stack(family, params, stack.rows)
    found = responses(observe(stack, torch.rand(1, 4, 20, 1).double(), key=0), KICK_STEPS)
    expected = torch.arange(1, 11) * math.log(0.8)
    torch.testing.assert_close(found[0, :10], expected.double(), atol=1e-6, rtol=1e-6)
    # Ten inputs are left after the middle.
    assert found[0, 10:].isnan().all()


def test_noise_is_drawn_for_each_model_by_key_and_row():
    family = Noisy(input_size=1, hidden_size=4, output_size=1)
    stack = stack_of(family, models=3)
    x = draw_inputs(stack, 2, 6, key=0)
    states = observe(stack, x, key=4).run.states["h.0"]
    silent = observe(Stack(ELMAN, stack.params, stack.rows), x, key=4).run.states["h.0"]
    assert (states - silent)[:, 0].std().item() == pytest.approx(0.1, rel=0.5)
    alone = Stack(family, {k: v[1:2] for k, v in stack.params.items()}, stack.rows[1:2])
    torch.testing.assert_close(observe(alone, x[1:2], key=4).run.states["h.0"], states[1:2])
    assert not torch.allclose(observe(stack, x, key=5).run.states["h.0"], states)
    # A kick meets the noise that the rollout met, without which nothing would be told of the kick.
    left = responses(observe(stack, draw_inputs(stack, 2, 20, key=0), key=4), 8)
    assert left.isfinite().all()


@pytest.mark.parametrize("family", [LIF.examples()[0], GRU(input_size=2, hidden_size=4, output_size=3)], ids=str)
def test_the_loss_of_a_stack_is_the_mean_of_its_models(family):
    stack = stack_of(family)
    objective, encoder = geometry(stack, **EVERYTHING), Invariant().double()
    loss, metrics = objective(encoder, batch_of(stack, key=2))
    alone = []
    for i in range(len(stack)):
        one = Stack(family, {k: v[i : i + 1] for k, v in stack.params.items()}, stack.rows[i : i + 1])
        alone.append(objective(encoder, batch_of(one, key=2))[0].item())
    assert loss.item() == pytest.approx(np.mean(alone), rel=1e-9)
    assert set(metrics) == {"geometry", "size", "outputs", "kicks", "r2_summaries"}


def test_stacks_of_different_tasks_stand_side_by_side():
    stacks = [stack_of(ELMAN, models=2), stack_of(GRU(input_size=2, hidden_size=4, output_size=3), models=3)]
    objective, encoder = geometry(drawn_steps=0), Invariant().double()
    shapes = [(2, 6, 7, 1), (3, 6, 9, 2)]
    rollouts = [(torch.randn(shape).double(), torch.empty(0)) for shape in shapes]
    parts = [
        objective(encoder, batch_of(stack, rollouts=[pair]))[0].item()
        for stack, pair in zip(stacks, rollouts, strict=True)
    ]
    both = replace(batch_of(stacks[0]), stacks=stacks, rollouts=rollouts, rows=torch.arange(5))
    assert objective(encoder, both)[0].item() == pytest.approx((2 * parts[0] + 3 * parts[1]) / 5, rel=1e-9)


def test_the_key_of_the_batch_decides_all_that_is_drawn():
    stack = stack_of(ELMAN)
    objective, encoder = geometry(stack, **EVERYTHING), Invariant().double()
    losses = [objective(encoder, batch_of(stack, key=key))[0].item() for key in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_models_that_overflow_or_stand_still_are_left_out():
    stack = stack_of(Elman(input_size=1, hidden_size=4, output_size=1, nonlinearity="relu"), models=3)
    objective, encoder = geometry(kicks=1.0, outputs=1.0), Invariant().double()
    for value in stack.params.values():
        value[1] = 0.0
    stack.params["weight_hh.0"][2] = 1e200
    stack.params["weight_ih.0"][2] = 1e200
    good = Stack(stack.family, {k: v[:1] for k, v in stack.params.items()}, stack.rows[:1])
    constant = Invariant(share=0.0).double()
    loss, metrics = objective(constant, batch_of(stack))
    assert loss.item() == pytest.approx(objective(constant, batch_of(good))[0].item(), rel=1e-9)
    assert metrics["geometry"][1] == 1
    encoder.layer.zero_grad()
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())
    still = Stack(stack.family, {k: v[1:2] for k, v in stack.params.items()}, stack.rows[1:2])
    assert objective(constant, batch_of(still))[0].item() == 0.0


def test_a_rank_of_the_recurrent_matrix_starts_as_no_change_and_then_is_one():
    class Plain(Emulator):
        def forward(self, encoder, batch):
            raise NotImplementedError

    torch.manual_seed(0)
    changed = Plain(2, 8, rank=3)
    changed.build(5)
    plain = Plain(2, 8)
    plain.build(5)
    plain.load_state_dict({k: v for k, v in changed.state_dict().items() if k in plain.state_dict()})
    e, x = torch.randn(4, 5), torch.randn(4, 3, 6, 2)
    torch.testing.assert_close(changed.emulate(e, x), plain.emulate(e, x))
    nn.init.normal_(changed.to_gates.weight)
    # One model at a time, with the sum of both matrices in torch's own GRU.
    for model in range(4):
        u = changed.to_gates(e[model]).unflatten(0, (3, 24)).T / 3**0.5
        v = changed.from_state(e[model]).unflatten(0, (8, 3)) / 8**0.5
        own = Plain(2, 8)
        own.build(5)
        own.load_state_dict(plain.state_dict())
        own.emulator.weight_hh_l0.data += u @ v.T
        one = slice(model, model + 1)
        torch.testing.assert_close(changed.emulate(e[one], x[one]), own.emulate(e[one], x[one]))
    with pytest.raises(ValueError, match=r"`rank` \(=3\) needs an emulator of one layer"):
        Plain(2, 8, num_layers=2, rank=3)


def test_a_tiny_zoo_trains_the_loss_falls_and_files_name_adjacent_labels(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", [ELMAN, GRU(input_size=2, hidden_size=4, output_size=3)], 10)
    torch.manual_seed(0)
    encoder = MessagePassing(embedding_dim=6, edge_dim=4, node_dim=8, num_layers=2)
    module = EmbeddingModule(encoder, StateGeometry(width=16, kicks=0.3, summaries=0.3), learning_rate=1e-2)
    data = ZooDataModule(zoo, batch_size=16, groups_per_batch=2)

    def loss(one):
        one.eval()
        with torch.no_grad():
            return sum(float(one.objective(one.encoder, batch)[0]) for batch in data.val_dataloader())

    data.serve(with_rollouts=True)
    best = fit(module, data, tmp_path / "run", max_epochs=6)
    trained = load(best)
    fresh = load(best)
    for part in (fresh.encoder, fresh.objective.emulator, *fresh.objective.write.values()):
        for layer in part.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    assert loss(trained) < 0.9 * loss(fresh)
    said = torch.load(best, weights_only=True)["weightspace"]
    adjacent = ["state_effective_rank", "state_participation_ratio", "state_stable_rank", "activity_dimension"]
    adjacent += ["memory_decay_rate", "memory_half_life", "memory_decay_fit"]
    adjacent += ["largest_lyapunov", "lyapunov_1", "gradient_log_slope"]
    assert (said["learned_with"], said["label_adjacent"]) == ("no_labels", adjacent)
    with safetensors.safe_open(embed(best, zoo, tmp_path / "e.safetensors"), framework="pt") as file:
        assert json.loads(file.metadata()["weightspace"])["label_adjacent"] == adjacent


def test_wrong_settings_and_zoos_that_lack_something_are_refused():
    for options, message in (
        ({"shared_suffix": 1.0}, r"`shared_suffix` \(=1.0\) must be at least 0 and below 1"),
        ({"drawn_steps": 1}, r"`drawn_steps` \(=1\) must be 0, for stored inputs, or at least 2"),
        ({"kicks": -1.0}, r"`kicks` \(=-1.0\) must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            StateGeometry(**options)
    with pytest.raises(ValueError, match="set `drawn_steps` for inputs that are drawn"):
        geometry(drawn_steps=0)(Invariant().double(), batch_of(stack_of(ELMAN)))
    empty = torch.empty(0, 0)
    with pytest.raises(ValueError, match=r"Axis 'input' of the zoo has size 9, but StateGeometry was made for"):
        StateGeometry(max_input_size=4).fit_scales(
            Training(targets=empty, cell_means=empty, input_size=9, output_size=1)
        )
    assert StateGeometry().needs_rollouts
    assert not StateGeometry(drawn_steps=8).needs_rollouts


def test_labels_that_the_gram_matrix_alone_tells_are_named_as_adjacent():
    states = torch.randn(5, 40, 7, dtype=torch.float64) * torch.tensor([3, 2, 1, 0.5, 0.2, 0.1, 0.1])
    values = torch.linalg.eigvalsh(gram(states)[0]).flip(-1)
    shares = values.cumsum(1) / values.sum(1, keepdim=True)
    assert torch.equal(dimension(states), 1 + (shares < SHARE).sum(1).double())
    (column,) = [one.name for one in Activity().columns(ELMAN.spec) if "dimension" in one.name]
    assert {column, *STATE_RANKS} <= set(StateGeometry().label_adjacent) < set(StateGeometry(kicks=1).label_adjacent)
    assert set(StateGeometry(kicks=1).label_adjacent) <= set(ADJACENT)
