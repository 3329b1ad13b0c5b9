"""The slots of a gradient learner: its gradients, what it cannot take, given params, masks that change."""

import sys
from pathlib import Path

import pytest
import torch

from tests.zoo_builder.linear_family import Linear
from weightspace.families.gru import GRU
from weightspace.rollout import Streams
from zoo_builder.learning.base import Run, fresh_params
from zoo_builder.learning.batches import UPDATES_PER_DRAW
from zoo_builder.learning.bptt import BPTT
from zoo_builder.learning.descent import Descent
from zoo_builder.learning.exams import Exams
from zoo_builder.learning.planted import Planted
from zoo_builder.learning.truncated_bptt import TruncatedBPTT
from zoo_builder.members import Members
from zoo_builder.tasks.adding import Adding
from zoo_builder.tasks.delayed_recall import DelayedRecall

sys.path.append(str(Path(__file__).parent / "packages"))
from trial_learners.pruning import Masked, Pruning

IDS = ["a", "b", "c", "d"]
TASK = Adding(num_steps=7)
MASKED = Masked(input_size=2, hidden_size=4, output_size=1)
LINEAR = Linear(input_size=2, hidden_size=4, output_size=1)


def truncated_by_hand(family, params, batch, window):
    """Gradients of one model after another, step by step, with states detached at the start of each window."""
    found = []
    for model in range(len(batch.x)):
        leaves = {name: tensor[model].clone().requires_grad_() for name, tensor in params.items()}
        state, outputs = family.initial_state(leaves, batch.start[model]), []
        for step, x in enumerate(batch.x[model]):
            if step and step % window == 0:
                state = {name: tensor.detach() for name, tensor in state.items()}
            state = family.step(leaves, state, x, {})
            outputs.append(family.readout(leaves, state))
        padded = torch.zeros(len(batch.x), len(outputs), *outputs[0].shape)
        padded[model] = torch.stack(outputs)
        losses = TASK.loss(padded, batch)
        found.append(torch.autograd.grad(losses[model], list(leaves.values())))
    return dict(zip(params, (torch.stack(tensors) for tensors in zip(*found, strict=True)), strict=True))


@pytest.mark.parametrize("method", ["native", "stacked"])
@pytest.mark.parametrize("window", [1, 2, 3, 6])
@pytest.mark.parametrize("family", [LINEAR, GRU(input_size=2, hidden_size=3, output_size=1)], ids=["linear", "gru"])
def test_gradients_of_a_learner_of_a_few_lines_are_those_found_by_hand(family, window, method):
    params, batch = fresh_params(family, 0, IDS), TASK.sample({}, Streams(0, IDS, "train"), 5, "train")
    _, gradients = TruncatedBPTT(window=window).gradients(family, TASK, params, batch, {}, method)
    for name, expected in truncated_by_hand(family, params, batch, window).items():
        torch.testing.assert_close(gradients[name], expected, atol=2e-6, rtol=1e-4)


def test_learners_differ_by_their_gradients_alone():
    members, snapshots = Members(0, IDS), [0, 1, 4]
    whole, truncated = (
        learner.learn(LINEAR, TASK, members, snapshots)
        for learner in (BPTT(num_updates=4, batch_size=3), TruncatedBPTT(num_updates=4, batch_size=3, window=2))
    )
    for name, tensor in whole.params.items():
        assert torch.equal(tensor[:, 0], truncated.params[name][:, 0])
    # The read-out's gradient passes through no state, and Adam's first step does not see how others are clipped.
    torch.testing.assert_close(whole.params["c"][:, 1], truncated.params["c"][:, 1], atol=1e-6, rtol=1e-5)
    assert (whole.params["a"][:, 1] - truncated.params["a"][:, 1]).abs().max() > 1e-4


def test_a_subclass_cannot_be_made_without_gradients():
    with pytest.raises(TypeError, match="gradients"):
        Descent()


@pytest.mark.parametrize(
    ("learner", "family", "task", "message"),
    [
        (
            Planted(),
            GRU(input_size=1, hidden_size=3, output_size=1),
            None,
            r"^Planted cannot train GRU: .*'weight_hh.0' with 3",
        ),
        (BPTT(), LINEAR, None, "^BPTT cannot train Linear: it needs a task"),
        (BPTT(), LINEAR, DelayedRecall(), "^BPTT cannot train Linear on DelayedRecall: `input_size` of Linear is 2"),
        (BPTT(exams=Exams(curriculum=True)), LINEAR, TASK, "Adding declares no `difficulty`"),
        (TruncatedBPTT(window=7), LINEAR, TASK, r"^TruncatedBPTT cannot .* on Adding: `window` \(=7\) must be below"),
    ],
)
def test_what_a_learner_cannot_take_is_said_before_it_learns(learner, family, task, message):
    with pytest.raises(ValueError, match=message):
        learner.check(family, task)
    with pytest.raises(ValueError, match=message):
        learner.learn(family, task, Members(0, IDS), [0])


def test_learning_starts_from_given_params_as_they_are():
    learner = BPTT(num_updates=3, batch_size=4, init_scale=2.0)
    given = {name: tensor + 0.1 for name, tensor in fresh_params(LINEAR, 7, IDS).items()}
    before = {name: tensor.clone() for name, tensor in given.items()}
    members = Members(0, IDS, params=given)
    for method in ("native", "stacked"):
        learned = learner.learn(LINEAR, TASK, members, [0, 3], Run(method=method))
        for name, tensor in learned.params.items():
            assert torch.equal(tensor[:, 0], before[name])
            assert torch.equal(given[name], before[name])
            assert not torch.equal(tensor[:, 1], before[name])
    alone = learner.learn(LINEAR, TASK, members.part(2, 3), [3], Run(method="stacked"))
    padded = learner.learn(LINEAR, TASK, members.padded(), [3], Run(method="stacked"))
    for name, tensor in learned.params.items():
        torch.testing.assert_close(alone.params[name][0, 0], tensor[2, 1], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(padded.params[name][:4, 0], tensor[:, 1], atol=1e-6, rtol=1e-5)


def test_fresh_params_that_are_given_are_learned_like_fresh_ones():
    learner = BPTT(num_updates=3, batch_size=4)
    given = learner.learn(LINEAR, TASK, Members(0, IDS, params=fresh_params(LINEAR, 0, IDS)), [3])
    fresh = learner.learn(LINEAR, TASK, Members(0, IDS), [3])
    for name, tensor in fresh.params.items():
        assert torch.equal(given.params[name], tensor)


def test_given_params_that_do_not_fit_are_refused():
    learner = BPTT(num_updates=1, batch_size=1)
    other = fresh_params(Linear(input_size=2, hidden_size=5, output_size=1), 0, IDS)
    with pytest.raises(ValueError, match="has size 5, but the declaration says 4"):
        learner.learn(LINEAR, TASK, Members(0, IDS, params=other), [0])
    with pytest.raises(ValueError, match="Params of 4 models are expected to learn from"):
        learner.learn(LINEAR, TASK, Members(0, IDS, params=fresh_params(LINEAR, 0, IDS[:3])), [0])


def pruned_by_hand(learner, num_updates):
    """Each model on its own by torch.optim.AdamW, its mask changed after the updates at which the learner prunes."""
    finals = []
    for model_id in IDS:
        params = {name: tensor.clone() for name, tensor in fresh_params(MASKED, 0, [model_id]).items()}
        leaves = [params[name].requires_grad_() for name in MASKED.spec.trained]
        optimiser = torch.optim.AdamW(leaves, lr=learner.learning_rate, weight_decay=0)
        drawn = TASK.sample({}, Streams(0, [model_id], "train"), UPDATES_PER_DRAW * learner.batch_size, "train")
        for update, batch in enumerate(drawn.split(learner.batch_size)[:num_updates]):
            state, outputs = {"h": torch.zeros(1, learner.batch_size, MASKED.hidden_size)}, []
            for x in batch.x[0]:
                state = MASKED.step({name: tensor[0] for name, tensor in params.items()}, state, x, {})
                outputs.append(MASKED.readout({name: tensor[0] for name, tensor in params.items()}, state))
            optimiser.zero_grad()
            TASK.loss(torch.stack(outputs, dim=1), batch)[0].backward()
            torch.nn.utils.clip_grad_norm_(leaves, learner.clip)
            optimiser.step()
            if update + 1 in learner.when:
                flat = (params["a"] * params["mask"]).detach().abs().flatten()
                kept = flat.argsort(descending=True)[: int(params["mask"].count_nonzero()) // 2]
                params["mask"] = torch.zeros(16).index_fill(0, kept, 1.0).view(1, 4, 4)
        finals.append({name: tensor.detach()[0] for name, tensor in params.items()})
    return {name: torch.stack([final[name] for final in finals]) for name in MASKED.spec.tensors}


@pytest.mark.parametrize("method", ["native", "stacked"])
def test_masks_change_after_the_declared_updates(method):
    learner = Pruning(num_updates=7, batch_size=4, learning_rate=3e-2)
    learned = learner.learn(MASKED, TASK, Members(0, IDS), [0, 2, 3, 4, 5, 7], Run(method=method))
    left = learned.params["mask"].flatten(2).count_nonzero(-1)
    assert left.tolist() == [[16, 16, 8, 8, 4, 4]] * 4
    for name, expected in pruned_by_hand(learner, 7).items():
        torch.testing.assert_close(learned.params[name][:, -1], expected, atol=5e-6, rtol=1e-4)


def test_masks_can_hold_from_the_start():
    learned = Pruning(num_updates=2, batch_size=2, when=(0,)).learn(MASKED, TASK, Members(0, IDS), [0, 2])
    assert learned.params["mask"].flatten(2).count_nonzero(-1).tolist() == [[8, 8]] * 4


def test_a_model_that_diverged_keeps_its_mask():
    rates = torch.tensor([1e-3, 3e38, 1e-3, 1e-3], dtype=torch.float64)
    members = Members(0, IDS, {}, {"learning_rate": rates})
    learned = Pruning(num_updates=7, batch_size=4).learn(MASKED, TASK, members, [0, 7])
    assert 0 < learned.diverged_step[1] < 3
    assert learned.params["mask"][:, 1].flatten(1).count_nonzero(-1).tolist() == [4, 16, 4, 4]


class Idle(Pruning):
    """Asked for masks, but changes none."""

    def masks(self, family, params, update):
        return {}


def test_stops_for_masks_change_nothing_that_is_learned():
    run, members = Run(method="native"), Members(0, IDS)
    plain = BPTT(num_updates=9, batch_size=4).learn(MASKED, TASK, members, [9], run)
    learned = Idle(num_updates=9, batch_size=4, when=(0, 1, 2, 5)).learn(MASKED, TASK, members, [9], run)
    for name, tensor in plain.params.items():
        assert torch.equal(learned.params[name], tensor)


def test_only_masks_change_between_updates():
    with pytest.raises(ValueError, match=r"changes 'b' of shape .* has the masks \{'mask': \(4, 4, 4\)\}"):
        Pruning(num_updates=7, batch_size=1, tensor="b").learn(MASKED, TASK, Members(0, IDS), [7])


class Misfit(Masked):
    """The network with a mask, whose mask is drawn for another size."""

    def init(self, generator):
        return super().init(generator) | {"mask": torch.ones(self.hidden_size, 3)}


def test_a_mask_of_the_wrong_shape_is_refused_before_anything_learns():
    message = r"`init` of Misfit does not fit its declaration: Axis 'hidden' of 'mask' has size 3, but the declaration"
    with pytest.raises(ValueError, match=message):
        BPTT(num_updates=1).learn(Misfit(input_size=2, hidden_size=4, output_size=1), TASK, Members(0, IDS), [0])
