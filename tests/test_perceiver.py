"""Perceiver IO and the velocities of fields made of it."""

import functools as ft

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import scipy.special as sp

import flowkit as fk
import flowkit.nn as nn
from flowkit.nn._fields.tokens import spread_rows
from flowkit.testing import (
    assert_mask_independent,
    assert_permutation_equivariant,
    assert_permutation_invariant,
)

from .helpers import call, drawn, KEY


N, M = 6, 4
TINY: dict = {
    "width_size": 8,
    "num_latents": 3,
    "depth": 1,
    "num_heads": 2,
}
IO: dict = TINY | {"num_frequencies": 4, "frequency_scale": 1.0}
WAVES = nn.SinusoidalFeatures((1.0, 2.0))
PIXEL: dict = TINY | {"features": WAVES, "num_neighbors": 2, "cond_size": 8}
FIELDS = {
    "pixel": lambda: nn.PixelField(2, **PIXEL, key=KEY),
    "capped": lambda: nn.PixelField(2, **PIXEL, state_tokens=2, key=KEY),
    "perceiver": lambda: nn.PerceiverField(2, **IO, key=KEY),
}
MASK = np.array([True, True, False, True, True, True])
RNG = np.random.default_rng(3)
COORDS = RNG.uniform(size=(N, 2)).astype(np.float32)
VALUES = RNG.normal(size=(N, 2)).astype(np.float32)
QUERIES = RNG.uniform(size=(M, 2)).astype(np.float32)
STATE = RNG.normal(size=(M, 2)).astype(np.float32)
SEEN = np.concatenate([COORDS, VALUES], axis=1)
ASKED = np.concatenate([QUERIES, STATE], axis=1)


@ft.cache
def field(name):
    """A network of which no parameter is zero."""
    return drawn(FIELDS[name])


def observed(queries=QUERIES, coords=COORDS, values=VALUES, mask=None):
    return nn.Observed(queries, coords, values, mask)


# What the networks must be equal to, in NumPy.


def linear(layer, x):
    return x @ np.asarray(layer.weight) + np.asarray(layer.bias)


def layer_norm(layer, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * np.asarray(layer.scale) + np.asarray(layer.shift)


def gelu(x):
    return x * (1 + sp.erf(x / np.sqrt(2))) / 2


def attention(layer, x, context):
    heads = []
    for part in np.split(np.arange(x.shape[1]), layer.num_heads):
        q = linear(layer.query, x)[:, part]
        k = linear(layer.keys, context)[:, part]
        v = linear(layer.values, context)[:, part]
        heads.append(sp.softmax(q @ k.T / np.sqrt(len(part)), axis=1) @ v)
    return linear(layer.out, np.concatenate(heads, axis=1))


def perceiver_io(net, coords, values, queries):
    phi = lambda c: np.asarray(net.features(c))
    tokens = linear(net.token_in, np.concatenate([phi(coords), values], axis=1))
    tokens = gelu(layer_norm(net.token_norm, tokens))
    h = np.asarray(net.reader.latents)
    for block in net.reader.blocks:
        first, second, third = block.norms
        h = h + attention(block.reading, layer_norm(first, h), tokens)
        rows = layer_norm(second, h)
        h = h + attention(block.thinking, rows, rows)
        hidden, last = block.feed_forward.layers
        h = h + linear(last, gelu(linear(hidden, layer_norm(third, h))))
    asked = gelu(layer_norm(net.query_norm, linear(net.query_in, phi(queries))))
    return linear(net.out, attention(net.decoder, asked, h))


def num_parameters(make):
    shapes = jax.tree.leaves(
        eqx.filter(eqx.filter_eval_shape(make), lambda leaf: hasattr(leaf, "dtype"))
    )
    floats = [leaf for leaf in shapes if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum(leaf.size for leaf in floats)


def test_numbers_of_parameters_are_those_of_the_original():
    width, features, ratio = 512, 2 * 256, 4
    affine = lambda i, o: i * o + o
    norm = 2 * width
    four = 4 * affine(width, width)
    mlp = affine(width, ratio * width) + affine(ratio * width, width)
    block = 2 * four + mlp + 3 * norm
    ends = affine(features + 3, width) + affine(features, width) + 2 * norm
    total = ends + 512 * width + 6 * block + four + affine(width, 3)
    assert total == 27_067_395
    assert num_parameters(lambda: nn.PerceiverIO(2, 3, key=KEY)) == total

    with_time = total + 2 * affine(width, width)
    assert num_parameters(lambda: nn.PerceiverField(key=KEY)) == with_time
    assert with_time == pytest.approx(27.6e6, rel=1e-3)


def test_perceiver_io_is_its_formula():
    net = drawn(lambda: nn.PerceiverIO(2, 2, 5, **IO | {"depth": 2}, key=KEY))
    expected = perceiver_io(net, COORDS, VALUES, QUERIES)
    actual = call(net, COORDS, VALUES, QUERIES)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_perceiver_field_is_its_formula():
    net = field("perceiver")
    t = 0.3
    frequencies = 1e4 ** (-np.arange(4) / 3)
    angles = t * frequencies
    hidden, last = net.time.layers.layers
    tau = linear(hidden, np.concatenate([np.sin(angles), np.cos(angles)]))
    tau = linear(last, tau * sp.expit(tau))[:2]

    expected = perceiver_io(
        net.perceiver,
        np.concatenate([COORDS, QUERIES]),
        np.concatenate([VALUES, STATE]) + tau,
        QUERIES,
    )
    actual = call(net, t, STATE, observed())
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


class OfInputs(eqx.Module):
    """A network as a function of its inputs `[coords, values]` and their mask."""

    net: eqx.Module

    def __call__(self, rows, mask=None):
        coords, values = rows[:, :2], rows[:, 2:]
        if isinstance(self.net, nn.PerceiverIO):
            return self.net(coords, values, QUERIES, mask)
        return self.net(0.3, STATE, observed(QUERIES, coords, values, mask))


class OfQueries(eqx.Module):
    """A velocity as a function of the rows `[query, state]` and their mask."""

    net: eqx.Module

    def __call__(self, rows, mask=None):
        cond = observed(rows[:, :2], COORDS, VALUES, MASK)
        return self.net(0.3, rows[:, 2:], cond, mask)


def test_order_and_masks_of_the_inputs_of_perceiver_io():
    fn = OfInputs(drawn(lambda: nn.PerceiverIO(2, 2, **IO, key=KEY)))
    assert_permutation_invariant(fn, SEEN, MASK, key=KEY)

    padded = np.where(MASK[:, None], SEEN, np.nan)
    np.testing.assert_allclose(call(fn, padded, MASK), call(fn, SEEN[MASK]), atol=1e-5)
    assert np.all(np.isfinite(call(fn, padded, np.zeros(N, bool))))


def test_order_and_masks_of_the_observations():
    fn = OfInputs(field("pixel"))
    assert_permutation_invariant(fn, SEEN, MASK, key=KEY)
    assert_mask_independent(fn, SEEN, MASK, key=KEY)


@pytest.mark.parametrize("name", ["capped", "perceiver"])
def test_order_and_masks_of_the_queries(name):
    fn = OfQueries(field(name))
    mask = np.array([True, False, True, True])
    assert_permutation_equivariant(fn, ASKED, mask, key=KEY)
    assert_mask_independent(fn, ASKED, mask, key=KEY)


def test_neighbors_at_equal_distance_do_not_depend_on_the_order():
    """On a grid most distances are equal."""
    grid = np.stack(np.meshgrid([0, 0.5, 1], [0, 0.5, 1]), axis=-1).reshape(-1, 2)
    rows = np.concatenate([grid, RNG.normal(size=(9, 2))], axis=1).astype(np.float32)
    middle = np.full((M, 2), 0.5, np.float32)

    def velocity(rows, mask):
        cond = observed(middle, rows[:, :2], rows[:, 2:], mask)
        return field("pixel")(0.3, STATE, cond)

    assert_permutation_invariant(velocity, rows, key=KEY)


def test_nearest_observations_are_those_of_a_search():
    queries = field("pixel").queries
    seen = observed(mask=MASK)
    numbers = np.asarray(call(lambda seen: queries._nearest(seen), seen))
    for query, row in zip(QUERIES, numbers.reshape(M, 2, 5), strict=True):
        distances = np.linalg.norm(COORDS - query, axis=1)
        nearest = np.argsort(np.where(MASK, distances, np.inf))[:2]
        np.testing.assert_allclose(
            row[:, :2], 10 * (COORDS[nearest] - query), atol=1e-5
        )
        np.testing.assert_array_equal(row[:, 2:4], VALUES[nearest])
        np.testing.assert_array_equal(row[:, 4], 1)


@pytest.mark.parametrize("name", ["pixel", "perceiver"])
def test_without_observations_the_state_alone_is_read(name):
    net = field(name)
    nothing = observed(mask=np.zeros(N, bool))
    out = np.asarray(call(net, 0.3, STATE, nothing))
    assert np.all(np.isfinite(out))

    empty = observed(coords=COORDS[:0], values=VALUES[:0])
    np.testing.assert_allclose(call(net, 0.3, STATE, empty), out, atol=1e-5)
    something = call(net, 0.3, STATE, observed(mask=np.ones(N, bool)))
    assert np.abs(out - np.asarray(something)).max() > 1e-3


def influence(net):
    """How much velocity `i` moves if state `j` does, `(M, M)`."""
    cond = observed(mask=np.ones(N, bool))
    velocity = lambda x: np.asarray(call(net, 0.3, x, cond))
    moved = [
        velocity(STATE + 0.1 * row[:, None]) for row in np.eye(M, dtype=np.float32)
    ]
    return np.abs(np.stack(moved, axis=1) - velocity(STATE)[:, None]).max(axis=2)


def test_queried_points_know_of_each_other_through_state_tokens_alone():
    assert np.all(influence(field("pixel")) > 0)

    chosen = np.asarray(spread_rows(QUERIES, 2, None))
    others = np.setdiff1d(np.arange(M), chosen)
    of_capped = influence(field("capped"))
    assert np.all(of_capped[:, chosen] > 0)
    # The others move nothing but their own velocity.
    of_others = of_capped[np.ix_(others, others)]
    np.testing.assert_array_equal(of_others > 0, np.eye(len(others), dtype=bool))


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 4), (jnp.bfloat16, 14)])
@pytest.mark.parametrize("side", [32, 64])
def test_state_tokens_are_spread_over_a_grid(side, dtype, bound):
    """Every sixteenth part of the image has about as many of them."""
    line = np.linspace(0, 1, side, dtype=np.float32)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    rounded = jnp.asarray(grid, dtype)
    chosen = grid[np.asarray(spread_rows(rounded, 208, None))]
    counts, _, _ = np.histogram2d(*chosen.T, bins=4, range=[(0, 1), (0, 1)])
    # A random choice has a standard deviation of 3.5 around 13. Rounded coordinates are
    # not quite on a grid.
    assert np.abs(counts - 13).max() <= bound

    # Many rows have the same fraction in float32.
    order = np.random.default_rng(0).permutation(len(grid))
    again = grid[order][np.asarray(spread_rows(rounded[order], 208, None))]
    np.testing.assert_array_equal(again, chosen)


def test_the_cost_is_linear_in_the_queries():
    net = field("capped")

    def flops(m):
        rows = np.zeros((m, 2), np.float32)
        velocity = jax.jit(lambda x, queries: net(0.3, x, observed(queries)))
        return velocity.lower(rows, rows).cost_analysis()["flops"]

    one, two, four = flops(1024), flops(2048), flops(4096)
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)
    assert four < 4.1 * one


def test_derivatives_forward():
    def value_and_tangent(net, t, x, tangent):
        fn = lambda t, x: net(t, x, observed(mask=MASK))
        return jax.jvp(fn, (t, x), (jnp.ones_like(t), tangent))

    t = np.float32(0.3)
    moved, tangent = call(value_and_tangent, field("pixel"), t, STATE, VALUES[:M])
    step = 1e-2
    at = lambda sign: np.asarray(
        call(
            value_and_tangent,
            field("pixel"),
            np.float32(t + sign * step),
            STATE + np.float32(sign * step) * VALUES[:M],
            VALUES[:M],
        )[0]
    )
    difference = (at(1) - at(-1)) / (2 * step)
    np.testing.assert_allclose(tangent, difference, rtol=0.02, atol=5e-3)
    assert np.all(np.isfinite(moved))


def test_pixel_field_starts_at_zero_and_every_parameter_learns():
    new = FIELDS["pixel"]()
    cond = observed(mask=MASK)

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def gradient(net):
        value = net(0.3, STATE, cond)
        return jnp.mean((value - STATE) ** 2), value

    first, value = gradient(new)
    assert not np.any(value)
    assert np.any(np.asarray(first.out.weight))

    leaves = jax.tree.leaves(gradient(field("pixel"))[0])
    assert len(leaves) > 50
    # A bias of keys moves all scores of a query alike, and no output.
    still = [leaf.shape for leaf in leaves if np.abs(leaf).max() < 1e-7]
    assert still == [(8,)] * 3


def test_two_times_and_any_dtype():
    times = nn.TwoTimes(nn.SinusoidalTime(4))
    for make in (nn.PixelField, nn.PerceiverField):
        net = lambda x, make=make: make(2, **TINY, time_embedding=times, key=KEY)(
            np.array([0.2, 0.7], np.float32), x, observed()
        )
        with jax.numpy_rank_promotion("raise"):
            assert eqx.filter_eval_shape(net, STATE).shape == (M, 2)
            from_numpy = jax.eval_shape(lambda net=net: net(STATE.astype(np.float64)))
            assert from_numpy.dtype == jnp.float32
        # JAX's own attention promotes half precision, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            half = eqx.filter_eval_shape(net, STATE.astype(jnp.bfloat16))
            assert half.dtype == jnp.bfloat16


def test_few_step_losses():
    """They differentiate forward, and the result backward; every parameter has its share."""
    two_times = nn.TwoTimes(nn.SinusoidalTime(8))
    make = lambda: nn.PixelField(2, **PIXEL, time_embedding=two_times, key=KEY)
    flow_map = fk.few_step.FlowMap(drawn(make))
    rows = (QUERIES, COORDS, VALUES, MASK)
    cond = nn.Observed(*(np.stack([row, row[::-1]]) for row in rows))
    x1 = np.stack([STATE, -STATE])

    def loss(flow_map):
        return fk.few_step.mean_flow_loss(flow_map, x1, cond, key=KEY)

    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(loss))(flow_map)
    leaves = jax.tree.leaves(eqx.filter(gradient, eqx.is_inexact_array))
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf) for leaf in leaves)


def constant_fields(key, batch):
    """Fields of one value each, observed at three places and asked for at two."""
    places_key, level_key = jr.split(key)
    places = jr.uniform(places_key, (batch, 5, 2))
    level = jr.uniform(level_key, (batch, 1, 1), minval=-1.0)
    queries, coords = jnp.split(places, [2], axis=1)
    cond = nn.Observed(queries, coords, jnp.broadcast_to(level, (batch, 3, 1)))
    return jnp.broadcast_to(level, (batch, 2, 1)), cond


def test_a_flow_learns_that_fields_are_constant():
    net = nn.PixelField(
        1,
        **PIXEL | {"width_size": 16, "num_neighbors": 1},
        key=KEY,
    )
    params, static = eqx.partition(fk.Flow(net), eqx.is_inexact_array)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, 400))

    def step(carry, key):
        params, state = carry
        data_key, loss_key = jr.split(key)
        x1, cond = constant_fields(data_key, 32)

        def loss_of(params):
            flow = eqx.combine(params, static)
            return fk.flow_matching_loss(flow, x1, cond, key=loss_key, block=None)

        gradient = jax.grad(loss_of)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def fit(params):
        keys = jr.split(KEY, 400)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)

    (params, _), _ = fit(params)
    flow = eqx.combine(params, static)
    level, cond = jax.jit(constant_fields, static_argnums=1)(jr.key(1), 32)
    samples = fk.sample(
        flow,
        (2, 1),
        num_samples=32,
        cond=cond,
        key=KEY,
        solver=dfx.Euler(),
        num_steps=50,
    ).values
    errors = np.asarray(samples) - np.asarray(level)
    # The levels spread by 0.58, and noise by 1.
    assert np.sqrt(np.mean(errors**2)) < 0.1


def test_misuse_of_perceiver_io():
    net = drawn(lambda: nn.PerceiverIO(2, 2, **IO, key=KEY))
    with pytest.raises(ValueError, match="`points` have 3 coordinates"):
        net(np.zeros((N, 3), np.float32), VALUES, QUERIES)
    with pytest.raises(ValueError, match="in_size=2"):
        net(COORDS, VALUES, np.zeros((M, 3), np.float32))
    with pytest.raises(ValueError, match="`values` have 3 channels"):
        net(COORDS, np.zeros((N, 3), np.float32), QUERIES)
    with pytest.raises(ValueError, match="`coords` is an empty set"):
        net(COORDS[:0], VALUES[:0], QUERIES)
    with pytest.raises(ValueError, match="`query_coords` is empty"):
        net(COORDS, VALUES, QUERIES[:0])


def test_misuse_of_observations():
    with pytest.raises(ValueError, match="`query_coords` must be in .0, 1."):
        observed(queries=31 * QUERIES)
    with pytest.raises(ValueError, match="`coords` must be in .0, 1."):
        observed(coords=COORDS - 1, mask=MASK)
    with pytest.raises(ValueError, match="`coords` must be in .0, 1."):
        observed(coords=np.full_like(COORDS, np.nan))
    # Padding may hold anything.
    observed(coords=np.where(MASK[:, None], COORDS, -1), mask=MASK)

    with pytest.raises(ValueError, match="`values` must have one row"):
        observed(values=VALUES[1:])
    with pytest.raises(ValueError, match="same dimension"):
        observed(queries=QUERIES[:, :1])
    with pytest.raises(ValueError, match="`mask` must have shape"):
        observed(mask=MASK[1:])
    with pytest.raises(ValueError, match="`values` must have shape"):
        observed(coords=COORDS[None], queries=QUERIES[None])


@pytest.mark.parametrize("name", ["pixel", "perceiver"])
def test_misuse_of_fields(name):
    net = field(name)
    with pytest.raises(ValueError, match="`cond` must be the observations"):
        net(0.3, STATE, None)
    with pytest.raises(ValueError, match=r"`x` must have shape \(m, 2\)"):
        net(0.3, STATE[:, :1], observed())
    with pytest.raises(ValueError, match="`x` is empty"):
        net(0.3, STATE[:0], observed(queries=QUERIES[:0]))
    with pytest.raises(ValueError, match="`query_coords` must have shape"):
        net(0.3, STATE[1:], observed())
    with pytest.raises(ValueError, match="`values` must have 2 channels"):
        net(0.3, STATE, observed(values=VALUES[:, :1]))
    batch = observed(QUERIES[None], COORDS[None], VALUES[None])
    with pytest.raises(ValueError, match="leading axis"):
        net(0.3, STATE, batch)


def test_misuse_of_options():
    with pytest.raises(ValueError, match="`num_neighbors` must not be negative"):
        nn.PixelField(2, **TINY, num_neighbors=-1, key=KEY)
    with pytest.raises(ValueError, match="`state_tokens` must not be negative"):
        nn.PixelField(2, **TINY, state_tokens=-1, key=KEY)
    with pytest.raises(ValueError, match="`width_size` must be at least"):
        nn.PerceiverField(3, width_size=2, key=KEY)

    alone = drawn(lambda: nn.PixelField(2, **TINY, state_tokens=0, key=KEY))
    with pytest.raises(ValueError, match="nothing to read"):
        alone(0.3, STATE, observed(coords=COORDS[:0], values=VALUES[:0]))
