"""Every task against its contract, and against independent references."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from sklearn.datasets import load_digits

from weightspace.rollout import Streams
from weightspace.store import TaskIO
from zoo_builder import tasks
from zoo_builder.tasks.categorical import Categorical
from zoo_builder.tasks.continuous import Continuous
from zoo_builder.tasks.delayed_recall import DelayedRecall
from zoo_builder.tasks.tiled_digits import TiledDigits, _images, rotations

IDS = ["a", "b", "c"]
EXAMPLES = [example for task in tasks.available().values() for example in task.examples()]
CATEGORICAL = [e for e in EXAMPLES if isinstance(e, Categorical)]
CONTINUOUS = [e for e in EXAMPLES if isinstance(e, Continuous)]
PLAIN = [e for e in CATEGORICAL if type(e).loss is Categorical.loss and type(e).score is Categorical.score]


def streams(ids=IDS, seed=0):
    return Streams(seed, ids, "train")


def angles(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_a_batch_has_the_declared_shapes(task):
    batch = task.sample({}, streams(), 5, "train")
    assert batch.x.shape == (3, task.num_steps, 5, task.input_size)
    assert batch.x.dtype == torch.float32
    assert batch.start.shape[:2] == (3, 5)
    assert batch.target.shape[0] == 3
    assert batch.target.shape[1] <= task.num_steps
    assert batch.target.shape[2] == 5
    assert set(task.varying) <= set(task.config)


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_inputs_are_of_the_declared_kind_and_fill_the_declared_range(task):
    io, (low, high) = task.io, task.input_range
    x = task.sample({}, streams(), 400, "test").x
    assert io.input_size == x.shape[-1]
    assert ((x >= low) & (x <= high)).float().mean() >= 0.99
    inside = x.clamp(low, high)
    assert inside.min() - low < 0.05 * (high - low)
    assert high - inside.max() < 0.05 * (high - low)
    one_hot = bool(((x == 0) | (x == 1)).all() and (x.sum(-1) == 1).all())
    assert one_hot == (io.input_kind == "one_hot")


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_outputs_are_of_the_declared_kind(task):
    target, io = task.sample({}, streams(), 40, "test").target, task.io
    assert io.output_kind == ("categorical" if target.dtype == torch.int64 else "continuous")
    if io.output_kind == "categorical":
        heads = target.shape[3] if target.ndim == 4 else 1
        classes = io.classes_per_head or task.output_size
        assert heads * classes == task.output_size
        assert target.max() == classes - 1


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_inputs_and_outputs_come_back_from_the_manifest(task):
    record = json.loads(json.dumps(task.io.to_json()))
    assert TaskIO.from_json(record, task.input_size) == task.io
    assert TaskIO.from_json({"output_kind": "categorical"}, 3) is None


def test_a_task_that_does_not_declare_its_inputs_is_refused_before_anything_is_built():
    class Undeclared(Categorical):
        pass

    with pytest.raises(ValueError, match="Undeclared does not declare `input_kind`, `input_range`; add it"):
        Undeclared.refuse_undeclared()


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_a_task_says_whether_sequences_to_test_on_are_others(task):
    to_train, to_test = (task.sample({}, streams(), 9, split) for split in ("train", "test"))
    assert torch.equal(to_train.x, to_test.x) != task.splits_differ


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_a_models_sequences_do_not_depend_on_its_neighbours(task):
    together = task.sample({}, streams(), 5, "train")
    again = task.sample({}, streams(), 5, "train")
    alone = task.sample({}, streams(["b"]), 5, "train")
    assert torch.equal(together.x, again.x)
    torch.testing.assert_close(together.x[1:2], alone.x)
    assert torch.equal(together.target[1:2], alone.target)
    assert not torch.equal(together.x[0], together.x[1])


@pytest.mark.parametrize("task", [e for e in EXAMPLES if e.difficulty is not None], ids=str)
def test_levels_begin_at_the_least_value_and_end_at_the_models_own(task):
    field, least = task.difficulty
    assert field in task.varying
    dataclasses.replace(task, **{field: least})
    with pytest.raises(ValueError, match=f"`{field}`"):
        dataclasses.replace(task, **{field: least - 1})
    levels = torch.tensor([least, least, getattr(task, field)], dtype=torch.float64)
    batch = task.sample({field: levels}, streams(), 5, "train")
    assert torch.equal(task.mastery(right_answers(task, batch), batch), torch.ones(3, dtype=torch.float64))
    own = task.sample({}, streams(), 5, "train")
    assert torch.equal(batch.x[2], own.x[2])
    assert torch.equal(batch.target[2], own.target[2])


def right_answers(task, batch):
    """Outputs that answer everything that is asked, with wrong ones wherever nothing is."""
    scored = batch.target.shape[1]
    if task.output_kind == "continuous":
        outputs = torch.full((3, task.num_steps, batch.x.shape[2], task.output_size), 9.0)
        outputs[:, -scored:] = batch.target
        return outputs
    heads = batch.target[0, 0, 0].numel()
    right = torch.nn.functional.one_hot(batch.target.clamp(min=0), task.output_size // heads).flatten(3)
    outputs = torch.zeros(3, task.num_steps, batch.x.shape[2], task.output_size)
    outputs[:, -scored:] = 50 * right.float()
    return outputs


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_the_right_answers_score_one_and_cost_nothing(task):
    batch = task.sample({}, streams(), 50, "test")
    outputs = right_answers(task, batch)
    assert task.score(outputs, batch).dtype == torch.float64
    assert torch.equal(task.score(outputs, batch), torch.ones(3, dtype=torch.float64))
    assert task.loss(outputs, batch).shape == (3,)
    assert task.loss(outputs, batch).max() < 1e-6


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_what_one_model_answers_changes_neither_loss_nor_score_of_another(task):
    batch = task.sample({}, streams(), 6, "test")
    outputs = torch.randn(3, task.num_steps, 6, task.output_size, generator=torch.Generator().manual_seed(0))
    other = outputs.clone()
    other[1] = torch.nan
    for kind in (task.loss, task.score):
        before, after = kind(outputs, batch), kind(other, batch)
        assert torch.equal(before[::2], after[::2])
        assert after.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_a_batch_in_pieces_has_the_scores_of_its_sequences(task):
    batch = task.sample({}, streams(), 8, "test")
    outputs = right_answers(task, batch)
    for piece, own in zip(batch.split(4), outputs.split(4, 2), strict=True):
        assert torch.equal(task.score(own, piece), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("task", PLAIN, ids=str)
def test_no_answer_costs_the_entropy_of_chance(task):
    batch = task.sample({}, streams(), 50, "test")
    outputs = torch.zeros(3, task.num_steps, 50, task.output_size)
    torch.testing.assert_close(task.loss(outputs, batch), torch.full((3,), math.log(task.output_size)))


@pytest.mark.parametrize("task", CONTINUOUS, ids=str)
def test_squared_errors_and_explained_variance_agree_with_numpy(task):
    batch = task.sample({}, streams(), 40, "test")
    outputs = torch.randn(3, task.num_steps, 40, task.output_size, generator=torch.Generator().manual_seed(0))
    losses, scores = task.loss(outputs, batch), task.score(outputs, batch)
    for m in range(3):
        target = batch.target[m].double().numpy().reshape(-1, task.output_size)
        found = outputs[m, -batch.target.shape[1] :].double().numpy().reshape(target.shape)
        assert losses[m].item() == pytest.approx(np.square(found - target).mean(), rel=1e-5)
        explained = 1 - np.square(found - target).mean() / target.var(axis=0).mean()
        assert scores[m].item() == pytest.approx(explained, rel=1e-9)
    outputs[:] = batch.target.mean((1, 2))[:, None, None]
    torch.testing.assert_close(task.score(outputs, batch), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("task", PLAIN, ids=str)
def test_loss_and_score_agree_with_a_loop_over_positions(task):
    batch = task.sample({}, streams(), 6, "train")
    outputs = torch.randn(3, task.num_steps, 6, task.output_size, generator=torch.Generator().manual_seed(0))
    losses, scores = task.loss(outputs, batch), task.score(outputs, batch)
    first = task.num_steps - batch.target.shape[1]
    for m in range(3):
        found, right = [], []
        for t in range(batch.target.shape[1]):
            if batch.weight is None or batch.weight[m, t] > 0:
                log_odds = outputs[m, first + t].double().numpy()
                for b in range(6):
                    answer = int(batch.target[m, t, b])
                    found.append(np.log(np.exp(log_odds[b]).sum()) - log_odds[b, answer])
                    right.append(log_odds[b].argmax() == answer)
        assert losses[m].item() == pytest.approx(np.mean(found), abs=1e-6)
        assert scores[m].item() == pytest.approx(np.mean(right))


def test_a_model_whose_outputs_are_not_finite_has_no_score_and_spares_the_others():
    task = DelayedRecall(delay=1)
    batch = task.sample({}, streams(), 4, "test")
    outputs = torch.zeros(3, 24, 4, 2)
    outputs[1, 5] = torch.inf
    assert task.score(outputs, batch).isnan().tolist() == [False, True, False]


def test_rotation_agrees_with_scipy():
    image = np.random.default_rng(0).normal(size=(8, 8))
    turns = [0.0, 17.0, 45.0, 90.0, 133.7, 180.0, -60.0]
    for angle, matrix in zip(turns, rotations(angles(*turns)), strict=True):
        expected = scipy.ndimage.rotate(image, angle, order=1, reshape=False, mode="grid-constant")
        found = (matrix.numpy() @ image.ravel()).reshape(8, 8)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_quarter_turn_moves_pixels_without_blurring_them():
    image = torch.arange(64, dtype=torch.float64)
    turned = (rotations(angles(90.0))[0] @ image).reshape(8, 8)
    torch.testing.assert_close(turned, torch.rot90(image.reshape(8, 8)))


def test_tiles_are_read_row_by_row_and_put_together_give_the_image():
    task, own = TiledDigits(tile_size=4), streams()
    batch = task.sample({}, own, 2, "train")
    images, digits = _images("train", torch.device("cpu"))
    chosen = streams().integers(len(images), 2)
    for m in range(3):
        for b in range(2):
            image = images[chosen[m, b]].reshape(8, 8) / 8 - 1
            tiles = [image[:4, :4], image[:4, 4:], image[4:, :4], image[4:, 4:]]
            torch.testing.assert_close(batch.x[m, :, b], torch.stack([tile.flatten() for tile in tiles]))
            assert batch.target[m, 0, b] == digits[chosen[m, b]]


def test_every_image_is_either_for_training_or_for_testing():
    parts = [_images(split, torch.device("cpu"))[0] for split in ("train", "test")]
    assert [len(part) for part in parts] == [1438, 359]
    pixels, _ = load_digits(return_X_y=True)
    both = torch.cat(parts).numpy()
    assert sorted(map(tuple, both)) == sorted(map(tuple, pixels))
    _, digits = _images("test", torch.device("cpu"))
    assert digits.bincount().min() > 20


def test_no_test_image_comes_twice_before_all_have_come():
    task = TiledDigits(tile_size=8)
    images, digits = _images("test", torch.device("cpu"))
    batch = task.sample({}, streams(), 2 * len(images), "test")
    expected = sorted(map(tuple, (images / 8 - 1).tolist()))
    for m in range(3):
        for half in (slice(0, len(images)), slice(len(images), None)):
            assert sorted(map(tuple, batch.x[m, 0, half].tolist())) == expected
            assert torch.equal(batch.target[m, 0, half].bincount(), digits.bincount())
    # Each model begins at a place of its own.
    assert len({tuple(batch.x[m, 0, 0].tolist()) for m in range(3)}) == 3


def test_each_model_has_its_own_angle():
    task = TiledDigits()
    turned = task.sample({"angle": angles(0.0, 180.0, 0.0)}, Streams(0, ["a", "a", "a"], "train"), 3, "train").x
    torch.testing.assert_close(turned[0], turned[2])
    torch.testing.assert_close(turned[1], turned[0].flip(0, -1), atol=1e-5, rtol=0)


def test_recall_asks_for_the_input_of_its_own_delay():
    task = DelayedRecall(num_steps=12)
    batch = task.sample({"delay": angles(0, 3, 11)}, streams(), 20, "train")
    for m, delay in enumerate((0, 3, 11)):
        assert batch.weight[m].tolist() == [0.0] * delay + [1.0] * (12 - delay)
        heard = (batch.x[m, : 12 - delay, :, 0] > 0).long()
        assert torch.equal(batch.target[m, delay:], heard)
    assert set(batch.x.unique().tolist()) == {-1.0, 1.0}


def test_recalled_coins_are_fair():
    coins = DelayedRecall().sample({}, streams(), 4000, "train").x
    # Four standard errors of the mean of 96,000 fair coins.
    assert coins.mean((1, 2, 3)).abs().max() < 4 / math.sqrt(96_000)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("TileDigits", {}, "Did you mean 'TiledDigits'"),
        ("TiledDigits", {"angel": 3}, "Did you mean 'angle'"),
        ("TiledDigits", {"tile_size": 3}, "must divide"),
        ("DelayedRecall", {"delay": 24}, "below `num_steps`"),
    ],
)
def test_a_wrong_task_is_refused_with_the_way_out(name, fields, message):
    with pytest.raises(ValueError, match=message):
        tasks.load(name, fields)


def test_a_delay_beyond_the_sequence_is_refused():
    with pytest.raises(ValueError, match="`delay` \\(=30\\)"):
        DelayedRecall().sample({"delay": angles(1, 30, 2)}, streams(), 2, "train")


def test_splitting_a_batch_keeps_its_sequences():
    batch = DelayedRecall().sample({}, streams(), 10, "train")
    pieces = batch.split(4)
    assert [piece.x.shape[2] for piece in pieces] == [4, 4, 2]
    assert torch.equal(torch.cat([piece.x for piece in pieces], 2), batch.x)
    assert torch.equal(torch.cat([piece.target for piece in pieces], 2), batch.target)
