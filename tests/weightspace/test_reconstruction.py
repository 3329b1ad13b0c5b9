"""Reconstruction: summaries and completion against numpy, what the loss must not see, and that it can be learned."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.weightspace.zoos import write_zoo
from weightspace import families
from weightspace.data.augment import MaskEdges
from weightspace.data.batch import Batch, Training
from weightspace.data.datamodule import ZooDataModule
from weightspace.encoders import Encoder
from weightspace.encoders.message_passing import MessagePassing
from weightspace.families.elman import Elman
from weightspace.families.gru import GRU
from weightspace.graph import EDGE_TYPES
from weightspace.objectives.completion import NUM_BASES, Completion
from weightspace.objectives.contrastive import spread_of
from weightspace.objectives.reconstruction import Reconstruction
from weightspace.spec import ROW_ROLES, GroupElement
from weightspace.store import Stack
from weightspace.summaries import NUM_SUMMARIES, SHARES, signs_of, summaries_of
from weightspace.training.embed import load
from weightspace.training.module import EmbeddingModule, fit

ELMAN = Elman(input_size=1, hidden_size=4, output_size=1)
EXAMPLES = [example for family in families.available().values() for example in family.examples()]
DRIVE = ROW_ROLES.index("drive")


class Invariant(Encoder):
    """A linear map of the summaries, and so invariant to permutations and signs; with share 0 a constant."""

    symmetry = frozenset({"permutation", "sign"})

    def __init__(self, embedding_dim: int = 6, share: float = 1.0) -> None:
        super().__init__(embedding_dim)
        self.share = share
        self.layer = nn.Linear(NUM_SUMMARIES, embedding_dim)

    def forward(self, stacks):
        """Embeddings (models, embedding_dim)."""
        found = torch.cat([summaries_of(stack) for stack in stacks])
        return self.layer(self.share * found.nan_to_num(0.0))

    def fit_standardisation(self, stacks):
        """Nothing to learn."""


def stack_of(family, models=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    drawn = [family.spec.random_params(generator, dtype) for _ in range(models)]
    return Stack(family, {k: torch.stack([one[k] for one in drawn]) for k in drawn[0]}, torch.arange(models))


def batch_of(stack, **fields):
    nothing = torch.empty(len(stack), 0)
    return Batch(stacks=[stack], rows=torch.arange(len(stack)), targets=nothing, cell_means=nothing, **fields)


def moves_of(family, models, signs=True):
    """Permutations, and of every gauge the signs alone."""
    element = family.spec.random_elements(models, torch.Generator().manual_seed(2), torch.float64)
    return GroupElement(
        element.permutations, {k: g.sign() if signs else torch.ones_like(g) for k, g in element.gauges.items()}
    )


def reconstruction(*stacks, **options):
    torch.manual_seed(0)
    objective = Reconstruction(**{"width": 8, **options})
    objective.build(6)
    empty = torch.empty(0, 0)
    objective.fit_scales(Training(targets=empty, cell_means=empty, input_size=1, output_size=1, stacks=iter(stacks)))
    return objective.double()


def test_sign_charges_say_which_maps_are_conjugated():
    gru = GRU(input_size=2, hidden_size=3, output_size=1)
    own = frozenset({"sign.0"})
    nothing: frozenset[str] = frozenset()
    # Of the rows r, z, n, the candidate's alone flips with its target.
    assert [signs_of(gru.spec, "weight_hh.0", row) for row in range(3)] == [(nothing, own), (nothing, own), (own, own)]
    assert [signs_of(gru.spec, "weight_ih.0", row)[0] for row in range(3)] == [nothing, nothing, own]
    relu = Elman(input_size=1, hidden_size=3, output_size=1, nonlinearity="relu")
    assert signs_of(relu.spec, "weight_hh.0", 0) == (nothing, nothing)


def test_summaries_equal_a_loop_over_models():
    family = Elman(input_size=2, hidden_size=5, output_size=3)
    stack = stack_of(family)
    found = summaries_of(stack)
    for i in range(len(stack)):
        w = stack.params["weight_hh.0"][i].numpy()
        outside = w[~np.eye(5, dtype=bool)]
        for kind, values in (
            ("recurrent", outside),
            ("self", np.diag(w)),
            ("input", stack.params["weight_ih.0"][i].numpy().ravel()),
            ("output", stack.params["weight_ho"][i].numpy().ravel()),
        ):
            start = (1 + len(SHARES)) * (EDGE_TYPES.index(kind) * len(ROW_ROLES) + DRIVE)
            rms = np.sqrt((values**2).mean())
            expected = [np.log(rms), *np.quantile(np.abs(values) / rms, SHARES)]
            np.testing.assert_allclose(found[i, start : start + len(expected)], expected, rtol=1e-6)
        scaled = w / np.sqrt((w**2).mean() * 5)
        singular = np.linalg.svd(scaled, compute_uv=False)
        traces = [np.trace(np.linalg.matrix_power(scaled, k)) / np.sqrt(5) for k in (1, 2, 3, 4)]
        last = found[i, -9 * len(ROW_ROLES) :].unflatten(0, (len(ROW_ROLES), 9))
        np.testing.assert_allclose(last[DRIVE], [*np.quantile(singular, SHARES), *traces], rtol=1e-9)
        assert last[1:].isnan().all()


def test_pruned_connections_are_left_out_of_the_summaries():
    from weightspace.summaries import _sizes

    values = torch.tensor([[1.0, -2.0, 3.0, 9.0], [5.0, 5.0, 5.0, 5.0]])
    present = torch.tensor([[True, True, True, False], [False] * 4])
    rms = np.sqrt(14 / 3)
    expected = [np.log(rms), *np.quantile(np.array([1, 2, 3]) / rms, SHARES)]
    np.testing.assert_allclose(_sizes(values, present)[0], expected, rtol=1e-5)
    assert _sizes(values, present)[1].isnan().all()


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
def test_summaries_see_neither_permutations_nor_signs_but_a_lone_permutation(family):
    stack = stack_of(family)
    moved = Stack(family, family.spec.act_stacked(moves_of(family, 5), stack.params), stack.rows)
    summaries = summaries_of(stack)
    torch.testing.assert_close(summaries_of(moved), summaries, equal_nan=True, atol=1e-9, rtol=1e-9)
    for name in family.effective_spec.recurrent():
        if name in stack.params:
            broken = Stack(family, {**stack.params, name: stack.params[name].roll(1, dims=-2)}, stack.rows)
            assert (summaries_of(broken) - summaries).nan_to_num(0.0).abs().max() > 1e-3


@pytest.mark.parametrize("family", EXAMPLES, ids=str)
@pytest.mark.parametrize("signs", [True, False], ids=["signs and permutations", "permutations"])
def test_the_loss_does_not_see_the_group_that_its_encoder_does_not_see(family, signs):
    stack, spec = stack_of(family), family.spec
    torch.manual_seed(1)
    encoder = Invariant() if signs else MessagePassing(embedding_dim=6, edge_dim=4, node_dim=8, num_layers=2)
    assert encoder.symmetry & Reconstruction.symmetry == ({"permutation", "sign"} if signs else {"permutation"})
    objective, encoder = reconstruction(stack, share=0.4), encoder.double().eval()
    element = moves_of(family, 5, signs)
    hidden = objective.masking.draw(stack)
    still = GroupElement(element.permutations, {k: torch.ones_like(g) for k, g in element.gauges.items()})
    carried = {k: v > 0.5 for k, v in spec.act_stacked(still, {k: v.double() for k, v in hidden.items()}).items()}
    moved = Stack(family, spec.act_stacked(element, stack.params), stack.rows)
    loss = objective.loss(encoder, [stack], [hidden])[0]
    torch.testing.assert_close(objective.loss(encoder, [moved], [carried])[0], loss, atol=1e-9, rtol=1e-9)
    # A mask that does not move along hides other connections.
    if any(not torch.equal(carried[name], hidden[name]) for name in hidden):
        assert abs(objective.loss(encoder, [moved], [hidden])[0] - loss) > 1e-6


@pytest.mark.parametrize("family", [GRU(input_size=2, hidden_size=5, output_size=1), EXAMPLES[0]], ids=str)
def test_hidden_weights_are_predicted_by_the_written_out_combination(family):
    stack = stack_of(family, 3)
    hidden = MaskEdges(0.4).draw(stack)
    torch.manual_seed(0)
    completion = Completion(6, 8).double()
    a = np.linspace(-1, 1.3, NUM_BASES)
    nn.init.zeros_(completion.coefficients[-1].weight)
    completion.coefficients[-1].bias.data.copy_(torch.from_numpy(a))
    errors, counts = completion(stack, hidden, torch.randn(3, 6, dtype=torch.float64))
    for model in range(3):
        error, count = 0.0, 0
        for name, to, source in family.spec.matrices():
            rows = family.spec.num_rows(name)
            full = stack.params[name][model].reshape(rows, *stack.params[name].shape[-2:]).numpy()
            gone = hidden[name][model].reshape(full.shape).numpy()
            for row in range(rows):
                w, h = full[row], gone[row]
                rms = np.sqrt((w[~h] ** 2).mean()) if (~h).any() else 0.0
                m = np.where(h, 0.0, w) / max(rms, 1e-12)
                by_target, by_source = signs_of(family.spec, name, row)
                t, s = m.shape
                predicted = a[0] * m @ m.T @ m / (t + s) + a[1] * m @ m.T @ m @ m.T @ m / (t + s) ** 2
                predicted += a[2] * (not by_target and not by_source)
                seen = np.maximum((~h).sum(0), 1)[None], np.maximum((~h).sum(1), 1)[:, None]
                predicted = predicted + a[3] * (not by_target) * m.sum(0)[None] / seen[0]
                predicted = predicted + a[4] * (not by_source) * m.sum(1)[:, None] / seen[1]
                if to == source and by_target == by_source:
                    predicted = predicted + a[5] * m.T + a[6] * m @ m / np.sqrt(t)
                error += (((rms * predicted - w) ** 2)[h] / (w**2).mean()).sum()
                count += h.sum()
        assert errors[model].item() == pytest.approx(error)
        assert counts[model].item() == count


def test_hidden_weights_of_low_rank_maps_are_found_and_those_of_random_ones_are_not():
    family = Elman(input_size=1, hidden_size=16, output_size=1)
    generator = torch.Generator().manual_seed(0)
    error = {}
    for kind in ("low rank", "random"):
        stack = stack_of(family, 12, dtype=torch.float32)
        if kind == "low rank":
            u, v = torch.randn(2, 12, 16, 1, generator=generator)
            stack.params["weight_hh.0"] = u @ v.mT
        torch.manual_seed(0)
        completion, masking = Completion(2, 16), MaskEdges(0.15)
        optimizer = torch.optim.Adam(completion.parameters(), lr=0.02)
        for _ in range(60):
            hidden = {"weight_hh.0": masking.draw(stack)["weight_hh.0"]}
            errors, counts = completion(stack, hidden, torch.zeros(12, 2))
            loss = errors.sum() / counts.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        error[kind] = loss.item()
    assert error["low rank"] < 0.4
    assert 0.7 < error["random"] < 1.3


def test_edges_are_hidden_from_the_encoder_by_the_key_of_the_batch():
    stack = stack_of(ELMAN)

    class Witness(Invariant):
        def forward(self, stacks):
            """Remember what was shown."""
            self.shown = stacks[0].params
            return super().forward(stacks)

    objective, encoder = reconstruction(stack, share=0.5), Witness().double()
    objective(encoder, batch_of(stack, key=3))
    first = encoder.shown["weight_hh.0"]
    objective(encoder, batch_of(stack, key=3))
    assert torch.equal(encoder.shown["weight_hh.0"], first)
    assert 0.3 < (first == 0).double().mean() < 0.7
    objective(encoder, batch_of(stack, key=4))
    assert not torch.equal(encoder.shown["weight_hh.0"], first)
    assert (stack.params["weight_hh.0"] != 0).all()


def test_scales_are_mean_and_deviation_of_the_training_models_that_have_a_summary():
    stacks = [stack_of(ELMAN, 7), stack_of(GRU(input_size=2, hidden_size=4, output_size=3), 4)]
    objective = reconstruction(*stacks)
    values = torch.cat([summaries_of(stack) for stack in stacks]).numpy()
    had = ~np.isnan(values).all(0)
    np.testing.assert_allclose(objective.mean[had], np.nanmean(values[:, had], 0), rtol=1e-5, atol=1e-6)
    varying = objective.scale.numpy() > 0
    np.testing.assert_allclose(objective.scale[varying], np.nanstd(values[:, varying], 0), rtol=1e-3, atol=1e-6)
    assert (np.nanstd(values[:, had & ~varying], 0) < 1e-4).all()
    assert varying.sum() > 50


def test_a_collapsed_embedding_explains_nothing_of_the_summaries():
    stack = stack_of(ELMAN, 40)
    r2 = {}
    for share in (0.0, 1.0):
        objective, encoder = reconstruction(stack), Invariant(share=share).double()
        optimizer = torch.optim.Adam([*objective.parameters(), *encoder.parameters()], lr=0.01)
        for _ in range(60):
            loss, metrics = objective(encoder, batch_of(stack))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        r2[share] = metrics["r2_summaries"][0].item()
    assert r2[0.0] <= 1e-3
    assert r2[1.0] > 0.3


def of_different_gain(models, seed):
    """Models about which an embedding has something to tell: a random one has independent summaries."""
    stack = stack_of(ELMAN, models, seed, torch.float32)
    gains = torch.exp(torch.randn(models, generator=torch.Generator().manual_seed(seed)))
    params = {name: tensor * gains.view(-1, *[1] * (tensor.dim() - 1)) for name, tensor in stack.params.items()}
    return Stack(ELMAN, params, stack.rows)


def test_training_lowers_the_loss_of_unseen_models_and_does_not_collapse():
    seen, unseen = of_different_gain(100, 0), of_different_gain(60, 1)
    objective = reconstruction(seen, width=16).float()
    encoder = MessagePassing(embedding_dim=6, edge_dim=4, node_dim=8, num_layers=2)
    encoder.fit_standardisation([seen])
    parameters = [*objective.parameters(), *encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    with torch.no_grad():
        before = [objective(encoder, batch_of(stack, key=7))[0].item() for stack in (seen, unseen)]
    for step in range(90):
        loss = objective(encoder, batch_of(seen, key=step))[0]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    with torch.no_grad():
        after, metrics = zip(*(objective(encoder, batch_of(stack, key=7)) for stack in (seen, unseen)), strict=True)
        assert spread_of(encoder([unseen])) > 0.05
    assert after[0].item() < before[0] - 0.05
    assert after[1].item() < before[1] - 0.02
    assert all(one["r2_summaries"][0] > 0.05 for one in metrics)


def test_scales_are_learned_when_fitting_and_the_checkpoint_reloads(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", [ELMAN, GRU(input_size=2, hidden_size=4, output_size=3)], 10, rollouts=False)
    torch.manual_seed(0)
    encoder = MessagePassing(embedding_dim=6, edge_dim=4, node_dim=8, num_layers=2)
    module = EmbeddingModule(encoder, Reconstruction(share=0.2, width=16), learning_rate=1e-2)
    data = ZooDataModule(zoo, batch_size=8, groups_per_batch=2)
    again = load(fit(module, data, tmp_path / "run", max_epochs=1))
    objective = again.objective
    assert objective.masking.share == 0.2
    used = torch.cat([summaries_of(stack) for stack in data.training_stacks()])
    torch.testing.assert_close(objective.mean, used.nanmean(0).nan_to_num(0.0), atol=1e-5, rtol=1e-4)
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["weightspace"]["learned_with"] == "no_labels"
    assert torch.equal(content["state_dict"]["objective.scale"], objective.scale)
    batch = batch_of(stack_of(ELMAN, dtype=torch.float32))
    again.eval(), module.eval()
    assert torch.equal(objective(again.encoder, batch)[0], module.objective(module.encoder, batch)[0])
