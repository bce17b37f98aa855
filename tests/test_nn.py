import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import flowkit.nn as nn
from flowkit._compat import restoring

from .helpers import cloud, CRNS, DIMENSIONS, ENCODERS, KEY


TIME_EMBEDDINGS = {
    "raw": lambda key: nn.RawTime(),
    "sinusoidal": lambda key: nn.SinusoidalTime(16),
    "zero_to_one": lambda key: nn.ZeroToOneTime(6),
    "learned": lambda key: nn.LearnedTime(5, key=key),
    "learned_sinusoidal": lambda key: nn.LearnedTime(
        5, embedding=nn.SinusoidalTime(8, scale=1.0), width_size=7, key=key
    ),
}
FEATURES = {
    "sinusoidal": (lambda d, key: nn.SinusoidalFeatures(), lambda d: 2 * 16 * d),
    "banded": (
        lambda d, key: nn.SinusoidalFeatures(nn.banded(3, 5)),
        lambda d: 2 * 15 * d,
    ),
    "fourier": (
        lambda d, key: nn.FourierFeatures(d, num_frequencies=7, key=key),
        lambda d: 14,
    ),
    "fourier_learnable": (
        lambda d, key: nn.FourierFeatures(
            d, num_frequencies=7, learnable=True, key=key
        ),
        lambda d: 14,
    ),
}
PARAMETER_COUNTS = {
    "autoencoder half, 1 to 1": (
        lambda: nn.FeedForward(1, 1, hidden_sizes=(32, 64, 32), key=KEY),
        4289,
    ),
    "1-D velocity": (lambda: nn.MLP(1, hidden_sizes=(32, 64, 32), key=KEY), 4321),
    "2-D velocity": (lambda: nn.MLP(2, hidden_sizes=(32, 64, 32), key=KEY), 4386),
    "1-D average velocity": (
        lambda: nn.MLP(1, hidden_sizes=(32, 64, 32), cond_size=1, key=KEY),
        4353,
    ),
    "2-D velocity with learned time": (
        lambda: nn.MLP(
            2,
            hidden_sizes=(128, 256, 256, 128),
            time_embedding=nn.LearnedTime(64, key=KEY),
            key=KEY,
        ),
        144_834,
    ),
    "AdaLN MLP": (lambda: nn.AdaLNMLP(2, 32, residual=False, key=KEY), 305_858),
}


def parameters(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


# -- embeddings


@pytest.mark.parametrize("name", TIME_EMBEDDINGS)
@pytest.mark.parametrize("t", [0.0, 1, -0.5, 2.0, np.float32(0.3)])
def test_time_embedding_size_and_legal_times(name, t):
    embedding = TIME_EMBEDDINGS[name](KEY)
    value = embedding(t)
    assert value.shape == (embedding.out_size,)
    assert value.dtype == jnp.float32
    assert jnp.all(jnp.isfinite(value))


@pytest.mark.parametrize("endpoint", [True, False])
def test_sinusoidal_time_is_its_formula(endpoint):
    t, size, scale, period = 0.37, 8, 5.0, 100.0
    value = nn.SinusoidalTime(size, scale=scale, max_period=period, endpoint=endpoint)(
        t
    )
    for k in range(4):
        angle = scale * t * period ** (-k / (3 if endpoint else 4))
        np.testing.assert_allclose(value[k], np.sin(angle), rtol=1e-5)
        np.testing.assert_allclose(value[4 + k], np.cos(angle), rtol=1e-5)


def test_the_default_embedding_is_smooth_in_time():
    # High frequencies make a velocity wiggle in time, which adaptive solvers pay for. The
    # squared norm of the derivative of (sin w t, cos w t) is the sum of w^2.
    embedding = nn.SinusoidalTime(32)
    _, derivative = jax.jvp(embedding, (0.3,), (1.0,))
    frequencies = 10_000.0 ** (-np.arange(16) / 15)
    np.testing.assert_allclose(
        np.linalg.norm(derivative), np.linalg.norm(frequencies), rtol=1e-5
    )


WITH_DEFAULT_TIME = {
    "embedding": lambda: nn.SinusoidalTime(8),
    "adaln": lambda: nn.AdaLNMLP(2, 0, key=KEY).conditioning.time_embedding,
    "dit": lambda: nn.DiT(2, 0, key=KEY).conditioning.time_embedding,
    "cross": lambda: nn.CrossAttentionCRN(2, 0, key=KEY).conditioning.time_embedding,
    "select": lambda: nn.Select(2, 8, key=KEY).time_embedding,
    "cross_attend": lambda: nn.CrossAttend(2, 8, key=KEY).time_embedding,
}


@pytest.mark.parametrize("name", WITH_DEFAULT_TIME)
def test_what_an_older_release_saved_keeps_its_scale(name):
    make = WITH_DEFAULT_TIME[name]
    assert eqx.filter_eval_shape(make).scale == 1.0
    token = restoring.set("0.2.0")
    try:
        assert eqx.filter_eval_shape(make).scale == 1000.0
        assert nn.SinusoidalTime(8, scale=3.0).scale == 3.0
    finally:
        restoring.reset(token)
    assert eqx.filter_eval_shape(make).scale == 1.0


def test_zero_to_one_time_is_a_fourier_basis():
    # Cosines of k pi t are orthogonal on [0, 1], with squared norm 1/2; so are the sines.
    n = 2000
    grid = jnp.linspace(0, 1, n, endpoint=False) + 0.5 / n
    values = jax.vmap(nn.ZeroToOneTime(8))(grid)
    for block in (values[:, :4], values[:, 4:]):
        np.testing.assert_allclose(block.T @ block / n, 0.5 * np.eye(4), atol=1e-4)


@pytest.mark.parametrize(
    ("make", "size"),
    [(nn.SinusoidalTime, 2), (nn.SinusoidalTime, 7), (nn.ZeroToOneTime, 3)],
)
def test_time_embedding_size_must_be_even(make, size):
    with pytest.raises(ValueError, match=f"`size` must be even.*got {size}"):
        make(size)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("d", DIMENSIONS)
def test_features_size_and_pointwise(name, d):
    make, size = FEATURES[name]
    features = make(d, KEY)
    points = cloud(d)
    value = features(points)
    assert value.shape == (6, size(d))
    np.testing.assert_allclose(features(points[2:3])[0], value[2], atol=1e-4)
    # Every feature is a sine or a cosine, and they come in pairs.
    half = size(d) // 2
    np.testing.assert_allclose(
        value[:, :half] ** 2 + value[:, half:] ** 2, 1.0, rtol=1e-5
    )


def test_frequencies():
    ratios = np.diff(np.log(nn.log_spaced(16, 1.0, 10.0)))
    np.testing.assert_allclose(ratios, np.log(10) / 15)
    frequencies = np.array(nn.banded(4, 5, 1.0, 64.0)).reshape(4, 5)
    np.testing.assert_allclose(frequencies[:, 0], 64.0 ** (np.arange(4) / 4))
    assert np.all(np.diff(frequencies.ravel()) > 0)
    assert frequencies.max() < 64


def test_fourier_kernel_is_gaussian():
    # The mean of cos(2 pi B (x - y)) over B ~ N(0, s^2) is exp(-2 pi^2 s^2 |x - y|^2); its
    # variance is below 1/2.
    scale, number = 0.2, 20_000
    features = nn.FourierFeatures(3, num_frequencies=number, scale=scale, key=KEY)
    a, b = features(cloud(3)[:2])
    x, y = cloud(3)[:2]
    expected = jnp.exp(-2 * jnp.pi**2 * scale**2 * jnp.sum((x - y) ** 2))
    assert abs(a @ b / number - expected) < 5 * np.sqrt(0.5 / number)


def test_fixed_fourier_frequencies_are_not_trained():
    fixed = nn.FourierFeatures(2, key=KEY)
    learnable = nn.FourierFeatures(2, key=KEY, learnable=True)
    assert parameters(fixed) == []
    assert [p.shape for p in parameters(learnable)] == [(256, 2)]
    np.testing.assert_allclose(fixed(cloud(2)), learnable(cloud(2)), atol=1e-4)


@pytest.mark.parametrize("learnable", [False, True])
def test_fourier_features_of_another_dimension_are_named(learnable):
    features = nn.FourierFeatures(2, learnable=learnable, key=KEY)
    with pytest.raises(ValueError, match="`points` have 3 .* the features .*in_size=2"):
        nn.PointNet(3, 8, features=features, key=KEY)


def test_fourier_features_of_several_keys():
    make = eqx.filter_vmap(
        lambda key: nn.FourierFeatures(2, num_frequencies=4, key=key)
    )
    values = eqx.filter_vmap(lambda features: features(cloud(2)))(
        make(jr.split(KEY, 3))
    )
    assert values.shape == (3, 6, 8)
    assert not np.allclose(values[0], values[1])


def test_point_embedding_parts():
    features = nn.SinusoidalFeatures()
    assert nn.PointEmbedding(3, 5, key=KEY).linear.in_size == 3
    assert nn.PointEmbedding(3, 5, features=features, key=KEY).linear.in_size == 3 + 96
    assert nn.PointEmbedding(3, 5, features=features, use_raw=False, key=KEY)(
        cloud(3)
    ).shape == (6, 5)


# -- layers


@pytest.mark.parametrize("shape", [(3, 5), (7, 130), (33, 32)])
def test_initial_weights_are_those_of_jax(shape):
    """Drawn eagerly, within a program, and from a key that the program knows."""
    key = jr.key(3)
    build = lambda key: nn.Linear(*shape, key=key).weight
    expected = jax.nn.initializers.lecun_normal()(key, shape)
    np.testing.assert_array_equal(build(key), expected)
    np.testing.assert_array_equal(jax.jit(build)(key), expected)
    np.testing.assert_array_equal(jax.jit(lambda: build(key))(), expected)


def test_linear_is_the_affine_map_with_weights_of_lecun():
    linear = nn.Linear(400, 300, key=KEY)
    x = jr.normal(KEY, (2, 5, 400))
    expected = np.einsum("abi,io->abo", x, linear.weight)
    np.testing.assert_allclose(linear(x), expected, atol=1e-4)
    # LeCun: variance 1 / in_size; the estimate of 120,000 draws has a relative error of
    # sqrt(2 / 120,000) = 0.4%.
    assert abs(400 * jnp.var(linear.weight) - 1) < 5 * 0.0041
    zero = nn.Linear(4, 3, zero_init=True, key=KEY)
    assert not np.any(
        np.concatenate([p.ravel() for p in (linear.bias, zero.weight, zero.bias)])
    )  # pyright: ignore


def plain_norm(h, axes, epsilon):
    mean = h.mean(axes, keepdims=True)
    return (h - mean) / jnp.sqrt(h.var(axes, keepdims=True) + epsilon)


def plain_group_norm(h):
    """Two groups of two channels."""
    groups = h.reshape(3, 3, 2, 2)
    return plain_norm(groups, (0, 1, 3), 1e-5).reshape(h.shape)


@pytest.mark.parametrize(
    ("norm", "plain", "shape"),
    [
        (nn.LayerNorm(7), lambda h: plain_norm(h, -1, 1e-6), (5, 7)),
        (nn.GroupNorm(4, 2), plain_group_norm, (3, 3, 4)),
    ],
    ids=["layer", "group"],
)
def test_values_and_derivatives_of_norms(norm, plain, shape):
    h = jr.normal(KEY, shape) * 3 + 2

    def all_of(fn):
        curvature = jax.hessian(lambda h: jnp.sum(fn(h) ** 3))
        derivatives = (jax.jacfwd(fn), jax.jacrev(fn), curvature)
        return jax.jit(lambda h: (fn(h), *(of(h) for of in derivatives)))

    actual = all_of(norm)
    for value, expected in zip(actual(h), all_of(plain)(h), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-5)
    assert all(np.all(np.isfinite(value)) for value in actual(jnp.full(shape, 4.0)))


@pytest.mark.parametrize(
    ("pool", "reduce"),
    [
        (nn.max_pool, lambda x: x.max(0)),
        (nn.mean_pool, lambda x: x.mean(0)),
        (nn.max_mean_pool, lambda x: np.concatenate([x.max(0), x.mean(0)])),
    ],
)
def test_pooling_is_that_of_the_valid_rows(pool, reduce):
    features = np.asarray(cloud(4)) - 5  # negative, so that a zero would win a maximum
    mask = np.array([True, False, True, True, False, True])
    np.testing.assert_allclose(pool(features), reduce(features), rtol=1e-6)
    np.testing.assert_allclose(pool(features, mask), reduce(features[mask]), rtol=1e-6)
    assert not jnp.any(pool(features, np.zeros(6, bool)))


def test_modulation_is_the_same_shared_or_per_point():
    modulation = nn.Modulation(5, 4, 3, key=KEY)
    cond = jr.normal(KEY, (1, 5))
    shared, per_point = modulation(cond), modulation(jnp.tile(cond, (6, 1)))
    assert shared.shape == (3, 1, 4)
    assert per_point.shape == (3, 6, 4)
    np.testing.assert_allclose(
        jnp.broadcast_to(shared, per_point.shape), per_point, atol=1e-6
    )
    h = cloud(4)
    assert jnp.array_equal(nn.modulate(h, jnp.zeros((1, 4)), jnp.zeros((1, 4))), h)


# -- the vector network


@pytest.mark.parametrize("name", PARAMETER_COUNTS)
def test_parameter_counts_of_the_literature(name):
    make, expected = PARAMETER_COUNTS[name]
    shapes = jax.tree.leaves(eqx.filter_eval_shape(make))
    sizes = [p.size for p in shapes if isinstance(p, jax.ShapeDtypeStruct)]
    assert sum(sizes) == expected


@pytest.mark.parametrize("name", TIME_EMBEDDINGS)
def test_mlp_sees_time_place_and_cond(name):
    embedding = TIME_EMBEDDINGS[name](KEY)
    mlp = nn.MLP(
        3,
        2,
        cond_size=5,
        hidden_sizes=(16,),
        time_embedding=embedding,
        zero_init=False,
        key=KEY,
    )
    x, cond = jnp.arange(3.0), {"image": jnp.ones((2, 2)), "label": 1}
    value = mlp(0.2, x, cond)
    assert value.shape == (2,)
    assert not jnp.allclose(value, mlp(0.4, x, cond))
    assert not jnp.allclose(value, mlp(0.2, x + 1, cond))
    assert not jnp.allclose(value, mlp(0.2, x, {"image": jnp.ones((2, 2)), "label": 0}))


def test_mlp_is_its_formula():
    mlp = nn.MLP(
        2, hidden_sizes=(5,), cond_size=1, activation=jnp.tanh, zero_init=False, key=KEY
    )
    first, last = mlp.layers.layers
    x, t, cond = jnp.array([0.5, -1.0]), 0.3, jnp.array(2.0)
    joined = jnp.array([0.5, -1.0, 0.3, 2.0])
    np.testing.assert_allclose(
        mlp(t, x, cond), jnp.tanh(joined @ first.weight) @ last.weight, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("cond_size", "cond", "message"),
    [
        (0, jnp.ones(3), "unconditional: build it with cond_size=3"),
        (3, None, "`cond` is None.*cond_size=3"),
        (3, jnp.ones(2), "`cond` holds 2 numbers.*cond_size=3[.]$"),
        (3, jnp.array(2), "`cond` holds 1 number, .*cond_size=3; give labels as"),
        (0, 2, "unconditional: .*cond_size=1; give labels as `jax.nn.one_hot"),
    ],
)
def test_mlp_refuses_another_cond(cond_size, cond, message):
    mlp = nn.MLP(2, cond_size=cond_size, key=KEY)
    with pytest.raises(ValueError, match=message):
        mlp(0.5, jnp.zeros(2), cond)


def test_mlp_refuses_another_size_or_type():
    mlp = nn.MLP(2, key=KEY)
    with pytest.raises(ValueError, match="`x` has 3 entries.*in_size=2"):
        mlp(0.5, jnp.zeros(3))
    with pytest.raises(TypeCheckError, match="x"):
        mlp(0.5, jnp.zeros(2, int))


def test_mlp_reads_other_shapes_as_vectors():
    mlp = nn.MLP(6, zero_init=False, key=KEY)
    x = jr.normal(KEY, (2, 3))
    np.testing.assert_array_equal(mlp(0.5, x), mlp(0.5, x.ravel()).reshape(2, 3))


# -- networks on sets


def test_second_call_compiles_nothing(caplog):
    crn, encoder = CRNS["adaln_mlp"](2, KEY), ENCODERS["point_net"](2, KEY)
    points = cloud(2)
    crn(0.3, points, encoder(points))
    shifted = points + 1
    with jax.log_compiles():
        crn(0.4, shifted, encoder(shifted))
    assert not [
        record for record in caplog.records if "Compiling" in record.getMessage()
    ]
