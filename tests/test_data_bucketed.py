"""Clouds of different sizes in batches of about the same size."""

import itertools

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowkit as fk
from flowkit import data


LENGTHS = np.array([3, 4, 4, 9, 10, 10, 11, 12, 30, 31])
RNG = np.random.default_rng(0)
CLOUDS = [RNG.normal(size=(n, 2)).astype(np.float32) for n in LENGTHS]
NUMBERS = np.arange(len(CLOUDS))


def take(dataset, num):
    return list(itertools.islice(iter(dataset), num))


@pytest.mark.parametrize("dtype", [int, np.uint8])
def test_clouds_are_whole_and_seen_equally_often(dtype):
    labels = NUMBERS.astype(dtype)
    batches = take(data.bucketed_batches(CLOUDS, 2, labels=labels, buckets=3), 50)
    assert {batch.points.shape for batch in batches} == {(2, n, 2) for n in (9, 11, 31)}
    for batch in batches:
        for points, mask, label in zip(*batch, strict=True):
            np.testing.assert_array_equal(points[mask], CLOUDS[label])
            assert not points[~mask].any()
    seen = np.bincount(np.concatenate([batch.labels for batch in batches]))
    assert set(seen) <= {9, 10, 11}


def test_sizes_of_ones_own():
    batches = take(data.bucketed_batches(CLOUDS, 1, buckets=(12, 64, 40)), 10)
    # The bucket of 64 is empty: the smallest that holds a cloud is taken.
    assert [batch.points.shape[1] for batch in batches].count(40) == 2
    assert {batch.points.shape[1] for batch in batches} == {12, 40}


def test_an_iterator_goes_on_where_it_was():
    dataset = data.bucketed_batches(CLOUDS, 2, num_steps=12, seed=3)
    iterator = iter(dataset)
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    assert len(rest) == 7
    other = iter(dataset)
    other.set_state(state)
    for one, two in zip(rest, other, strict=True):
        np.testing.assert_array_equal(one.points, two.points)


def test_shards_have_one_bucket_in_a_step():
    whole = take(data.bucketed_batches(CLOUDS, 4, labels=NUMBERS), 9)
    halves = [
        take(
            data.bucketed_batches(
                CLOUDS, 4, labels=NUMBERS, shard_index=i, num_shards=2
            ),
            9,
        )
        for i in range(2)
    ]
    for batch, *parts in zip(whole, *halves, strict=True):
        joined = np.concatenate([part.points for part in parts])
        np.testing.assert_array_equal(joined, batch.points)


def test_a_masked_loss_sees_no_padding():
    """The padding is NaN, and training goes on as if it were not there."""

    def spoilt(sets, rng):
        del rng
        return sets._replace(points=np.where(sets.mask[..., None], sets.points, np.nan))

    def loss(flow, sets, key):
        latents = jnp.zeros((len(sets.points), 1, 4))
        return fk.flow_matching_loss(
            flow, sets.points, latents, mask=sets.mask, key=key
        )

    flow = fk.Flow(fk.nn.AdaLNMLP(2, 4, width_size=8, depth=1, key=jr.key(0)))
    options = {"num_steps": 4, "progress": False, "key": jr.key(1)}
    losses = [
        fk.training.fit(
            loss,
            flow,
            data.bucketed_batches(CLOUDS, 2, buckets=2, transform=change),
            **options,
        ).history["loss"]
        for change in (None, spoilt)
    ]
    assert np.isfinite(losses[0].values).all()
    np.testing.assert_array_equal(losses[0].values, losses[1].values)


BAD = {
    "none": ([], {}, "`clouds` is empty"),
    "too small": (CLOUDS, {"buckets": (4, 16)}, "cloud 9 has 31 points"),
    "no bucket": (CLOUDS, {"buckets": 0}, "`buckets` must be at least 1"),
    "labels": (
        CLOUDS,
        {"labels": np.arange(3)},
        "`labels` must be one integer",
    ),
    "dimensions": (
        [np.ones((3, 2)), np.ones((9, 3))],
        {"buckets": (4, 9)},
        "must have equal dimensions",
    ),
    "no steps": (CLOUDS, {"num_steps": 0}, "`num_steps` must be at least 1"),
    "empty": ([*CLOUDS[:5], CLOUDS[0][:0], *CLOUDS[5:]], {}, "cloud 5 is empty"),
    "infinite": ([*CLOUDS[:8], CLOUDS[8] + np.inf], {}, "cloud 8 is .* not finite"),
}


@pytest.mark.parametrize(("clouds", "options", "message"), BAD.values(), ids=BAD)
def test_misuse(clouds, options, message):
    with pytest.raises(ValueError, match=message):
        data.bucketed_batches(clouds, 2, **options)
