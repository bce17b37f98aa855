"""Bounds of the earth mover's distance against scipy, the Sinkhorn divergence against NumPy."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment, linprog
from scipy.spatial.distance import cdist

import flowkit.metrics as metrics


def clouds(seed, n, m, size):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, size)).astype(np.float32), (
        0.3 + rng.random((m, size))
    ).astype(np.float32)


def exact_emd(x, y):
    """By an assignment for equal sizes, else by a linear program over all plans."""
    cost = cdist(x, y)
    if len(x) == len(y):
        return cost[linear_sum_assignment(cost)].mean()
    n, m = cost.shape
    marginals = np.concatenate(
        [np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))]
    )
    weights = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return linprog(cost.ravel(), A_eq=marginals[:-1], b_eq=weights[:-1]).fun


def assert_between(bounds, exact):
    assert bounds.lower <= exact * (1 + 1e-5)
    assert bounds.upper >= exact * (1 - 1e-5)
    assert bounds.gap == pytest.approx(float(bounds.upper - bounds.lower))


@pytest.mark.parametrize("size", [2, 3, 4, 10])
def test_bounds_hold_the_exact_value_and_close_with_epsilon(size):
    x, y = clouds(size, 120, 120, size)
    exact, gaps = exact_emd(x, y), []
    for epsilon in (0.3, 0.1, 0.03, 0.01):
        bounds = metrics.emd_bounds(x, y, epsilon=epsilon, max_iterations=300)
        assert_between(bounds, exact)
        gaps.append(float(bounds.gap))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.04 * exact


@pytest.mark.parametrize("max_iterations", [1, 3])
def test_bounds_hold_however_early_the_iteration_stops(max_iterations):
    x, y = clouds(0, 60, 45, 3)
    assert_between(
        metrics.emd_bounds(x, y, max_iterations=max_iterations), exact_emd(x, y)
    )


def test_bounds_with_unequal_sizes_and_masks():
    x, y = clouds(1, 60, 45, 3)
    exact = exact_emd(x, y)
    bounds = metrics.emd_bounds(x, y)
    assert_between(bounds, exact)
    assert bounds.gap < 0.1 * exact
    mask_x, mask_y = np.arange(60) % 3 > 0, np.arange(45) < 20
    spoilt_x, spoilt_y = (
        np.where(m[:, None], z, np.nan).astype(np.float32)
        for z, m in ((x, mask_x), (y, mask_y))
    )
    masked = metrics.emd_bounds(spoilt_x, spoilt_y, mask_x=mask_x, mask_y=mask_y)
    assert_between(masked, exact_emd(x[mask_x], y[mask_y]))
    np.testing.assert_allclose(
        masked, metrics.emd_bounds(x[mask_x], y[mask_y]), rtol=1e-4
    )


def test_bounds_of_simple_clouds():
    x, _ = clouds(2, 50, 1, 2)
    assert metrics.emd_bounds(x, x).lower == 0
    assert metrics.emd_bounds(x, x).upper < 0.01
    np.testing.assert_allclose(metrics.emd_bounds(x[:1], x[:1]), 0, atol=1e-6)
    # All points move by the same vector, which no plan does better than: the bounds meet as
    # epsilon falls.
    assert_between(metrics.emd_bounds(x, x + np.array([3.0, 4.0], np.float32)), 5)


def test_bounds_in_blocks_of_rows(monkeypatch):
    # Sizes that no other test has, so that this one is compiled with its own blocks.
    monkeypatch.setattr("flowkit.metrics._reductions._BLOCK_ENTRIES", 350)
    x, y = clouds(3, 71, 71, 3)
    exact, bounds = exact_emd(x, y), metrics.emd_bounds(x, y)
    assert_between(bounds, exact)
    assert bounds.gap < 0.05 * exact


def test_no_array_is_as_large_as_the_cost_matrix():
    x = jax.ShapeDtypeStruct((20000, 3), jnp.float32)
    compiled = jax.jit(lambda x, y: metrics.emd_bounds(x, y)).lower(x, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 20000**2 / 20


def entropic_cost(x, y, epsilon):
    """In float64, by many plain scalings; the primal value, from the plan itself."""
    cost = cdist(x, y, "sqeuclidean")
    kernel, columns = np.exp(-cost / epsilon), np.ones(len(y))
    for _ in range(3000):
        rows = len(y) / (kernel @ columns)
        columns = len(x) / (kernel.T @ rows)
    ratio = rows[:, None] * kernel * columns
    return np.mean(ratio * cost) + epsilon * np.mean(ratio * np.log(ratio))


def brute_divergence(x, y, epsilon):
    return (
        entropic_cost(x, y, epsilon)
        - entropic_cost(x, x, epsilon) / 2
        - entropic_cost(y, y, epsilon) / 2
    )


def test_divergence_against_numpy():
    x, y = clouds(4, 30, 24, 3)
    absolute = 0.1 * cdist(x, y, "sqeuclidean").mean()
    expected = brute_divergence(x, y, absolute)
    assert metrics.sinkhorn_divergence(x, y, epsilon=0.1) == pytest.approx(
        expected, rel=1e-3
    )
    value = metrics.sinkhorn_divergence(x, y, epsilon=absolute, relative=False)
    assert value == pytest.approx(expected, rel=1e-3)
    mask_x, mask_y = np.arange(30) % 3 > 0, np.arange(24) < 15
    spoilt_x, spoilt_y = (
        np.where(m[:, None], z, np.inf).astype(np.float32)
        for z, m in ((x, mask_x), (y, mask_y))
    )
    value = metrics.sinkhorn_divergence(
        spoilt_x,
        spoilt_y,
        epsilon=absolute,
        relative=False,
        mask_x=mask_x,
        mask_y=mask_y,
    )
    assert value == pytest.approx(
        brute_divergence(x[mask_x], y[mask_y], absolute), rel=1e-3
    )


def test_divergence_in_its_limits():
    x, y = clouds(5, 40, 40, 2)
    assert metrics.sinkhorn_divergence(x, x) == 0
    assert metrics.sinkhorn_divergence(x, x[::-1].copy()) == pytest.approx(0, abs=1e-4)
    large = metrics.sinkhorn_divergence(x, y, epsilon=1000)
    # Of an independent plan what remains is the distance of the means: half the energy
    # distance for squared costs.
    assert large == pytest.approx(np.sum((x.mean(0) - y.mean(0)) ** 2), rel=1e-2)
    small = metrics.sinkhorn_divergence(x, y, epsilon=0.002, max_iterations=3000)
    assert small == pytest.approx(float(metrics.w2(x, y)) ** 2, rel=0.02)


def test_divergence_has_the_gradient_of_its_value():
    """Against central differences of the float64 loop; masked points have none."""
    x, y = clouds(6, 12, 9, 2)
    mask = np.arange(12) < 10
    divergence = lambda x: metrics.sinkhorn_divergence(
        x, y, epsilon=0.3, relative=False, mask_x=mask
    )
    gradient = np.asarray(jax.grad(divergence)(jnp.asarray(x)))
    assert not np.any(gradient[10:])
    for i, k in ((0, 0), (3, 1), (9, 0)):
        step = np.zeros((10, 2))
        step[i, k] = 1e-4
        up, down = (brute_divergence(x[:10] + sign * step, y, 0.3) for sign in (1, -1))
        assert gradient[i, k] == pytest.approx((up - down) / 2e-4, rel=1e-2, abs=2e-4)


@pytest.mark.parametrize("name", ["mask_x", "mask_y"])
@pytest.mark.parametrize("function", [metrics.emd_bounds, metrics.sinkhorn_divergence])
def test_traced_distances_of_empty_clouds_are_nan(function, name):
    """Only of the empty one of several pairs."""
    x, y = clouds(8, 6, 6, 2)
    masks = np.ones((2, 6), bool)
    masks[1] = False
    values = jax.vmap(lambda mask: function(x, y, **{name: mask}))(masks)
    for value in jax.tree.leaves(values):
        assert np.isfinite(value[0])
        assert np.isnan(value[1])


MASKS = {"x": (12, 20), "y": (20, 15), "both": (12, 15)}


@pytest.mark.parametrize(("num_x", "num_y"), MASKS.values(), ids=MASKS)
def test_masked_clouds_far_apart(num_x, num_y):
    """Values and gradients are those of the clouds without padding, far as it lies away."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(20, 2)).astype(np.float32)
    y = (0.3 * rng.normal(size=(20, 2)) + [100, 0]).astype(np.float32)
    masks = {"mask_x": np.arange(20) < num_x, "mask_y": np.arange(20) < num_y}
    short_x, short_y = x[:num_x], y[:num_y]

    bounds = metrics.emd_bounds(x, y, **masks)
    assert_between(bounds, exact_emd(short_x, short_y))
    np.testing.assert_allclose(bounds, metrics.emd_bounds(short_x, short_y), rtol=1e-5)

    evaluate = jax.value_and_grad(
        ft.partial(metrics.sinkhorn_divergence, epsilon=0.01), argnums=(0, 1)
    )
    value, gradients = evaluate(jnp.asarray(x), jnp.asarray(y), **masks)
    expected, short_gradients = evaluate(jnp.asarray(short_x), jnp.asarray(short_y))
    assert value == pytest.approx(float(expected), rel=1e-5)
    for gradient, short in zip(gradients, short_gradients, strict=True):
        np.testing.assert_allclose(gradient[: len(short)], short, rtol=1e-3, atol=1e-3)
        assert not np.any(gradient[len(short) :])


def test_divergence_over_pairs():
    xs = np.stack([clouds(seed, 12, 1, 2)[0] for seed in range(3)])
    divergence = jax.tree_util.Partial(
        metrics.sinkhorn_divergence, epsilon=0.5, relative=False
    )
    matrix = np.asarray(metrics.pairwise(divergence, xs))
    assert matrix[0, 1] == pytest.approx(float(divergence(xs[0], xs[1])), rel=1e-3)
    np.testing.assert_array_equal(np.diag(matrix), 0)


def test_absolute_epsilon_is_compared_with_the_costs():
    """1e-4 resolves costs of 1, and not those of 1e4."""
    x, y = clouds(5, 12, 9, 2)
    options = {"epsilon": 1e-4, "relative": False, "max_iterations": 2}
    assert np.isfinite(metrics.sinkhorn_divergence(x, y, **options))
    with pytest.raises(ValueError, match="less than float32 can resolve"):
        metrics.sinkhorn_divergence(x, y + 100, **options)


@pytest.mark.parametrize("function", [metrics.emd_bounds, metrics.sinkhorn_divergence])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0}, "`epsilon` must be positive"),
        ({"epsilon": 1e-9}, "less than float32 can resolve"),
        ({"max_iterations": 0}, "`max_iterations` is 0"),
        ({"mask_x": np.zeros(4, bool)}, "`mask_x` leaves no valid point"),
        (
            {"y": np.full((5, 2), np.nan, np.float32)},
            "`y` holds values that are not finite",
        ),
        ({"x": np.zeros((0, 2), np.float32)}, "`x` has shape"),
    ],
)
def test_wrong_use(function, arguments, message):
    clouds = {"x": np.zeros((4, 2), np.float32), "y": np.zeros((5, 2), np.float32)}
    with pytest.raises(ValueError, match=message):
        function(**(clouds | arguments))
