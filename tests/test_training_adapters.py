"""Low-rank adapters: what they add, what they leave alone, and what they can learn."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import flowkit as fk
from flowkit import training as tr


def network():
    return fk.nn.UNet(1, width_size=8, multipliers=(1, 2), key=jr.key(0))


def linear(rows=6, columns=5, key=0):
    return eqx.nn.Linear(columns, rows, key=jr.key(key))


def moved(adapted, key=3):
    """With the factors somewhere else."""
    leaves, treedef = jax.tree.flatten(adapted.factors)
    keys = jr.split(jr.key(key), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    drawn = [jr.normal(key, leaf.shape) for leaf, key in pairs]
    factors = jax.tree.unflatten(treedef, drawn)
    return eqx.tree_at(lambda a: a.factors, adapted, factors)


def test_a_new_one_is_the_model():
    model = network()
    merged = tr.LowRankAdapters(model, rank=2, key=jr.key(1)).merged()
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    for one, other in zip(jax.tree.leaves(merged), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_added_has_the_rank():
    """In kernels too, as matrices to their output channels; biases stay."""
    model = network()
    adapted = moved(tr.LowRankAdapters(model, rank=2, key=jr.key(1)))
    pairs = zip(jax.tree.leaves(adapted.merged()), jax.tree.leaves(model), strict=True)
    num = 0
    for after, before in pairs:
        if not eqx.is_inexact_array(before):
            continue
        change = np.asarray(after - before, np.float64)
        if before.ndim < 2:
            assert not change.any()
            continue
        is_first = before.ndim == 2 or before.shape[0] > before.shape[-1]
        rows = before.shape[0] if is_first else before.size // before.shape[-1]
        matrix = change.reshape(rows, -1)
        if min(matrix.shape) <= 2:
            assert not change.any()
            continue
        values = np.linalg.svd(matrix, compute_uv=False)
        assert values[1] > 0.01 * values[0]
        assert np.all(values[2:] < 1e-5 * values[0])
        num += 1
    assert num > 10


def test_training_finds_a_change_of_that_rank():
    """A linear map, of which the data want one that differs by a matrix of rank 2."""
    model = linear()
    change = jr.normal(jr.key(4), (6, 2)) @ jr.normal(jr.key(5), (2, 5))
    inputs = jr.normal(jr.key(6), (64, 5))
    targets = jax.vmap(model)(inputs) + inputs @ change.T

    def loss(adapted, batch, key):
        outputs = jax.vmap(adapted.merged())(batch[0])
        return jnp.mean((outputs - batch[1]) ** 2)

    adapted = tr.LowRankAdapters(model, rank=2, key=jr.key(1))
    trained = tr.fit(
        loss,
        adapted,
        (inputs, targets),
        optimizer=optax.adam(optax.cosine_decay_schedule(3e-2, 4000)),
        num_steps=4000,
        steps_per_call=100,
        trainable=lambda adapted: adapted.factors,
        progress=False,
        key=jr.key(2),
    ).model
    np.testing.assert_array_equal(trained.model.weight, model.weight)
    np.testing.assert_allclose(
        trained.merged().weight - model.weight, change, atol=1e-3
    )


def test_an_empty_selection_is_named():
    with pytest.raises(ValueError, match="`select` selects no"):
        tr.LowRankAdapters(jnp.ones((4, 4)), rank=2, select=lambda m: (), key=jr.key(0))


def test_selected_parts():
    model = (linear(), linear(key=1))
    select = lambda model: model[1]
    adapted = tr.LowRankAdapters(model, rank=2, select=select, key=jr.key(1))
    first, second = moved(adapted).merged()
    np.testing.assert_array_equal(first.weight, model[0].weight)
    assert np.max(np.abs(second.weight - model[1].weight)) > 0.1


@pytest.mark.parametrize(
    ("rank", "message"), [(5, "leaves no matrix"), (0, "`rank` must be at least 1")]
)
def test_wrong_ranks(rank, message):
    with pytest.raises(ValueError, match=message):
        tr.LowRankAdapters(linear(), rank=rank, key=jr.key(1))
