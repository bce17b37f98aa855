import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowkit.nn as nn
from flowkit.testing import (
    assert_mask_independent,
    assert_permutation_equivariant,
    assert_permutation_invariant,
)


KEY = jr.key(0)
X, Y = jr.normal(jr.key(1), (5, 8)), jr.normal(jr.key(2), (7, 6))
MASK = jnp.array([True, False, True, True, False, True, True])


def plain_attention(attention, x, y):
    """The formula, head by head."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    q, k, v = (
        np.asarray(rows @ np.asarray(m.weight), np.float64)
        for rows, m in (
            (x, attention.query),
            (y, attention.keys),
            (y, attention.values),
        )
    )
    size = q.shape[1] // attention.num_heads
    heads = []
    for h in range(attention.num_heads):
        g = h * attention.num_kv_heads // attention.num_heads
        scores = (
            q[:, h * size : (h + 1) * size]
            @ k[:, g * size : (g + 1) * size].T
            / np.sqrt(size)
        )
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        heads.append(weights @ v[:, g * size : (g + 1) * size])
    return np.concatenate(heads, 1) @ np.asarray(attention.out.weight)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_attention_is_its_formula(num_kv_heads):
    attention = nn.Attention(
        8, context_size=6, num_heads=4, num_kv_heads=num_kv_heads, key=KEY
    )
    np.testing.assert_allclose(
        attention(X, Y), plain_attention(attention, X, Y), atol=1e-5
    )


def test_shared_heads_are_repeated_heads():
    shared = nn.Attention(8, num_heads=4, num_kv_heads=1, key=KEY)
    full = nn.Attention(8, num_heads=4, key=KEY)
    repeat = lambda attention: (
        attention.query,
        attention.keys.weight,
        attention.values.weight,
        attention.out,
    )
    weights = (
        shared.query,
        jnp.tile(shared.keys.weight, 4),
        jnp.tile(shared.values.weight, 4),
        shared.out,
    )
    full = eqx.tree_at(repeat, full, weights)
    np.testing.assert_allclose(shared(X), full(X), atol=1e-5)


def test_masked_keys_are_deleted_keys():
    attention = nn.Attention(8, context_size=6, use_bias=True, key=KEY)
    np.testing.assert_allclose(attention(X, Y, MASK), attention(X, Y[MASK]), atol=1e-5)
    assert not jnp.any(
        nn.Attention(8, context_size=6, key=KEY)(X, Y, jnp.zeros(7, bool))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "`num_heads` must divide"),
        ({"num_kv_heads": 3}, "`num_kv_heads` must"),
    ],
)
def test_attention_refuses_heads_that_do_not_divide(options, message):
    with pytest.raises(ValueError, match=message):
        nn.Attention(8, **options, key=KEY)


BLOCKS = {
    "plain": {},
    "multi_query": {"num_kv_heads": 1, "use_bias": True},
    "scaled": {
        "layer_scale": 0.1,
        "feed_forward": lambda i, h, *, key: nn.FeedForward(
            i, i, hidden_sizes=(h,), key=key
        ),
    },
}


class ValidRows(eqx.Module):
    """What a layer returns for the valid rows of a set; its other rows mean nothing."""

    layer: eqx.Module

    def __call__(self, x, mask):
        return jnp.where(mask[:, None], self.layer(x, mask=mask), 0)


class Reading(eqx.Module):
    """What the rows of `X` gather from a context."""

    layer: eqx.Module

    def __call__(self, context, mask):
        return self.layer(X, context, mask)


CROSS = {"context_size": 6, "key": KEY}
MASKED = {
    "attention": lambda: ValidRows(nn.Attention(8, key=KEY)),
    "reading": lambda: Reading(nn.Attention(8, **CROSS)),
    "plain": lambda: ValidRows(nn.AttentionBlock(8, key=KEY)),
    "scaled": lambda: ValidRows(nn.AttentionBlock(8, **BLOCKS["scaled"], key=KEY)),
    "cross": lambda: Reading(nn.AttentionBlock(8, cross=True, **CROSS)),
    "inducing": lambda: ValidRows(nn.ISAB(8, num_inducing=3, key=KEY)),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_rows_may_hold_anything(name):
    fn = MASKED[name]()
    rows = Y if isinstance(fn, Reading) else jr.normal(KEY, (7, 8))
    assert_mask_independent(fn, rows, MASK, key=KEY)


@pytest.mark.parametrize("name", BLOCKS)
def test_block_symmetry_and_masks(name):
    own = nn.AttentionBlock(8, mlp_ratio=2, **BLOCKS[name], key=KEY)
    assert_permutation_equivariant(
        lambda x, mask: own(x, mask=mask), Y @ jnp.ones((6, 8)) + X[:1], MASK, key=KEY
    )
    cross = nn.AttentionBlock(
        8, cross=True, context_size=6, mlp_ratio=2, **BLOCKS[name], key=KEY
    )
    assert_permutation_equivariant(lambda x, _: cross(x, Y), X, key=KEY)
    assert_permutation_invariant(lambda y, mask: cross(X, y, mask), Y, MASK, key=KEY)
    np.testing.assert_allclose(cross(X, Y, MASK), cross(X, Y[MASK]), atol=1e-5)


def test_block_wants_a_context_if_and_only_if_it_crosses():
    with pytest.raises(ValueError, match="`context` must be given"):
        nn.AttentionBlock(8, cross=True, key=KEY)(X)
    with pytest.raises(ValueError, match="`context` must be given"):
        nn.AttentionBlock(8, key=KEY)(X, X)


def test_swiglu_is_its_formula():
    layer = nn.SwiGLU(8, 12, 3, key=KEY)
    gate, value = np.split(
        np.asarray(X @ layer.gate_and_value.weight, np.float64), 2, axis=1
    )
    expected = (gate / (1 + np.exp(-gate)) * value) @ np.asarray(layer.out.weight)
    np.testing.assert_allclose(layer(X), expected, atol=1e-5)


def test_residual_drops_in_training_only():
    h, update = jnp.zeros((200, 50)), jnp.ones((200, 50))
    residual = nn.Residual(50, layer_scale=0.5, dropout=0.2)
    np.testing.assert_array_equal(residual(h, update), 0.5)
    np.testing.assert_array_equal(
        eqx.nn.inference_mode(residual)(h, update, key=KEY), 0.5
    )
    dropped = residual(h, update, key=KEY)
    # 10,000 entries: the dropped share has a standard error of 0.004. What is kept is
    # scaled to keep the mean.
    assert abs(jnp.mean(dropped == 0) - 0.2) < 5 * 0.004
    np.testing.assert_allclose(dropped[dropped != 0], 0.5 / 0.8, rtol=1e-6)


def test_stochastic_depth_drops_the_whole_update():
    residual = nn.Residual(2, stochastic_depth=0.25)
    one = lambda key: residual(jnp.zeros((3, 2)), jnp.ones((3, 2)), key=key)
    values = jax.jit(jax.vmap(one))(jr.split(KEY, 4000)).reshape(4000, -1)
    assert jnp.all(values == values[:, :1])
    assert abs(jnp.mean(values[:, 0] == 0) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)
    assert abs(jnp.mean(values) - 1) < 5 * np.sqrt(0.25 / 0.75 / 4000)


@pytest.mark.parametrize("name", ["dropout", "stochastic_depth"])
def test_residual_refuses_other_rates(name):
    with pytest.raises(ValueError, match=f"`{name}` is a probability"):
        nn.Residual(8, **{name: 1.0})
