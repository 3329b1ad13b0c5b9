"""Objectives against closed forms, independent references, and what they must not depend on."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace import families, objectives
from weightspace.data.batch import Batch, Training
from weightspace.data.targets import Target
from weightspace.encoders import Encoder
from weightspace.objectives.emulation import Emulation
from weightspace.objectives.supervised import Supervised
from weightspace.store import Stack, cell_means


class Given(Encoder):
    """Reads embeddings that stand in the bias of an Elman network, so that tests choose them."""

    def forward(self, stacks):
        """Embeddings (models, embedding_dim)."""
        return torch.cat([stack.params["bias.0"] for stack in stacks])

    def fit_standardisation(self, stacks):
        """Nothing to learn."""


def batch_of(embeddings: Tensor, targets=None, cell_means=None, **fields) -> Batch:
    models, size = embeddings.shape
    family = families.load("Elman", {"input_size": 1, "hidden_size": size, "output_size": 1})
    params = {name: torch.zeros(models, *family.spec.shape(name)) for name in family.spec.tensors}
    params["bias.0"] = embeddings
    nothing = torch.empty(models, 0)
    return Batch(
        stacks=[Stack(family, params, torch.arange(models))],
        rows=torch.arange(models),
        targets=nothing if targets is None else targets,
        cell_means=nothing if cell_means is None else cell_means,
        **fields,
    )


def supervised(*names, **options):
    objective = Supervised(list(names), **options)
    objective.build(3)
    return objective


def training(targets, cell_means):
    return Training(targets=targets, cell_means=cell_means, input_size=1, output_size=1)


def test_every_objective_is_found_by_its_class_name():
    assert {"Supervised", "Emulation"} <= set(objectives.available())
    for objective in objectives.available().values():
        assert objective.learned_with in ("labels", "no_labels")


def test_scales_are_mean_and_deviation_of_labels_and_of_residuals():
    rng = np.random.default_rng(0)
    values = rng.normal(5.0, 3.0, (200, 2))
    values[:50, 1] = np.nan
    cells = rng.normal(0.0, 1.0, (200, 2))
    objective = supervised("a", "b")
    objective.fit_scales(training(torch.from_numpy(values), torch.from_numpy(cells)))
    for row, expected in enumerate((values, values - cells)):
        np.testing.assert_allclose(objective.mean[row], np.nanmean(expected, 0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(objective.scale[row], np.nanstd(expected, 0), rtol=1e-5)


def test_a_label_that_is_constant_within_cells_leaves_a_finite_loss():
    objective = supervised("a")
    values, cells = np.repeat([0.1, 1000.1, 7.3], [3, 7, 5]), np.repeat([0, 1, 2], [3, 7, 5])
    means = cell_means(values, cells, np.arange(15))
    # Sums of equal numbers round, so that no mean need be that number.
    assert np.any(means != values)
    targets, means = (torch.from_numpy(column)[:, None] for column in (values, means))
    objective.fit_scales(training(targets, means))
    assert objective.scale[1].item() == 1.0
    nn.init.zeros_(objective.head[-1].weight)
    nn.init.zeros_(objective.head[-1].bias)
    # Where the mean is next to a number between two of float32, the residual is one of its steps, 6e-5.
    off = means.float() + torch.tensor([6e-5])
    _, metrics = objective(Given(3), batch_of(torch.zeros(15, 3), targets.float(), off))
    assert metrics["r2_within_cell.a"][0].item() == pytest.approx(1, abs=1e-6)


def test_loss_and_metrics_equal_the_closed_form_with_missing_labels_left_out():
    objective = supervised("a", "b", residual_weight=0.5)
    nn.init.zeros_(objective.head[-1].weight)
    nn.init.zeros_(objective.head[-1].bias)
    objective.scale.copy_(torch.tensor([[2.0, 1.0], [4.0, 1.0]]))
    nan = torch.nan
    targets = torch.tensor([[2.0, nan], [4.0, 3.0]])
    # The second model's cell was never seen in training.
    cells = torch.tensor([[1.0, nan], [nan, nan]])
    loss, metrics = objective(Given(3), batch_of(torch.zeros(2, 3), targets, cells))
    # Predictions are 0: label a gives ((2/2)^2 + (4/2)^2) / 2, its residual ((2-1)/4)^2, label b 3^2, and nothing else.
    assert loss.item() == pytest.approx((2.5 + 9.0 + 0.5 * 0.0625) / 2.5)
    found = {name: (value.item(), count) for name, (value, count) in metrics.items()}
    assert found == {"r2.a": (-1.5, 2), "r2.b": (-8.0, 1), "r2_within_cell.a": (1 - 0.0625, 1)}


def test_missing_labels_send_no_gradient_and_batches_without_labels_do_no_harm():
    objective = supervised("a")
    embeddings = torch.randn(3, 3, requires_grad=True)
    targets = torch.tensor([[1.0], [torch.nan], [2.0]])
    objective(Given(3), batch_of(embeddings, targets, torch.zeros(3, 1)))[0].backward()
    assert torch.equal(embeddings.grad[1], torch.zeros(3))
    assert (embeddings.grad[[0, 2]] != 0).all()
    nothing = torch.full((3, 1), torch.nan)
    loss, metrics = objective(Given(3), batch_of(embeddings, nothing, nothing))
    assert loss.item() == 0.0
    assert metrics == {}
    loss.backward()
    assert torch.isfinite(embeddings.grad).all()


def test_each_target_counts_the_same_however_often_it_applies():
    objective = supervised("a", "b", residual_weight=0.0)
    nn.init.zeros_(objective.head[-1].weight)
    nn.init.zeros_(objective.head[-1].bias)
    nan = torch.nan
    rare = torch.tensor([[1.0, 3.0], [1.0, nan], [1.0, nan], [1.0, nan]])
    loss, _ = objective(Given(3), batch_of(torch.zeros(4, 3), rare, torch.full((4, 2), nan)))
    assert loss.item() == pytest.approx((1.0 + 9.0) / 2)


def test_huber_grows_linearly_where_squares_would_explode():
    objective = supervised("a", loss="huber", residual_weight=0.0)
    nn.init.zeros_(objective.head[-1].weight)
    nn.init.zeros_(objective.head[-1].bias)
    loss, _ = objective(Given(3), batch_of(torch.zeros(1, 3), torch.tensor([[100.0]]), torch.full((1, 1), torch.nan)))
    assert loss.item() == pytest.approx(99.5)


def test_targets_are_required_and_may_be_given_by_name():
    assert supervised("a", Target(name="b", low=0.0)).targets == (Target(name="a"), Target(name="b", low=0.0))
    with pytest.raises(ValueError, match="`targets` is empty"):
        Supervised([])
    with pytest.raises(ValueError, match="must be 'mse' or 'huber'"):
        Supervised(["a"], loss="mean")


def emulation(**options):
    torch.manual_seed(0)
    objective = Emulation(**{"max_input_size": 4, "max_output_size": 5, "width": 8, **options})
    objective.build(3)
    return objective


def rollouts(models, inputs, outputs, sequences=6, time=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(models, sequences, time, inputs, generator=generator)
    return x, torch.randn(models, sequences, time, outputs, generator=generator)


def test_the_loss_is_the_divergence_of_softmaxed_outputs():
    objective = emulation(sequences_per_model=6).eval()
    embeddings, (x, outputs) = torch.randn(2, 3), rollouts(2, 2, 3)
    loss, metrics = objective(Given(3), batch_of(embeddings, rollouts=[(x, outputs)], output_kinds=["categorical"]))
    emulated = objective._emulate(embeddings, x, 3)
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (outputs, emulated))
    assert loss.item() == pytest.approx(torch.distributions.kl_divergence(p, q).mean().item(), rel=1e-5)
    agreement = (outputs.argmax(-1) == emulated.argmax(-1)).double().mean().item()
    assert metrics["agreement"][0].item() == pytest.approx(agreement)


def test_an_emulator_whose_matrices_the_embedding_changes_starts_as_the_plain_one_and_learns_to_change():
    embeddings, batch_parts = torch.randn(2, 3), rollouts(2, 2, 3)
    batch = batch_of(embeddings, rollouts=[batch_parts], output_kinds=["categorical"])
    plain, changed = emulation().eval(), emulation(rank=2).eval()
    before = plain(Given(3), batch)[0]
    loss = changed(Given(3), batch)[0]
    assert loss.item() == pytest.approx(before.item(), rel=1e-6)
    loss.backward()
    assert (changed.to_gates.weight.grad != 0).any()


def test_several_heads_are_compared_head_by_head():
    objective = emulation(sequences_per_model=6, max_output_size=6).eval()
    embeddings, (x, outputs) = torch.randn(2, 3), rollouts(2, 2, 6)
    kinds = {"output_kinds": ["categorical"], "classes_per_head": [2]}
    loss, metrics = objective(Given(3), batch_of(embeddings, rollouts=[(x, outputs)], **kinds))
    emulated = objective._emulate(embeddings, x, 6)
    divergences, agreements = [], []
    for head in range(3):
        p, q = (
            torch.distributions.Bernoulli(logits=logits[..., 2 * head + 1] - logits[..., 2 * head])
            for logits in (outputs, emulated)
        )
        divergences.append(torch.distributions.kl_divergence(p, q).mean().item())
        agreements.append(((p.probs > 0.5) == (q.probs > 0.5)).double().mean().item())
    assert loss.item() == pytest.approx(sum(divergences) / 3, rel=1e-5)
    assert metrics["agreement"][0].item() == pytest.approx(sum(agreements) / 3)
    # Logits of one head may all be shifted by anything, which changes no answer; of one softmax over all they may not.
    shifted = outputs + torch.tensor([5.0, 5.0, 0.0, 0.0, -2.0, -2.0])
    again, _ = objective(Given(3), batch_of(embeddings, rollouts=[(x, shifted)], **kinds))
    assert again.item() == pytest.approx(loss.item(), rel=1e-4)


def test_stacks_with_one_head_and_with_several_stand_side_by_side():
    objective = emulation(sequences_per_model=6).eval()
    e, parts = torch.randn(4, 3), [rollouts(2, 2, 4), rollouts(2, 2, 4, seed=1)]
    kinds, heads = ["categorical"] * 2, [None, 2]
    pieces = [
        batch_of(own, rollouts=[part], output_kinds=kinds[:1], classes_per_head=[classes])
        for own, part, classes in zip(e.split(2), parts, heads, strict=True)
    ]
    both = batch_of(e, rollouts=parts, output_kinds=kinds, classes_per_head=heads)
    both.stacks = [stack for piece in pieces for stack in piece.stacks]
    first, second, together = (objective(Given(3), batch)[0].item() for batch in (*pieces, both))
    assert together == pytest.approx((first + second) / 2, rel=1e-5)


def test_heads_that_do_not_divide_the_outputs_are_refused():
    layout = {"output_kinds": ["categorical"], "classes_per_head": [2]}
    batch = batch_of(torch.zeros(1, 3), rollouts=[rollouts(1, 2, 3)], **layout)
    with pytest.raises(ValueError, match="3 outputs and says that each head has 2 classes"):
        emulation()(Given(3), batch)


def test_continuous_outputs_are_compared_in_units_of_their_own_variance():
    objective = emulation(sequences_per_model=6).eval()
    embeddings, (x, outputs) = torch.randn(2, 3), rollouts(2, 2, 3)
    outputs[1] *= 100
    batch = batch_of(embeddings, rollouts=[(x, outputs)], output_kinds=["continuous"])
    loss, metrics = objective(Given(3), batch)
    emulated = objective._emulate(embeddings, x, 3)
    errors = [F.mse_loss(emulated[i], outputs[i]) / outputs[i].var(correction=0) for i in range(2)]
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)
    assert "agreement" not in metrics


def test_smaller_tasks_use_part_of_the_emulator_as_if_padded_with_zeros():
    objective = emulation().eval()
    e, (x, _) = torch.randn(2, 3), rollouts(2, 2, 3)
    padded = objective._emulate(e, F.pad(x, (0, 2)), 5)[..., :3]
    torch.testing.assert_close(objective._emulate(e, x, 3), padded)


def test_stacks_of_different_tasks_give_the_mean_over_models():
    objective = emulation(sequences_per_model=6).eval()
    e = torch.randn(5, 3)
    parts = [rollouts(2, 2, 3, time=5), rollouts(3, 1, 2, time=9, seed=1)]
    kinds = ["categorical", "categorical"]
    one = batch_of(e[:2], rollouts=parts[:1], output_kinds=kinds[:1])
    two = batch_of(e[2:], rollouts=parts[1:], output_kinds=kinds[:1])
    both = batch_of(e, rollouts=parts, output_kinds=kinds)
    both.stacks = [*one.stacks, *two.stacks]
    first, second, together = (objective(Given(3), batch)[0].item() for batch in (one, two, both))
    assert together == pytest.approx((2 * first + 3 * second) / 5, rel=1e-5)


def test_training_draws_sequences_by_the_batch_key_and_evaluation_takes_the_same_few():
    objective = emulation(sequences_per_model=2)
    parts = [rollouts(2, 2, 3)]
    e = torch.randn(2, 3)

    def loss(key):
        return objective(Given(3), batch_of(e, rollouts=parts, output_kinds=["categorical"], key=key))[0].item()

    assert loss(1) == loss(1)
    assert len({loss(key) for key in range(8)}) > 1
    objective.eval()
    assert loss(1) == loss(2)


def test_the_emulator_learns_to_tell_models_apart_by_their_embedding_alone():
    objective = emulation(width=16, sequences_per_model=6)
    x, _ = rollouts(2, 1, 2)
    x[1] = x[0]
    # Model 1 does the opposite of model 0 on the same inputs.
    outputs = torch.cat([x, -x], dim=-1) * torch.tensor([3.0, -3.0])[:, None, None, None]
    batch = batch_of(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]), rollouts=[(x, outputs)], output_kinds=["categorical"])
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss, metrics = objective(Given(3), batch)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert metrics["agreement"][0].item() > 0.9


def test_zoos_with_larger_axes_or_without_rollouts_are_refused():
    objective = emulation()
    empty = torch.empty(0, 0)
    with pytest.raises(ValueError, match=r"Axis 'output' of the zoo has size 9, .* `max_output_size` \(=5\)"):
        objective.fit_scales(Training(targets=empty, cell_means=empty, input_size=1, output_size=9))
    with pytest.raises(ValueError, match="has no rollouts"):
        objective(Given(3), batch_of(torch.zeros(1, 3)))


@pytest.mark.parametrize("make", [lambda: supervised("a", "b", head_size=7), emulation], ids=["labels", "no_labels"])
def test_a_fresh_objective_takes_the_state_of_a_trained_one(make):
    trained = make()
    for buffer in [*trained.parameters(), *trained.buffers()]:
        buffer.data.normal_()
    fresh = make()
    fresh.load_state_dict(trained.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), trained.state_dict().values(), strict=True)
    )
