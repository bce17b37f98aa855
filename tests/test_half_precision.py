"""Networks that compute in bfloat16 are near those of float32, which they are made of."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import flowkit as fk


DATA = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)


def loss(flow, batch, key):
    return fk.flow_matching_loss(flow, batch, key=key)


def networks():
    plain = fk.nn.MLP(2, hidden_sizes=(32, 32), zero_init=False, key=jr.key(0))
    return plain, fk.nn.HalfPrecision(plain)


def test_products_are_in_bfloat16_and_all_else_in_float32():
    plain, half = networks()
    program = str(jax.make_jaxpr(half)(0.5, DATA[0]))
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert products
    assert all(":bf16[" in line for line in products)

    values = [eqx.filter_vmap(net)(np.full(64, 0.7), DATA) for net in (plain, half)]
    assert values[1].dtype == jnp.float32
    error = np.abs(values[1] - values[0]).max() / np.abs(values[0]).max()
    # Rounded to eight bits, a few times.
    assert 1e-4 < error < 2e-2

    grads = [
        jax.tree.leaves(eqx.filter_grad(loss)(fk.Flow(net), DATA, jr.key(1)))
        for net in (plain, half)
    ]
    for one, other in zip(*grads, strict=True):
        assert other.dtype == jnp.float32
        np.testing.assert_allclose(other, one, atol=0.03 * np.abs(one).max())


def test_numbers_without_axes_keep_their_type():
    half = fk.nn.HalfPrecision(lambda t, x, cond=None: t * x)
    assert half(0.5, jnp.float32(0.3)) == jnp.float32(0.15)
    assert half(0.5, 0.3) == 0.15


def test_the_times_of_a_flow_map_are_not_rounded():
    """In bfloat16 0.999 is 1."""
    network = lambda times, x, cond: jnp.full_like(x, times[1] - times[0])
    flow_map = fk.few_step.FlowMap(fk.nn.HalfPrecision(network))
    np.testing.assert_allclose(flow_map(0.997, 0.999, DATA[0]), 0.002, rtol=1e-2)


def test_training_keeps_float32():
    _, half = networks()
    options = {"optimizer": optax.adam(1e-3), "num_steps": 3, "progress": False}
    result = fk.training.fit(loss, fk.Flow(half), DATA, **options, key=jr.key(2))
    for tree in (result.model, result.state.average, result.state.opt_state):
        for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)):
            assert leaf.dtype == jnp.float32
    # Steps far below the digits of bfloat16 are not lost.
    before = half.network.layers.layers[0].weight
    after = result.model.network.network.layers.layers[0].weight
    moved = np.abs(after - before)
    assert 1e-3 < moved.max() < 4e-3


def test_masks_and_keys_go_on():
    crn = fk.nn.AdaLNMLP(2, 4, width_size=8, depth=1, key=jr.key(0))
    half = fk.nn.HalfPrecision(fk.testing.perturbed(crn, key=jr.key(1)))
    mask = np.arange(5) < 3
    with jax.numpy_dtype_promotion("standard"):
        out = half(0.5, DATA[:5], np.ones((1, 4), np.float32), mask=mask, key=jr.key(2))
    assert out.dtype == jnp.float32
    assert np.all(out[3:] == 0)
    assert np.all(out[:3] != 0)

    with pytest.raises(ValueError, match="`mask` was given"):
        networks()[1](0.5, DATA[0], mask=mask)
