import functools

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

from .helpers import (
    call,
    cloud,
    CRNS,
    DIMENSIONS,
    drawn,
    GLOBAL_CRNS,
    KEY,
    LOCAL_CRNS,
    SMALL,
    SMALLEST,
    STRUCTURED_CRNS,
)


NUM_LATENTS = (
    dict.fromkeys(GLOBAL_CRNS, 1)
    | dict.fromkeys(LOCAL_CRNS, 6)
    | dict.fromkeys(STRUCTURED_CRNS, 3)
)
NETWORKS = [nn.AdaLNMLP, nn.DiT, nn.CrossAttentionCRN, nn.ConcatSquashMLP]
MASK = np.array([True, True, False, True, True, True])


def parameters(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


def latents_for(name):
    return rows(NUM_LATENTS[name], 8, seed=1) if name in NUM_LATENTS else None


class Cloudwise(eqx.Module):
    """A network as a function of the cloud and its mask alone.

    Local latents are padded like the cloud.
    """

    crn: nn.AbstractCRN
    latents: jax.Array | None
    local: bool = False

    def __call__(self, points, mask=None):
        latents = self.latents
        if self.local and latents is not None:
            latents = jnp.pad(
                latents, ((0, points.shape[0] - latents.shape[0]), (0, 0))
            )
        return self.crn(0.3, points, latents, mask)


@functools.cache
def cloudwise(name, d):
    return Cloudwise(drawn(CRNS[name], d, KEY), latents_for(name), name in LOCAL_CRNS)


@pytest.mark.parametrize(
    ("name", "d"), [(name, DIMENSIONS[i % 3]) for i, name in enumerate(CRNS)]
)
def test_crn_masks(name, d):
    assert_mask_independent(cloudwise(name, d), cloud(d), MASK, key=KEY)


# The dimension enters by the embedding alone: all of them for one conditioner, one for each
# combination.
@pytest.mark.parametrize(
    ("name", "d"),
    [
        (name, d)
        for i, name in enumerate(CRNS)
        for d in DIMENSIONS
        if name in GLOBAL_CRNS or d == DIMENSIONS[i % 3]
    ],
)
def test_crn_symmetry(name, d):
    network = cloudwise(name, d)
    points, latents = cloud(d), network.latents
    if name in LOCAL_CRNS:  # points and latents move together
        joint = lambda both, mask: network.crn(0.3, both[0], both[1], mask)
        assert_permutation_equivariant(joint, (points, latents), MASK, key=KEY)
    elif name in STRUCTURED_CRNS:
        assert_permutation_equivariant(network, points, MASK, key=KEY)
        assert_permutation_invariant(
            lambda z, _: network.crn(0.3, points, z, MASK), latents, key=KEY
        )
    else:
        assert_permutation_equivariant(network, points, MASK, key=KEY)


@pytest.mark.parametrize("name", CRNS)
def test_crn_starts_as_zero_and_learns(name):
    make, latents = CRNS[name], latents_for(name)
    crn = make(2, KEY)
    assert (crn.in_size, crn.out_size, crn.latent_size) == (
        2,
        2,
        0 if latents is None else 8,
    )

    points = np.asarray(cloud(2))

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def gradient(crn):
        value = crn(0.5, points, latents, MASK)
        return jnp.mean((value - points) ** 2), value

    (_, value), first = gradient(crn)
    assert not np.any(value)
    assert any(np.any(np.asarray(g)) for g in parameters(first))
    # Once the last layer has moved, so does everything else.
    assert all(
        np.any(np.asarray(g)) for g in parameters(gradient(cloudwise(name, 2).crn)[1])
    )


@pytest.mark.parametrize("name", CRNS)
def test_crn_of_one_point_depends_on_all_its_inputs_smoothly_in_time(name):
    network = cloudwise(name, 3)
    latents = network.latents
    if latents is not None:
        # A local network has one latent for its single point.
        num_latents = 1 if name in LOCAL_CRNS else None
        latents = np.asarray(latents)[:num_latents]
    points = np.asarray(cloud(3, 1))
    one = eqx.filter_jit(
        lambda t, x, z: jax.jvp(lambda t: network.crn(t, x, z), (t,), (jnp.ones(()),))
    )
    value, tangent = one(jnp.array(0.3), points, latents)
    assert value.shape == points.shape
    assert value.dtype == jnp.float32
    assert np.all(np.isfinite(tangent))
    assert np.any(tangent)
    assert not np.allclose(value, one(jnp.array(0.6), points, latents)[0])
    assert not np.allclose(value, one(jnp.array(0.3), points + 1, latents)[0])
    if latents is not None:
        assert not np.allclose(value, one(jnp.array(0.3), points, latents + 1)[0])


@pytest.mark.parametrize(
    "name",
    [
        "adaln_mlp",
        "adaln_mlp_per_point",
        "adaln_mlp_select",
        "adaln_mlp_cross_attend",
        "cross_attention",
        "cross_attention_structured",
        "concat_squash",
    ],
)
def test_pointwise_networks_move_each_point_on_its_own(name):
    network = cloudwise(name, 2)
    points = cloud(2)
    moved = points.at[3].add(1.0)
    change = np.any(np.asarray(call(network, points) != call(network, moved)), axis=1)
    assert change.tolist() == [False, False, False, True, False, False]


def test_conditioners_agree_where_they_meet():
    # One latent for all points is the same, given once, once for each point, or as the mean
    # of equal ones.
    make = lambda conditioner: drawn(
        lambda: nn.AdaLNMLP(2, 8, **SMALL, conditioner=conditioner, key=KEY)
    )
    latent = jr.normal(KEY, (1, 8))
    many = jnp.tile(latent, (6, 1))
    expected = call(make(nn.Broadcast()), 0.3, cloud(2), latent)
    np.testing.assert_allclose(
        call(make(nn.PerPoint()), 0.3, cloud(2), many), expected, atol=1e-5
    )
    np.testing.assert_allclose(
        call(make(nn.Pool(nn.mean_pool)), 0.3, cloud(2), many), expected, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "latents", "message"),
    [
        ("adaln_mlp", jnp.zeros((2, 8)), "2 rows.*Broadcast.*Pool"),
        ("adaln_mlp_per_point", jnp.zeros((2, 8)), "2 rows and `points` has 6"),
        ("dit_per_point", jnp.zeros((2, 8)), "2 rows and `points` has 6"),
        ("concat_squash_per_point", jnp.zeros((2, 8)), "2 rows and `points` has 6"),
        ("adaln_mlp", jnp.zeros((1, 7)), "size 7.*latent_size=8"),
        ("adaln_mlp", None, "`latents` is None.*latent_size=8"),
        (
            "adaln_mlp_unconditional",
            jnp.zeros((1, 7)),
            "unconditional: build it with latent_size=7",
        ),
    ],
)
def test_crn_refuses_wrong_latents(name, latents, message):
    with pytest.raises(ValueError, match=message):
        cloudwise(name, 2).crn(0.5, cloud(2), latents)


def test_a_vector_is_one_latent():
    network = cloudwise("adaln_mlp", 2)
    both = eqx.filter_jit(
        lambda x, z: (network.crn(0.3, x, z[0]), network.crn(0.3, x, z))
    )
    np.testing.assert_array_equal(*both(cloud(2), network.latents))


@pytest.mark.parametrize("make", NETWORKS)
def test_crn_has_another_out_size_if_asked(make):
    size = {"width_size": 16, "depth": 1}
    crn = drawn(lambda: make(2, 8, out_size=5, **size, key=KEY))
    assert crn.out_size == 5
    assert call(crn, 0.3, cloud(2), jnp.ones((1, 8)), MASK).shape == (6, 5)


@pytest.mark.parametrize("make", NETWORKS)
def test_crn_over_slots_is_a_velocity_network_of_latents(make):
    # What a flow prior asks of it: (t, z) -> dz/dt for z of shape (k, c), without a condition.
    crn = drawn(lambda: make(5, 0, width_size=16, depth=2, key=KEY))
    slots = rows(4, 5, seed=2)
    assert_permutation_equivariant(lambda z, _: crn(0.3, z), slots, key=KEY)


def test_shared_conditioning_is_computed_once():
    # With one latent no product over the points has the conditioning's width: 17 appears in
    # vectors of one row only.
    crn = drawn(lambda: nn.AdaLNMLP(2, 8, cond_size=17, key=KEY))
    jaxpr = jax.make_jaxpr(lambda x, z: crn(0.3, x, z))(
        jnp.zeros((50, 2)), jnp.zeros((1, 8))
    )
    shapes = [v.aval.shape for equation in jaxpr.jaxpr.eqns for v in equation.outvars]
    assert (1, 17) in shapes
    assert (50, 17) not in shapes


@pytest.mark.parametrize("name", LOCAL_CRNS)
def test_local_latents_of_masked_points_have_no_influence(name):
    network, points = cloudwise(name, 2), cloud(2)

    @jax.jit
    def value_and_gradient(latents):
        total = lambda z: (jnp.sum(value := network.crn(0.3, points, z, MASK)), value)
        (_, value), gradient = jax.value_and_grad(total, has_aux=True)(latents)
        return value, gradient

    clean = value_and_gradient(network.latents)
    spoiled = value_and_gradient(jnp.where(MASK[:, None], network.latents, jnp.nan))
    for a, b in zip(clean, spoiled, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.any(np.asarray(a)[~np.asarray(MASK)])


@pytest.mark.parametrize("pooling", [nn.max_pool, nn.mean_pool, nn.max_mean_pool])
def test_pool_leaves_out_rows_of_zeros(pooling):
    latents = rows(3, 8) - 5  # negative, so that a zero would win a maximum
    padded = np.pad(latents, ((0, 2), (0, 0)))
    pool = nn.Pool(pooling)
    both = jax.jit(lambda x, *latents: [pool(0.3, x, z) for z in latents])
    np.testing.assert_allclose(*both(cloud(2), padded, latents), rtol=1e-5)


@pytest.mark.parametrize("name", [*STRUCTURED_CRNS])
def test_latents_that_are_not_there_have_no_influence(name):
    network = cloudwise(name, 2)
    # Negative, so that a zero would win a maximum.
    latents = np.asarray(network.latents) - 5
    padded = np.pad(latents, ((0, 2), (0, 0)))
    both = jax.jit(lambda x, *latents: [network.crn(0.3, x, z) for z in latents])
    np.testing.assert_allclose(*both(cloud(2), padded, latents), rtol=1e-4, atol=1e-4)


def test_nothing_but_zeros_still_has_a_time():
    """As the condition of a guided flow for no class is."""
    network = cloudwise("cross_attention_structured", 2)
    points, times = np.asarray(cloud(2)), np.float32([0.2, 0.7])
    at_times = jax.jit(jax.vmap(lambda t: network.crn(t, points, np.zeros((2, 8)))))
    one, other = np.asarray(at_times(times))
    assert np.max(np.abs(one - other)) > 1e-3


# -- the parts


def rows(*shape, seed=3):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def silu(x):
    return x / (1 + np.exp(-x))


def test_select_is_its_formula():
    select = drawn(
        lambda: nn.Select(2, 3, width_size=5, time_embedding=nn.RawTime(), key=KEY)
    )
    points, latents = (
        np.asarray(cloud(2), np.float64),
        np.asarray(rows(4, 3), np.float64),
    )
    affine = lambda linear, x: x @ np.asarray(linear.weight) + np.asarray(linear.bias)
    expected = []
    hidden = [silu(affine(select.latent_in, np.append(z, 0.3))) for z in latents]
    for x in points:
        query = silu(affine(select.embedding.linear, x))
        weights = np.array([np.exp(query @ h / np.sqrt(5)) for h in hidden])
        expected.append(weights @ np.stack(hidden) / weights.sum())
    np.testing.assert_allclose(
        call(select, 0.3, cloud(2), rows(4, 3)), expected, atol=1e-5
    )


def test_cross_attend_is_attention_of_points_to_latents():
    cross = drawn(
        lambda: nn.CrossAttend(
            2, 3, width_size=8, num_heads=2, time_embedding=nn.RawTime(), key=KEY
        )
    )
    timed = np.pad(rows(4, 3), ((0, 0), (0, 1)), constant_values=0.3)

    @jax.jit
    def actual_and_expected(points):
        queries = jax.nn.silu(cross.embedding(points))
        expected = cross.attention(queries, cross.latent_in(timed))
        return cross(0.3, points, rows(4, 3)), expected

    np.testing.assert_allclose(*actual_and_expected(cloud(2)), atol=1e-5)


def test_dit_blocks_start_as_the_identity():
    # With another last layer, a new network is that layer on the normalized embedding,
    # whatever time and latents are.
    make = lambda: nn.DiT(2, 8, width_size=8, depth=2, num_heads=2, key=KEY)
    last = drawn(lambda: nn.Linear(8, 2, key=KEY))
    dit = eqx.tree_at(lambda dit: dit.out, eqx.filter_jit(make)(), last)
    h = silu(np.asarray(call(dit.embedding, cloud(2)), np.float64))
    h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(
        call(dit, 0.3, cloud(2), rows(1, 8)),
        h @ np.asarray(last.weight) + np.asarray(last.bias),
        atol=1e-5,
    )


def test_points_of_a_dit_see_each_other():
    network, points = cloudwise("dit", 2), cloud(2)
    change = np.any(
        np.asarray(call(network, points) != call(network, points.at[3].add(1.0))),
        axis=1,
    )
    assert change.all()


@pytest.mark.parametrize("make", [nn.DiT, nn.CrossAttentionCRN])
def test_dropout_needs_a_key(make):
    crn = drawn(lambda: make(2, 8, **SMALLEST, dropout=0.5, key=KEY))
    points, latents = np.asarray(cloud(2)), rows(1, 8)
    one = eqx.filter_jit(lambda key: crn(0.3, points, latents, MASK, key))
    np.testing.assert_array_equal(one(None), one(None))
    assert not np.allclose(one(jr.key(1)), one(jr.key(2)))


def test_stochastic_depth_grows_with_depth():
    dit = drawn(lambda: nn.DiT(2, 8, depth=3, stochastic_depth=0.2, key=KEY))
    np.testing.assert_allclose(
        [block.residual.stochastic_depth.p for block in dit.blocks], [0.0, 0.1, 0.2]
    )


def test_cross_attention_wants_a_token():
    with pytest.raises(ValueError, match="`num_tokens` must be at least 1.*got 0"):
        nn.CrossAttentionCRN(2, 8, num_tokens=0, key=KEY)


def test_concat_squash_linear_is_its_formula():
    layer = drawn(lambda: nn.ConcatSquashLinear(3, 4, 2, key=KEY))
    x, cond = rows(5, 3), rows(1, 2)
    w = lambda linear: np.asarray(linear.weight, np.float64)
    gate = 1 / (1 + np.exp(-(cond @ w(layer.gate) + np.asarray(layer.gate.bias))))
    expected = (x @ w(layer.linear) + np.asarray(layer.linear.bias)) * gate
    expected = expected + cond @ w(layer.shift)
    tiled = np.tile(cond, (5, 1))
    np.testing.assert_allclose(call(layer, x, cond), expected, atol=1e-5)
    np.testing.assert_allclose(call(layer, x, tiled), expected, atol=1e-5)
    zero = eqx.filter_jit(
        lambda: nn.ConcatSquashLinear(3, 4, 2, zero_init=True, key=KEY)(x, cond)
    )
    assert not np.any(zero())


def test_concat_squash_keeps_scales():
    """Over 256 inputs of 256 numbers.

    Without the gains a network of eight layers would shrink them 65,000 times.
    """
    x = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    layer = eqx.filter_jit(lambda: nn.ConcatSquashLinear(256, 256, 2, key=KEY))()
    variance = np.var(np.asarray(call(layer, x, np.zeros((1, 2), np.float32))))
    np.testing.assert_allclose(variance, np.var(x), rtol=3 * np.sqrt(4 / 256**2))
    crn = nn.ConcatSquashMLP(256, 0, width_size=256, depth=8, key=KEY)
    crn = eqx.tree_at(lambda crn: crn.layers[-1].linear.weight, crn, jnp.eye(256))
    assert 0.1 < np.mean(np.std(np.asarray(call(crn, 0.0, x)), axis=0)) < 10


def test_squash_sum_keeps_the_direction_and_bounds_the_length():
    layer = drawn(lambda: nn.SquashSum((3, 2), 4, key=KEY))
    x, y = 2 * rows(5, 3), rows(5, 2)
    first, second = layer.linears
    w = lambda array: np.asarray(array, np.float64)
    v = x @ w(first.weight) + w(first.bias) + y @ w(second.weight)
    value = np.asarray(call(layer, x, y))
    square = np.sum(v**2, axis=1)
    np.testing.assert_allclose(
        np.linalg.norm(value, axis=1), square / (1 + square), rtol=1e-5
    )
    np.testing.assert_allclose(
        value / np.linalg.norm(value, axis=1, keepdims=True),
        v / np.sqrt(square)[:, None],
        atol=1e-5,
    )
    zero = jax.tree.map(np.zeros_like, eqx.filter(layer, eqx.is_inexact_array))
    at_zero = lambda x: eqx.combine(zero, layer)(x, y)
    assert np.all(np.isfinite(jax.jit(jax.jacrev(at_zero))(x)))
    with pytest.raises(ValueError, match="`inputs` are 1.*2 in_sizes"):
        layer(x)
