"""Batches as pure functions of seed and epoch."""

import numpy as np
import pytest

from weightspace.data.sampling import EpochSampler, Neighbours, OrderedSampler, Request
from weightspace.rollout.streams import derive_key

ROWS = np.arange(0, 400, 2)
SHARDS = ROWS // 50
COHORTS = SHARDS // 2


def sampler(seed=0, epoch=0, rank=0, world_size=1, batch_size=32, groups=4):
    made = EpochSampler(
        ROWS,
        SHARDS,
        COHORTS,
        batch_size=batch_size,
        groups_per_batch=groups,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
    made.set_epoch(epoch)
    return made


def rows_of(requests):
    return [row for request in requests for group in request.groups for row in group]


def test_every_row_comes_once_an_epoch_and_the_length_is_right():
    requests = list(sampler())
    assert sorted(rows_of(requests)) == ROWS.tolist()
    assert len(requests) == len(sampler())


def test_the_order_is_a_function_of_seed_and_epoch():
    assert list(sampler(epoch=3)) == list(sampler(epoch=3))
    assert list(sampler(epoch=3)) != list(sampler(epoch=4))
    assert list(sampler(seed=1)) != list(sampler(seed=2))
    keys = [request.key for epoch in range(5) for request in sampler(epoch=epoch)]
    assert len(set(keys)) == len(keys)


def test_groups_are_of_one_shard_and_of_nearly_equal_size():
    for request in sampler():
        assert len(request.groups) <= 4
        for group in request.groups:
            assert len({row // 50 for row in group}) == 1
            assert 6 <= len(group) <= 8


def test_batches_mix_cohorts():
    full = [request for request in sampler() if len(request.groups) == 4]
    mixed = [len({row // 100 for group in request.groups for row in group[:1]}) for request in full]
    assert np.mean(mixed) > 3


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_epoch_between_them_in_equally_many_steps(world_size):
    parts = [list(sampler(rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    assert len(parts[0]) == len(sampler(world_size=world_size))
    assert {row for part in parts for row in rows_of(part)} == set(ROWS.tolist())
    # What is drawn twice to make steps equal is less than one round.
    drawn = [request.groups for part in parts for request in part]
    assert len(drawn) - len(set(drawn)) < world_size


def test_evaluation_takes_rows_in_ascending_order_each_once():
    shuffled = np.random.default_rng(0).permutation(len(ROWS))
    made = OrderedSampler(ROWS[shuffled], SHARDS[shuffled], batch_size=32, groups_per_batch=4)
    assert rows_of(made) == ROWS.tolist()
    assert all(len({row // 50 for row in group}) == 1 for request in made for group in request.groups)


def ordered(rank=0, world_size=1, batch_size=32):
    return OrderedSampler(ROWS, SHARDS, batch_size=batch_size, groups_per_batch=4, rank=rank, world_size=world_size)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_in_evaluation_ranks_take_turns_with_the_batches_of_one_process(world_size):
    parts = [list(ordered(rank, world_size)) for rank in range(world_size)]
    assert all(parts[number % world_size][number // world_size] == batch for number, batch in enumerate(ordered()))
    assert sum(map(len, parts)) == len(ordered())


def test_in_evaluation_every_rank_has_a_batch_or_the_error_says_so():
    assert len(ordered()) == 8
    parts = [list(ordered(rank, 20)) for rank in range(20)]
    assert all(parts)
    assert sorted(row for part in parts for row in rows_of(part)) == ROWS.tolist()
    with pytest.raises(ValueError, match="200 rows make 32 batches, too few for 64 devices"):
        ordered(0, 64)


def test_batches_of_nothing_are_refused_and_no_rows_make_no_batches():
    with pytest.raises(ValueError, match="must be at least 1"):
        sampler(batch_size=0)
    empty = np.empty(0, dtype=np.int64)
    assert list(OrderedSampler(empty, empty, batch_size=4, groups_per_batch=2)) == []


def test_keys_are_stable_63_bit_numbers():
    # The first eight bytes of sha256("0/batch/1/2"), little-endian, without the last bit.
    import hashlib

    expected = int.from_bytes(hashlib.sha256(b"0/batch/1/2").digest()[:8], "little") // 2
    assert derive_key(0, "batch", 1, 2) == expected


def test_neighbours_are_just_before_or_after_by_step_among_the_rows_that_take_part():
    ids = np.array(["b", "a", "a", "a", "a", "b", "c"])
    steps = np.array([10, 30, 0, 20, 10, 0, 0])
    used = np.array([True, True, True, False, True, True, True])
    near = Neighbours(ids, steps, np.zeros(7, dtype=int), used=used)
    # a: rows 2, 4, (3 is left out), 1; b: rows 5, 0; c: row 6 alone.
    assert near.sides.tolist() == [[5, 0], [4, 1], [2, 4], [3, 3], [2, 1], [5, 0], [6, 6]]
    assert near.models.tolist() == [1, 0, 0, 0, 0, 1, 2]
    drawn = [near.draw(Request(((4,), (1, 0, 6)), key)) for key in range(20)]
    assert {first for (first,), _ in drawn} == {1, 2}
    assert {second for _, second in drawn} == {(4, 5, 6)}
    assert near.draw(Request(((4, 4, 4, 4),), 3)) == near.draw(Request(((4, 4, 4, 4),), 3))
