"""Batches: every example once per epoch, exact resume, shards that partition; splits."""

import itertools
import pickle
import tracemalloc

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowkit import data


def take(dataset, num):
    return list(itertools.islice(iter(dataset), num))


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


SIZES = [(12, 4), (12, 5), (7, 3), (3, 8), (1, 2), (5, 5)]


@pytest.mark.parametrize(("num", "batch_size"), SIZES)
def test_examples_are_seen_equally_often(num, batch_size):
    line = np.concatenate(take(data.batches(np.arange(num), batch_size), 3 * num))
    assert len(line) == 3 * num * batch_size
    for epoch in line.reshape(3 * batch_size, num):
        assert sorted(epoch) == list(range(num))
    for end in range(0, len(line), batch_size):
        counts = np.bincount(line[:end], minlength=num)
        assert counts.max() - counts.min() <= 1


def test_epochs_and_seeds_have_their_own_order():
    epochs = take(data.batches(np.arange(50), 50), 4) + take(
        data.batches(np.arange(50), 50, seed=1), 4
    )
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert equal(take(data.batches(np.arange(50), 50, seed=1), 4), epochs[4:])


def test_orders_of_past_epochs_are_let_go():
    """Each takes eight bytes for each example; a batch holds parts of two of them."""
    num = 1_000_000
    batches = iter(data.batches(np.zeros(num, np.int8), num, seed=11))
    tracemalloc.start()
    try:
        for batch in itertools.islice(batches, 8):
            assert len(batch) == num
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 4 * 8 * num


def test_permutations_are_uniform():
    """The six orders of three examples are equally likely, to 5 standard errors."""
    orders = np.concatenate(take(data.batches(np.arange(3), 3), 1200)).reshape(-1, 3)
    counts = np.unique(orders @ [9, 3, 1], return_counts=True)[1]
    assert len(counts) == 6
    assert np.all(np.abs(counts - 200) < 5 * np.sqrt(1200 * (1 / 6) * (5 / 6)))


@pytest.mark.parametrize(("num", "batch_size"), [(12, 4), (7, 6), (3, 8)])
def test_shards_partition_the_batch(num, batch_size):
    whole = take(data.batches(np.arange(num), batch_size, seed=3), 9)
    shards = [
        take(
            data.batches(
                np.arange(num), batch_size, seed=3, shard_index=index, num_shards=2
            ),
            9,
        )
        for index in (0, 1)
    ]
    assert equal([np.concatenate(parts) for parts in zip(*shards, strict=True)], whole)


def jitter(batch, rng):
    return batch._replace(
        points=batch.points + rng.standard_normal(batch.points.shape, np.float32)
    )


@pytest.mark.parametrize("transform", [None, jitter])
@pytest.mark.parametrize("position", [0, 1, 4, 17])
def test_resume_is_bitwise(position, transform):
    sets = data.PointSets(
        np.random.default_rng(0).normal(size=(10, 4, 2)).astype(np.float32),
        labels=np.arange(10),
    )
    make = lambda: iter(
        data.batches(sets, 4, seed=5, num_steps=25, transform=transform)
    )
    iterator = make()
    for _ in range(position):
        next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    resumed = make()
    next(resumed)
    resumed.set_state(state)
    assert len(rest) == 25 - position
    assert equal(list(resumed), rest)
    assert state["next_index"] == position


def test_transforms_differ_by_step_and_shard_and_repeat():
    draw = lambda batch, rng: rng.random()
    make = lambda **kwargs: take(
        data.batches(np.arange(4), 4, transform=draw, **kwargs), 20
    )
    numbers = make() + make(seed=1) + make(shard_index=1, num_shards=2)
    assert len(set(numbers)) == 60
    assert make() == numbers[:20]


def test_batches_keep_the_structure_and_leave_the_data_alone():
    tree = {"points": jnp.arange(12.0).reshape(6, 2), "more": (np.arange(6), None)}
    dataset = data.batches(tree, 4, num_steps=3)
    assert isinstance(dataset, grain.IterDataset)
    got = list(dataset)
    assert len(got) == 3
    assert jax.tree.structure(got[0]) == jax.tree.structure(tree)
    for batch in got:
        assert all(
            isinstance(leaf, np.ndarray) and len(leaf) == 4
            for leaf in jax.tree.leaves(batch)
        )
        assert np.array_equal(
            batch["points"], np.asarray(tree["points"])[batch["more"][0]]
        )
        batch["more"][0][:] = -1  # a copy
    assert np.array_equal(tree["more"][0], np.arange(6))


def test_no_end_and_far_positions():
    iterator = iter(data.batches(np.arange(10), 4))
    iterator.set_state({"next_index": 10**12})
    assert next(iterator).shape == (4,)


def test_datasets_travel_to_worker_processes():
    dataset = data.batches(
        data.PointSets(np.ones((3, 2, 2), np.float32)), 2, num_steps=2, transform=jitter
    )
    assert equal(list(pickle.loads(pickle.dumps(dataset))), list(dataset))


@pytest.mark.parametrize(
    ("tree", "kwargs", "fragment"),
    [
        ({}, {}, "`data` has no arrays"),
        (np.float32(1), {}, "leading axis"),
        ((np.ones(3), np.ones(4)), {}, "equal leading axes"),
        (np.ones((0, 2)), {}, "no examples"),
        (np.ones(3), {"batch_size": 0}, "`batch_size` must be a positive multiple"),
        (
            np.ones(3),
            {"batch_size": 3, "shard_index": 0, "num_shards": 2},
            "multiple of `num_shards`, 2; got 3",
        ),
        (
            np.ones(3),
            {"shard_index": 2, "num_shards": 2},
            "`shard_index` must lie in 0 ... 1",
        ),
        (np.ones(3), {"shard_index": 0}, "belong together"),
        (np.ones(3), {"num_steps": 0}, "`num_steps`"),
        (np.ones(3), {"seed": -1}, "`seed`"),
    ],
)
def test_bad_batches_are_named(tree, kwargs, fragment):
    with pytest.raises(ValueError, match=fragment):
        data.batches(tree, **({"batch_size": 2} | kwargs))


@pytest.mark.parametrize("fraction", [0.001, 0.1, 1 / 3, 0.5, 0.999])
@pytest.mark.parametrize("num", [2, 10, 101])
def test_split_partitions(num, fraction):
    tree = {"a": np.arange(num), "b": jnp.arange(num) * 2, "c": None}
    split = data.train_test_split(tree, test_fraction=fraction, seed=2)
    assert len(split.test["a"]) == min(max(round(fraction * num), 1), num - 1)
    assert sorted([*split.train["a"], *split.test["a"]]) == list(range(num))
    for part in split:
        assert np.array_equal(part["b"], 2 * part["a"])
    assert equal(split, data.train_test_split(tree, test_fraction=fraction, seed=2))


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_fractions_are_numbers_of_numpy_too(kind):
    test = data.train_test_split(np.arange(100_000), test_fraction=kind(0.75)).test
    assert len(test) == 75_000


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(300) % 7,
        np.sort(np.arange(300) ** 2 % 11),
        np.array(["x", "y", "z"] * 100),
    ],
)
def test_split_is_stratified_and_shuffled(labels):
    split = data.train_test_split(
        (np.arange(300), labels), test_fraction=0.17, seed=0, stratify=labels
    )
    assert len(split.test[0]) == 51
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        assert abs(np.sum(split.test[1] == label) - 0.17 * count) <= 1
    for part in split:
        assert not np.array_equal(part[0], np.sort(part[0]))


def test_split_is_fair():
    """With strata, each example is set aside equally often: 5 standard errors."""
    labels = np.repeat([0, 1], [4, 8])
    chosen = np.concatenate(
        [
            data.train_test_split(
                np.arange(12), test_fraction=0.25, seed=s, stratify=labels
            ).test
            for s in range(400)
        ]
    )
    assert np.all(
        np.abs(np.bincount(chosen, minlength=12) - 100) < 5 * np.sqrt(400 * 0.25 * 0.75)
    )


@pytest.mark.parametrize(
    ("kwargs", "fragment"),
    [
        ({"test_fraction": 0.0}, "`test_fraction` must lie between"),
        ({"test_fraction": float("nan")}, "`test_fraction`"),
        ({"seed": -3}, "`seed`"),
        (
            {"stratify": np.zeros(4)},
            "`stratify` must have one label per example, 3; got 4",
        ),
        ({"data": np.ones(1)}, "at least two"),
    ],
)
def test_bad_splits_are_named(kwargs, fragment):
    with pytest.raises(ValueError, match=fragment):
        data.train_test_split(**({"data": np.ones(3)} | kwargs))


def test_numpy_integers_are_sizes():
    x = np.arange(12.0)
    options = {"num_steps": 2, "shard_index": 1, "num_shards": 2, "seed": 3}
    wide = {name: np.int64(value) for name, value in options.items()}
    expected = [list(batch) for batch in data.batches(x, 4, **options)]
    assert [list(batch) for batch in data.batches(x, np.int64(4), **wide)] == expected
