"""Few-step models against closed forms: exact maps are fixed points of every loss, and take one step."""

import functools as ft

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats as st

import flowkit as fk
from flowkit import few_step as fs

from .oracles import compilations, mixture_1d, mixture_map


GAUSSIAN = fk.Normal(jnp.array([1.0, -0.5]), jnp.array([0.5, 1.6]))
BOTH = [fs.mean_flow_loss, fs.improved_mean_flow_loss, fs.back_flow_loss, fs.shortcut_loss]
LOSSES = [*BOTH, fs.facm_loss, fs.consistency_loss]


def without_cosine(preset):
    return dict(preset) | {"cosine": False}


# Every source's weights and laws; the cosine of FACM, which biases the velocity of data that are not isotropic, is off.
SOURCES = {
    "mean-flow-imagenet": (fs.mean_flow_loss, fs.MEAN_FLOW_IMAGENET),
    "mean-flow-cifar10": (fs.mean_flow_loss, fs.MEAN_FLOW_CIFAR10),
    "mean-flow-cifar10-v1": (fs.mean_flow_loss, fs.MEAN_FLOW_CIFAR10_V1),
    "improved-mean-flow-imagenet": (fs.improved_mean_flow_loss, fs.IMPROVED_MEAN_FLOW_IMAGENET),
    "back-flow-cifar10": (fs.back_flow_loss, fs.BACK_FLOW_CIFAR10),
    "facm-imagenet": (fs.facm_loss, without_cosine(fs.FACM_IMAGENET)),
    "consistency-normalized": (fs.consistency_loss, fs.CONSISTENCY_NORMALIZED),
    "shortcut-dyadic": (fs.shortcut_loss, {"pairs": fs.DyadicPairs()}),
}
TOYS = {
    "mean-flow": (fs.mean_flow_loss, fs.MEAN_FLOW_TOY),
    "improved-mean-flow": (fs.improved_mean_flow_loss, fs.MEAN_FLOW_TOY),
    "back-flow": (fs.back_flow_loss, fs.BACK_FLOW_TOY),
    "facm": (fs.facm_loss, fs.FACM_TOY),
    "consistency": (fs.consistency_loss, fs.CONSISTENCY_TOY),
    "shortcut": (fs.shortcut_loss, fs.SHORTCUT_TOY),
}


class Perturbed(eqx.Module):
    """An exact map plus functions of times and place, whose weights are what the gradient is taken of."""

    weights: jax.Array
    exact: fs.FlowMap

    def __call__(self, times, x, cond=None):
        s, t = times
        features = [jnp.ones_like(x), x, s * x, (1 + t - s) * x**2, jnp.sin(2 * x + s)]
        return self.exact(s, t, x, cond) + jnp.tensordot(self.weights, jnp.stack(features), axes=1)


@eqx.filter_jit
def gradients(weights, exact, distribution, shape, loss, key):
    """The gradients of independent batches."""
    frozen = jax.lax.stop_gradient

    def one(key):
        xkey, lkey = jr.split(key)
        x1 = distribution.sample((200, *shape), key=xkey)
        value = lambda weights: loss(fs.FlowMap(Perturbed(weights, exact)), x1, key=lkey)[0]
        return jax.grad(value)(frozen(weights))

    return jax.lax.map(one, jr.split(key, 40))


def p_value(gradients):
    """Hotelling's test that the mean is zero: 3 standard errors in one dimension are 0.0027."""
    gradients = np.asarray(gradients, float)
    num, size = gradients.shape
    mean = gradients.mean(axis=0)
    square = num * mean @ np.linalg.solve(np.cov(gradients.T), mean)
    return st.f.sf(square * (num - size) / (size * (num - 1)), size, num - size)


def check_fixed_point(distribution, exact, shape, name, key, registry):
    """The expected gradient is zero at the exact map, and would be seen if it were not."""
    loss, options = registry[name]
    draw = ft.partial(gradients, exact=exact, distribution=distribution, shape=shape, key=key)
    # Numbers as arrays, so that presets that differ by them only share a program.
    pairs_and_weights = lambda value: jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if type(leaf) is float else leaf, value
    )
    shared = {name: value if isinstance(value, float) else pairs_and_weights(value) for name, value in options.items()}
    loss = eqx.Partial(loss, **shared)
    assert p_value(draw(jnp.zeros(5), loss=loss)) > 0.0027
    assert p_value(draw(jnp.full(5, 0.1), loss=loss)) < 1e-6


@pytest.mark.parametrize("name", SOURCES)
def test_exact_map_is_a_fixed_point_on_gaussian_data(name, key):
    """With the weights, clips and laws of each source, since errors given a place are symmetric here."""
    check_fixed_point(GAUSSIAN, fs.exact_flow_map(GAUSSIAN), (2,), name, key, SOURCES)


@pytest.mark.parametrize("name", TOYS)
def test_exact_map_is_a_fixed_point_on_a_mixture(name, key):
    check_fixed_point(mixture_1d(), fs.exact_flow_map(mixture_1d()), (1,), name, key, TOYS)


def test_adaptive_weights_move_the_fixed_point_on_a_mixture(key):
    loss = eqx.Partial(fs.mean_flow_loss, **fs.MEAN_FLOW_TOY | {"weight": fs.AdaptiveWeight(1.0)})
    found = gradients(jnp.zeros(5), fs.exact_flow_map(mixture_1d()), mixture_1d(), (1,), loss, key)
    assert p_value(found) < 1e-6


# Exact maps.


def correlated(dtype=jnp.float32):
    return fk.GaussianMixture(jnp.array([[0.5, -1.0]], dtype), jnp.array([[[0.8, 0.5], [0.5, 0.6]]], dtype))


EXACT = {
    "normal": (lambda dtype: fk.Normal(jnp.array([1.0, -0.5], dtype), jnp.array([0.5, 1.6], dtype)), 2),
    "correlated": (correlated, 2),
    "mixture": (mixture_1d, 1),
}


@pytest.mark.parametrize(
    ("name", "path"),
    [("normal", fk.CosinePath()), ("correlated", fk.LinearPath()), ("mixture", fk.CosinePath())],
    ids=["normal", "correlated", "mixture"],
)
def test_exact_maps_follow_the_exact_velocity(name, path):
    """Against the ODE of the closed-form velocity, in both directions, from a source that is not standard."""
    make, size = EXACT[name]
    with jax.enable_x64(True):
        source = fk.Normal(0.3, 0.7)
        exact = fs.exact_flow_map(make(jnp.float64), path, source=source)
        velocity = fk.exact_flow(make(jnp.float64), path, source=source)
        x = jnp.array([0.4, -1.1])[:size]
        controller = dfx.PIDController(rtol=1e-10, atol=1e-10)
        jump = eqx.filter_jit(fs.jump)
        for s, t in [(0.0, 1.0), (0.9, 0.2)]:
            end = fk.integrate(velocity, x, t0=s, t1=t, stepsize_controller=controller).ys[-1]
            np.testing.assert_allclose(jump(exact, jnp.asarray(s), jnp.asarray(t), x), end, atol=1e-7)
        for s in (0.0, 0.4, 1.0):
            np.testing.assert_allclose(fs.velocity_of(exact)(s, x), velocity(s, x), atol=1e-9)


def test_exact_map_of_a_mixture_has_the_quantiles_of_scipy():
    exact = fs.exact_flow_map(mixture_1d())
    places = np.array([-3.0, -1.0, 0.0, 0.4, 0.6, 2.0])
    jump = eqx.filter_jit(jax.vmap(ft.partial(fs.jump, exact), (None, None, 0)))
    for s, t in [(0.0, 1.0), (1.0, 0.0), (0.25, 0.75)]:
        ours = jump(jnp.asarray(s), jnp.asarray(t), jnp.asarray(places[:, None], jnp.float32))
        np.testing.assert_allclose(ours[:, 0], [mixture_map(x, s, t) for x in places], atol=2e-5)


@pytest.mark.parametrize("distribution", [GAUSSIAN, mixture_1d()], ids=["normal", "mixture"])
def test_identity_of_the_total_derivative(distribution):
    """u = v + (t - s) du/ds along the exact velocity, in both directions, in intervals of any length."""
    exact, velocity = fs.exact_flow_map(distribution), fk.exact_flow(distribution)
    size = 2 if distribution is GAUSSIAN else 1

    def residual(s, t, x):
        v = velocity(s, x)
        u, derivative = fs.total_derivative(exact, s, t, x, v)
        return u - v - (t - s) * derivative

    s, t = jnp.array([[0.0, 1.0], [0.8, 0.1], [0.5, 0.51], [0.3, 0.3001], [0.3, 0.3]], jnp.float32).T
    x = jnp.array([0.7, -0.4], jnp.float32)[:size]
    residuals = jax.jit(jax.vmap(residual, (0, 0, None)))(s, t, x)
    np.testing.assert_allclose(residuals, 0, atol=2e-3)


def test_exact_maps_are_differentiable_in_time():
    """The derivatives that pass through the root of the quantile are those of finite differences."""
    with jax.enable_x64(True):
        exact = fs.exact_flow_map(mixture_1d(jnp.float64))
        x, v, h = jnp.array([0.2]), jnp.array([0.7]), 1e-5
        at = jax.jit(lambda s, x: exact(s, 0.8, x))
        _, derivative = jax.jit(lambda x, v: fs.total_derivative(exact, 0.3, 0.8, x, v))(x, v)
        difference = (at(0.3 + h, x + h * v) - at(0.3 - h, x - h * v)) / (2 * h)
        np.testing.assert_allclose(derivative, difference, rtol=1e-6)


def test_unknown_flow_maps():
    with pytest.raises(ValueError, match="no closed form"):
        fs.exact_flow_map(fk.GaussianMixture(jnp.zeros((2, 2))))


# Losses.


def network(size=2, **options):
    return fk.nn.MLP(
        size, hidden_sizes=(8,), time_embedding=fk.nn.TwoTimes(), zero_init=False, key=jr.key(3), **options
    )


def fixed(s, t):
    """A law of one pair."""
    return lambda num, *, key: (jnp.full(num, s, jnp.float32), jnp.full(num, t, jnp.float32))


@pytest.mark.parametrize("loss", [fs.mean_flow_loss, fs.improved_mean_flow_loss, fs.back_flow_loss])
def test_mean_flow_losses_by_their_formula(loss):
    """Value and gradient on a fixed pair; the derivative from finite differences in double precision."""
    with jax.enable_x64(True):
        flow_map = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64) if eqx.is_array(leaf) else leaf, fs.FlowMap(network())
        )
        x0, x1 = jnp.array([[0.3, -0.8]]), jnp.array([[1.5, 0.4]])
        s, t = (0.8, 0.3) if loss is fs.back_flow_loss else (0.3, 0.8)
        pairs = lambda num, *, key: (jnp.full(num, s), jnp.full(num, t))
        x, v = (s * x1 + (1 - s) * x0)[0], (x1 - x0)[0]
        tangent = v if loss is fs.mean_flow_loss else flow_map(s, s, x)
        h = 1e-5
        change = (flow_map(s + h, t, x + h * tangent) - flow_map(s - h, t, x - h * tangent)) / (2 * h)
        target = v + (t - s) * change
        weight = fs.AdaptiveWeight(0.75, 1e-3)

        def expected(flow_map):
            square = jnp.sum((flow_map(s, t, x) - target) ** 2)
            return square / jax.lax.stop_gradient((square + 1e-3) ** 0.75)

        def ours(flow_map):
            return loss(flow_map, x1, key=jr.key(0), coupling=fk.Paired(x0), pairs=pairs, weight=weight)[0]

        value, gradient = eqx.filter_value_and_grad(ours)(flow_map)
        expected_value, expected_gradient = eqx.filter_value_and_grad(expected)(flow_map)
        np.testing.assert_allclose(value, expected_value, rtol=1e-7)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), gradient, expected_gradient)


def test_facm_by_its_formula():
    """Clip, relaxation, both weights, and the cosine of the anchor, on a fixed pair."""
    with jax.enable_x64(True):
        flow_map = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64) if eqx.is_array(leaf) else leaf, fs.FlowMap(network())
        )
        x0, x1, s = jnp.array([[0.3, -0.8]]), jnp.array([[2.5, 0.4]]), 0.36
        x, v, h = (s * x1 + (1 - s) * x0)[0], (x1 - x0)[0], 1e-5
        ahead, behind = flow_map(s + h, 1.0, x + h * v), flow_map(s - h, 1.0, x - h * v)
        residual = flow_map(s, 1.0, x) - (v + (1 - s) * (ahead - behind) / (2 * h))
        assert jnp.max(jnp.abs(residual)) > 1 > jnp.min(jnp.abs(residual))
        step = (1 - s**0.5) * jnp.clip(residual, -1, 1)
        square = jnp.mean(step**2)
        u = flow_map(s, s, x)
        cosine = u @ v / jnp.sqrt((u @ u + 1e-4) * (v @ v + 1e-4))
        anchor = jnp.mean((u - v) ** 2)
        expected = jnp.cos(jnp.pi * s / 2) * square / (square + 1e-3) ** 0.5 + anchor + 1 - cosine
        options = dict(fs.FACM_IMAGENET) | {"times": lambda num, *, key: jnp.full(num, s)}
        loss, parts = fs.facm_loss(flow_map, x1, key=jr.key(0), coupling=fk.Paired(x0), **options)
        np.testing.assert_allclose(loss, expected, rtol=1e-7)
        np.testing.assert_allclose(parts["anchor_error"], anchor, rtol=1e-10)
        np.testing.assert_allclose(parts["consistency_error"], jnp.mean(residual**2), rtol=1e-7)


def test_expanded_interval_is_the_same_loss_in_one_time():
    """A network of one time t in [0, 2]: t for the jump from t to 1, 2 - t for the velocity."""

    def one_time(t, x, cond=None):
        return jnp.where(t > 1, jnp.sin(2 - t), jnp.cos(t)) * x

    def two_times(times, x, cond=None):
        s, t = times
        return jnp.where(s == t, jnp.sin(s), jnp.cos(s)) * x

    x1 = jr.normal(jr.key(0), (32, 2))
    expanded = fs.FlowMap(one_time, times=fs.expanded_interval)
    ours = fs.facm_loss(expanded, x1, key=jr.key(1))
    other = fs.facm_loss(fs.FlowMap(two_times), x1, key=jr.key(1))
    np.testing.assert_allclose(ours[0], other[0], rtol=1e-6)
    velocity = fs.velocity_of(expanded)
    np.testing.assert_allclose(velocity(0.25, x1[0]), np.sin(0.25) * x1[0], rtol=1e-6)
    np.testing.assert_allclose(velocity(1.0, x1[0]), np.cos(1.0) * x1[0], rtol=1e-6)


def test_distillation_has_no_noise():
    """With the exact velocity as teacher the exact map has no loss at all."""
    exact, teacher = fs.exact_flow_map(GAUSSIAN), fk.exact_flow(GAUSSIAN)
    x1 = GAUSSIAN.sample((64, 2), key=jr.key(0))
    loss, parts = fs.facm_loss(exact, x1, key=jr.key(1), teacher=teacher)
    assert loss < 1e-7
    assert parts["anchor_error"] < 1e-8


def test_shortcut_targets():
    """Zero for the exact map in steps of any length; with short steps Euler's method is the optimum."""
    exact = fs.exact_flow_map(GAUSSIAN)
    x1 = GAUSSIAN.sample((64, 2), key=jr.key(0))
    step = ft.partial(fs.shortcut_loss, x1=x1, key=jr.key(1))
    assert step(exact, pairs=fixed(0.25, 0.75))[0] < 1e-10
    euler = step(exact, pairs=fixed(0.25, 0.75), smallest_step=0.5)[0]
    x = 0.25 * x1 + 0.75 * fk.Normal().sample(x1.shape, key=jr.split(jr.key(1), 4)[0])
    velocity = fk.exact_flow(GAUSSIAN)

    def error(x):
        first = velocity(0.25, x)
        second = velocity(0.5, x + 0.25 * first)
        return jnp.mean((exact(0.25, 0.75, x) - 0.5 * (first + second)) ** 2)

    np.testing.assert_allclose(euler, jnp.mean(jax.vmap(error)(x)), rtol=1e-4)


class Cloud(eqx.Module):
    """A network whose points see the mean of the valid ones."""

    weight: jax.Array

    def __call__(self, times, x, cond=None, mask=None):
        mean = jnp.mean(x, axis=0, where=mask[:, None])
        return jnp.tanh(x @ self.weight + mean) * (1 + times[1]) + times[0]


@pytest.mark.parametrize("loss", LOSSES)
def test_masked_points_have_no_influence(loss):
    """Whatever they hold, and in blocks."""
    flow_map = fs.FlowMap(Cloud(jnp.array([[0.5, -0.2], [0.3, 0.8]])))
    mask = jnp.array([[True, True, False], [True, False, True], [True, True, True], [False, True, False]])
    clouds = jr.normal(jr.key(2), (4, 3, 2))
    block = 2 if loss in (fs.back_flow_loss, fs.facm_loss) else None

    def run(clouds, block):
        value = lambda flow_map: loss(flow_map, clouds, key=jr.key(3), mask=mask, block=block)[0]
        return eqx.filter_value_and_grad(value)(flow_map)

    first, second = run(clouds, None), run(jnp.where(mask[..., None], clouds, jnp.nan), block)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, first, second)
    assert jnp.all(jnp.abs(first[1].network.weight) > 1e-3)


def test_reductions_count_valid_entries():
    mask = jnp.array([[True, True, False, False], [True, True, True, True]])
    flow_map = fs.FlowMap(lambda times, x, cond=None, mask=None: jnp.zeros_like(x))
    clouds, noise = jnp.ones((2, 4, 3)), jnp.zeros((2, 4, 3))
    run = ft.partial(fs.mean_flow_loss, flow_map, clouds, key=jr.key(0), coupling=fk.Paired(noise), mask=mask)
    np.testing.assert_allclose(run()[0], (2 * 3 + 4 * 3) / 2)
    np.testing.assert_allclose(run(reduction=jnp.mean)[0], 1.0)


def test_factors_of_a_coupling_multiply():
    flow_map, x1 = fs.FlowMap(network()), jr.normal(jr.key(0), (8, 2))
    doubled = lambda x0, x1, cond=None, *, key: fk.Pairing(weights=jnp.full(8, 2.0))
    for loss in (fs.mean_flow_loss, fs.facm_loss):
        plain, twice = (loss(flow_map, x1, key=jr.key(1), coupling=c)[0] for c in (fk.independent, doubled))
        np.testing.assert_allclose(twice, 2 * plain, rtol=1e-6)


def test_second_call_compiles_nothing():
    flow_map, x1 = fs.FlowMap(network()), jr.normal(jr.key(0), (8, 2))
    calls = [
        lambda key: fs.mean_flow_loss(flow_map, x1, key=key, **fs.MEAN_FLOW_TOY),
        lambda key: fs.facm_loss(flow_map, x1, key=key),
        lambda key: fs.sample(flow_map, (2,), num_samples=3, key=key),
        lambda key: fs.encode(flow_map, x1[0]),
    ]
    for call in calls:
        call(jr.key(1))
    key = jr.key(2)
    with compilations() as events:
        for call in calls:
            call(key)
    assert not events


def test_guidance_has_its_closed_form(key):
    """The velocity at the optimum is that of guidance with the scale w / (1 - k)."""
    half = fk.GaussianMixture(jnp.array([[-1.0], [1.0]]), 0.6)
    velocities = fk.exact_flow(fk.Normal(0.0, 0.6)), fk.exact_flow(half)
    scale, mix = 1.2, 0.4

    class Guided(eqx.Module):
        weights: jax.Array

        def __call__(self, times, x, cond):
            # The condition is the sign of the mean; 0 is none. A shift of the data by c shifts the velocity.
            s, sign = times[0], cond
            conditional = velocities[0](s, x - s * sign) + sign
            unconditional = velocities[1](s, x)
            guided = unconditional + scale / (1 - mix) * (conditional - unconditional)
            features = jnp.stack([jnp.ones_like(x), x, s * x, sign**2 * x, jnp.sin(2 * x + s) * sign])
            return jnp.where(sign == 0, unconditional, guided) + jnp.tensordot(self.weights, features, axes=1)

    @eqx.filter_jit
    def draw(weights):
        def one(key):
            xkey, ckey, lkey = jr.split(key, 3)
            sign = jr.rademacher(ckey, (256,), float)
            x1 = sign[:, None] + 0.6 * jr.normal(xkey, (256, 1))
            guidance = fs.Guidance(jnp.zeros(()), scale=scale, mix=mix, drop=0.3)
            options = {"pairs": fs.TimePairs(equal=1.0), "guidance": guidance, "key": lkey}
            return jax.grad(lambda w: fs.mean_flow_loss(fs.FlowMap(Guided(w)), x1, sign, **options)[0])(weights)

        return jax.lax.map(one, jr.split(key, 64))

    assert p_value(draw(jnp.zeros(5))) > 0.0027
    assert p_value(draw(jnp.full(5, 0.1))) < 1e-6


# Laws of pairs.


def test_time_pairs(key):
    s, t = fs.TimePairs(equal=0.25)(4000, key=key)
    same = s == t
    assert abs(jnp.sum(same) - 1000) <= 1
    assert jnp.all(s <= t)
    # Of two uniform times the smaller has the density 2 (1 - s), and the larger 2 t.
    assert st.kstest(np.asarray(s), lambda x: 1 - (1 - x) ** 2).pvalue > 1e-3
    assert st.kstest(np.asarray(t[~same]), lambda x: x**2).pvalue > 1e-3
    s, t = fs.TimePairs(order=fs.any_order, equal=0.0)(4000, key=key)
    assert st.kstest(np.asarray(s), "uniform").pvalue > 1e-3
    assert st.binomtest(int(jnp.sum(s > t)), 4000).pvalue > 1e-3


def test_ends_have_a_law_of_their_own(key):
    """The start keeps its law, and an end that would be earlier is moved to it."""
    pairs = fs.TimePairs(fk.LogitNormal(0.6, 1.6), fk.LogitNormal(4.0, 1.6), fs.end_after_start, equal=0.0)
    s, t = pairs(4000, key=key)
    logit = lambda x: np.log(x) - np.log1p(-x)
    assert st.kstest(logit(np.asarray(s)), st.norm(0.6, 1.6).cdf).pvalue > 1e-3
    assert jnp.all(s <= t)
    # Of independent normals with these means the end is the smaller with this probability.
    expected = st.norm.cdf((0.6 - 4.0) / (1.6 * np.sqrt(2)))
    assert st.binomtest(int(jnp.sum(s == t)), 4000, expected).pvalue > 1e-3


def test_dyadic_pairs(key):
    s, t = map(np.asarray, fs.DyadicPairs(3, equal=0.25)(4000, key=key))
    steps = t - s
    assert abs(np.sum(steps == 0) - 1000) <= 1
    for size in (1.0, 0.5, 0.25):
        chosen = steps == size
        assert st.binomtest(int(np.sum(chosen)), 3000, 1 / 3).pvalue > 1e-3
        assert set(s[chosen]) == set(np.arange(0, 1, size))
    assert np.all(t <= 1)


# Samples, codes, reflow.


def test_one_step_and_many_agree_on_the_exact_map():
    """And both are the map of the noise, which is what encoding gives back."""
    exact = fs.exact_flow_map(mixture_1d())
    draw = ft.partial(fs.sample, exact, (1,), num_samples=50, key=jr.key(0))
    one, three = draw(), draw(ts=jnp.array([0.0, 0.2, 0.7, 1.0]))
    np.testing.assert_allclose(one, three, atol=1e-3)
    noise = jax.vmap(lambda x: fs.encode(exact, x))(one)
    expected = [mixture_map(float(x), 0.0, 1.0) for x in noise[:, 0]]
    np.testing.assert_allclose(one[:, 0], expected, atol=1e-3)
    again = jax.vmap(lambda x: fs.encode(exact, x, num_steps=4))(one)
    np.testing.assert_allclose(again, noise, atol=1e-3)
    assert st.kstest(np.asarray(noise[:, 0]), "norm").pvalue > 1e-3


def test_fresh_noise_keeps_the_law_of_the_data(key):
    exact = fs.exact_flow_map(mixture_1d())
    samples = fs.sample(exact, (1,), num_samples=4000, num_steps=3, renoise=True, key=key)
    cdf = lambda x: 0.7 * st.norm.cdf(x, -2, 0.8) + 0.3 * st.norm.cdf(x, 2, 0.6)
    assert st.kstest(np.asarray(samples[:, 0]), cdf).pvalue > 1e-3


def test_masked_clouds_are_sampled_and_encoded():
    exact = fs.exact_flow_map(GAUSSIAN)
    flow_map = fs.FlowMap(lambda times, x, cond=None, mask=None: exact.network(times, x))
    mask = jnp.array([[True, True, False], [True, False, False]])
    for options in ({"num_steps": 2}, {"num_steps": 2, "renoise": True}):
        clouds = fs.sample(flow_map, (3, 2), num_samples=2, mask=mask, key=jr.key(0), **options)
        assert jnp.all((clouds != 0) == mask[..., None])
    code = fs.encode(flow_map, clouds[0], mask=mask[0])
    assert jnp.all((code != 0) == mask[0][:, None])


def test_velocity_of_a_map_is_a_flow():
    """One network serves one step and the adaptive ODE."""
    exact = fs.exact_flow_map(GAUSSIAN)
    flow = fs.velocity_of(exact)
    assert isinstance(flow, fk.Flow)
    x0 = jnp.array([0.3, -1.2])
    np.testing.assert_allclose(fk.integrate(flow, x0).ys[-1], fs.jump(exact, 0.0, 1.0, x0), atol=1e-4)


def test_reflow_gives_the_map_of_the_flow():
    """For one Gaussian it is linear, and trajectories between the pairs are straight: the optimal transport."""
    pairs = fs.reflow_pairs(fk.exact_flow(GAUSSIAN), 100, shape=(2,), key=jr.key(0))
    assert isinstance(pairs, fs.ReflowPairs)
    np.testing.assert_allclose(pairs.x1, GAUSSIAN.mean + GAUSSIAN.std * pairs.x0, atol=1e-3)

    def straight(times, x, cond=None):
        s, _ = times
        spread = 1 - s + s * GAUSSIAN.std
        return GAUSSIAN.mean + (GAUSSIAN.std - 1) * (x - s * GAUSSIAN.mean) / spread

    options = {"key": jr.key(1), "coupling": fk.Paired(pairs.x0)}
    for loss in (fs.back_flow_loss, fs.facm_loss):
        assert loss(fs.FlowMap(straight), pairs.x1, **options)[0] < 1e-5
    assert fk.flow_matching_loss(fs.velocity_of(fs.FlowMap(straight)), pairs.x1, **options) < 1e-5


# Networks.


NETWORKS = {
    "mlp": lambda times: fk.nn.MLP(2, hidden_sizes=(8,), time_embedding=times, zero_init=False, key=jr.key(0)),
    "adaln": lambda times: fk.nn.AdaLNMLP(
        2, 0, width_size=8, depth=1, cond_size=8, time_embedding=times, key=jr.key(0)
    ),
    "dit": lambda times: fk.nn.DiT(
        2, 0, width_size=8, depth=1, cond_size=8, num_heads=2, time_embedding=times, key=jr.key(0)
    ),
    "cross_attention": lambda times: fk.nn.CrossAttentionCRN(
        2, 0, width_size=8, depth=1, cond_size=8, num_heads=2, num_tokens=2, time_embedding=times, key=jr.key(0)
    ),
    "concat_squash": lambda times: fk.nn.ConcatSquashMLP(
        2, 0, width_size=8, depth=1, time_embedding=times, key=jr.key(0)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_one_time_take_two(name):
    """Their total derivative is that of finite differences, attention included."""
    # The attention of JAX computes its weights in float32.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        embedding = fk.nn.LearnedTime(
            4, embedding=fk.nn.TwoTimes(fk.nn.SinusoidalTime(4, scale=1.0)), activation=jax.nn.gelu, key=jr.key(1)
        )
        network = NETWORKS[name](embedding)
        # Away from zero, where the last layers and the gates start.
        leaves, tree = jax.tree.flatten(network)
        keys = jr.split(jr.key(2), len(leaves))
        leaves = [
            0.3 * jr.normal(k, leaf.shape, jnp.float64) if eqx.is_inexact_array(leaf) else leaf
            for leaf, k in zip(leaves, keys, strict=True)
        ]
        flow_map = fs.FlowMap(jax.tree.unflatten(tree, leaves))
        x, v = jr.normal(jr.key(3), (2, 3, 2), jnp.float64)
        if name == "mlp":
            x, v = x[0], v[0]
        h = 1e-2
        u, derivative = jax.jit(lambda x, v: fs.total_derivative(flow_map, 0.3, 0.8, x, v))(x, v)
        at = jax.jit(lambda s, x: flow_map(s, 0.8, x))
        difference = (at(0.3 + h, x + h * v) - at(0.3 - h, x - h * v)) / (2 * h)
        np.testing.assert_allclose(u, at(0.3, x), rtol=1e-5)
        np.testing.assert_allclose(derivative, difference, rtol=2e-3, atol=2e-4)
        assert jnp.max(jnp.abs(derivative)) > 1e-3


def test_two_times_embeds_start_and_difference():
    embedding = fk.nn.TwoTimes(fk.nn.SinusoidalTime(4, scale=1.0))
    assert embedding.out_size == 8
    one = embedding.embedding
    expected = np.concatenate([one(0.9), one(-0.5)])
    np.testing.assert_allclose(embedding(jnp.array([0.9, 0.4])), expected, rtol=1e-6)


# Wrong use.


@jax.custom_vjp
def fused(x):
    return x


fused.defvjp(lambda x: (fused(x), None), lambda _, g: (g,))


@pytest.mark.parametrize("loss", [fs.mean_flow_loss, fs.back_flow_loss, fs.facm_loss])
def test_networks_without_forward_mode(loss):
    flow_map = fs.FlowMap(lambda times, x, cond=None: fused(x))
    with pytest.raises(ValueError, match="`network` has no forward-mode derivative"):
        loss(flow_map, jnp.ones((4, 2)), key=jr.key(0))


def test_shortcuts_need_no_forward_mode():
    flow_map = fs.FlowMap(lambda times, x, cond=None: fused(x))
    assert jnp.isfinite(fs.shortcut_loss(flow_map, jnp.ones((4, 2)), key=jr.key(0))[0])


def test_errors_of_the_network_are_its_own():
    def broken(times, x, cond=None):
        raise TypeError("something else")

    with pytest.raises(TypeError, match="something else"):
        fs.mean_flow_loss(fs.FlowMap(broken), jnp.ones((4, 2)), key=jr.key(0))


@pytest.mark.parametrize("loss", [fs.mean_flow_loss, fs.improved_mean_flow_loss, fs.shortcut_loss])
def test_pairs_against_the_order(loss):
    flow_map, x1 = fs.FlowMap(network()), jnp.ones((4, 2))
    with pytest.raises(ValueError, match="back_flow_loss"):
        loss(flow_map, x1, key=jr.key(0), pairs=fs.TimePairs(order=fs.any_order))
    with pytest.raises(Exception, match="s > t"):
        loss(flow_map, x1, key=jr.key(0), pairs=fixed(0.8, 0.3))
    with pytest.raises(Exception, match="outside"):
        loss(flow_map, x1, key=jr.key(0), pairs=fixed(0.3, 1.2))


@pytest.mark.parametrize("loss", BOTH)
def test_expanded_interval_has_two_slices_only(loss):
    flow_map = fs.FlowMap(fk.nn.MLP(2, key=jr.key(0)), times=fs.expanded_interval)
    with pytest.raises(ValueError, match="`both_times`"):
        loss(flow_map, jnp.ones((4, 2)), key=jr.key(0))
    with pytest.raises(ValueError, match="`t` must be `s` or 1"):
        flow_map(0.2, 0.5, jnp.ones(2))
    with pytest.raises(ValueError, match="renoise=True"):
        fs.sample(flow_map, (2,), num_samples=2, num_steps=2, key=jr.key(0))
    with pytest.raises(ValueError, match="cannot encode"):
        fs.encode(flow_map, jnp.ones(2))


def test_wrong_arguments():
    flow_map, x1 = fs.FlowMap(network()), jnp.ones((4, 2))
    with pytest.raises(ValueError, match="TwoTimes"):
        fs.FlowMap(fk.nn.MLP(2, key=jr.key(0)))(0.0, 1.0, jnp.ones(2))
    with pytest.raises(ValueError, match="pair of times"):
        fk.Flow(network())(0.5, jnp.ones(2))
    with pytest.raises(ValueError, match="`t` must be in"):
        fs.jump(flow_map, 0.0, 1.5, jnp.ones(2))
    with pytest.raises(ValueError, match="return the shape of `x`"):
        fs.FlowMap(lambda times, x, cond: x[:1])(0.0, 1.0, jnp.ones(2))
    with pytest.raises(ValueError, match="does not take one"):
        flow_map(0.0, 1.0, jnp.ones((3, 2)), None, jnp.ones(3, bool))
    with pytest.raises(ValueError, match="rows"):
        fs.mean_flow_loss(flow_map, x1, jnp.ones(3), key=jr.key(0))
    with pytest.raises(ValueError, match="`pairs` must return two arrays"):
        fs.mean_flow_loss(flow_map, x1, key=jr.key(0), pairs=lambda num, *, key: (jnp.zeros(2), jnp.zeros(2)))
    with pytest.raises(ValueError, match="not both"):
        fs.consistency_loss(flow_map, x1, key=jr.key(0), clamp=1.0, normalize=0.1)
    with pytest.raises(ValueError, match="`relaxation` must be positive"):
        fs.facm_loss(flow_map, x1, key=jr.key(0), relaxation=0.0)
    with pytest.raises(ValueError, match="`smallest_step`"):
        fs.shortcut_loss(flow_map, x1, key=jr.key(0), smallest_step=1.0)
    with pytest.raises(ValueError, match="`equal` must be in"):
        fs.TimePairs(equal=1.5)
    with pytest.raises(ValueError, match="`levels`"):
        fs.DyadicPairs(0)
    with pytest.raises(ValueError, match="`power`"):
        fs.AdaptiveWeight(-1.0)
    with pytest.raises(ValueError, match="`num_pairs`"):
        fs.reflow_pairs(fk.exact_flow(GAUSSIAN), 0, shape=(2,), key=jr.key(0))


def test_wrong_grids():
    draw = ft.partial(fs.sample, fs.FlowMap(network()), (2,), num_samples=2, key=jr.key(0))
    with pytest.raises(ValueError, match="`num_steps` must be at least 1"):
        draw(num_steps=0)
    with pytest.raises(ValueError, match="not both"):
        draw(num_steps=2, ts=jnp.array([0.0, 1.0]))
    for ts in ([0.0, 0.5], [0.0, 0.7, 0.3, 1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="must increase from 0 to 1"):
            draw(ts=jnp.array(ts))


def test_wrong_guidance():
    flow_map, x1 = fs.FlowMap(network(cond_size=1)), jnp.ones((4, 2))
    run = ft.partial(fs.mean_flow_loss, flow_map, x1, key=jr.key(0))
    with pytest.raises(ValueError, match="needs conditions"):
        run(guidance=fs.Guidance(jnp.zeros(1)))
    with pytest.raises(ValueError, match="the condition of one example"):
        run(jnp.ones((4, 1)), guidance=fs.Guidance(jnp.zeros(2)))
    with pytest.raises(ValueError, match="structure"):
        run(jnp.ones((4, 1)), guidance=fs.Guidance((jnp.zeros(1),)))
    with pytest.raises(ValueError, match="`mix` must be below 1"):
        fs.Guidance(jnp.zeros(1), mix=1.0)
    with pytest.raises(ValueError, match="`drop`"):
        fs.Guidance(jnp.zeros(1), drop=1.0)
