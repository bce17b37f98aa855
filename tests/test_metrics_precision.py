"""Digits of the metrics: near points in many dimensions, large orders, half precision."""

import functools as ft
import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.linalg
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import flowkit.metrics as metrics
from flowkit._distances import squared_costs, squared_distances


def exact_chamfer(x, y, power=2):
    cost = cdist(x, y) ** power
    return cost.min(1).mean() + cost.min(0).mean()


def exact_assignment(x, y, power):
    cost = cdist(x, y) ** power
    return cost[linear_sum_assignment(cost)].mean() ** (1 / power)


def exact_energy(x, y):
    return np.sqrt(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())


EXACT = {
    "chamfer": exact_chamfer,
    "chamfer_l1": ft.partial(exact_chamfer, power=1),
    "emd": ft.partial(exact_assignment, power=1),
    "w2": ft.partial(exact_assignment, power=2),
    "energy_distance": exact_energy,
}
NEAR_DIMENSIONS = [9, 16, 40]


@ft.cache
def near_clouds(size):
    """Two groups of unit spread, 1000 apart in every coordinate, and points near them."""
    rng = np.random.default_rng(size)
    groups = 500 * np.repeat([[-1.0], [1.0]], 30, axis=0)
    x = (rng.normal(size=(60, size)) + groups).astype(np.float32)
    return x, (x + 0.01 * rng.normal(size=x.shape)).astype(np.float32)


@pytest.mark.parametrize("size", NEAR_DIMENSIONS)
@pytest.mark.parametrize("name", EXACT)
def test_near_clouds_in_many_dimensions(name, size):
    """A hundredth of the spread within a group apart, where |x|^2 has rounding errors of 1."""
    x, y = near_clouds(size)
    expected = EXACT[name](x.astype(float), y.astype(float))
    # The energy distance is a difference of means, which have errors of their own: some
    # 1e-7 of them, over the number of points by which the errors average.
    tolerance = 0.1 if name == "energy_distance" else 1e-5
    assert getattr(metrics, name)(x, y) == pytest.approx(expected, rel=tolerance)
    assert getattr(metrics, name)(x, x) == 0


@pytest.mark.parametrize("size", [1, 8, 9, 16, 17, 40])
def test_squared_distances(size):
    """Of every number of coordinates, whole groups of them or not, with their derivatives."""
    rng = np.random.default_rng(size)
    x, y = (rng.normal(size=(n, size)).astype(np.float32) for n in (5, 4))
    value, tangent = jax.jvp(squared_distances, (x, y), (y[:1] + x, x[:1] - y))
    np.testing.assert_allclose(value, cdist(x, y, "sqeuclidean"), rtol=1e-5)
    change = (y[:1] + x)[:, None] - (x[:1] - y)[None]
    expected = 2 * np.sum((x[:, None] - y[None]) * change, axis=2)
    np.testing.assert_allclose(tangent, expected, rtol=1e-4, atol=1e-4)

    weights = rng.normal(size=(5, 4)).astype(np.float32)
    gradient = jax.grad(lambda x: jnp.sum(weights * squared_distances(x, y)))(x)
    expected = 2 * np.sum(weights[..., None] * (x[:, None] - y[None]), axis=1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_costs_of_couplings_choose_the_same_permutation():
    x, y = near_clouds(40)
    costs = squared_costs(x, y[::-1].copy())
    np.testing.assert_array_equal(np.argmin(costs, axis=1), np.arange(60)[::-1])


def test_gradients_of_near_clouds():
    """Of plain distances: unit vectors, over the number of points."""
    x, y = near_clouds(40)
    gaps = x.astype(float) - y
    expected = gaps / np.linalg.norm(gaps, axis=1, keepdims=True) / len(x)
    np.testing.assert_allclose(jax.grad(metrics.emd)(x, y), expected, atol=1e-5)
    np.testing.assert_allclose(
        jax.grad(metrics.chamfer_l1)(x, y), 2 * expected, atol=1e-5
    )


def test_matrices_of_near_clouds():
    """1-NNA of copies, each next to its original: every nearest other cloud is the twin."""
    x, y = near_clouds(40)
    clouds, copies = (z.reshape(10, 6, 40) for z in (x, y))
    scores = metrics.set_scores(copies, clouds)
    assert scores.one_nna == 0
    assert scores.coverage == 1
    expected = np.mean([exact_chamfer(*pair) for pair in zip(copies, clouds)])  # noqa: B905
    assert scores.mmd == pytest.approx(expected, rel=1e-4)


def test_near_gaussians():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    a = np.eye(6) + root @ root.T
    step = rng.normal(size=(6, 6))
    b = a + 1e-3 * (step + step.T)
    half = scipy.linalg.sqrtm(a)
    squared = np.trace(a + b - 2 * scipy.linalg.sqrtm(half @ b @ half)).real
    value = metrics.gaussian_w2(np.zeros(6), a, np.zeros(6), b)
    # Rounding of the covariances, 1e-6, moves a distance of 1e-3 by 1e-3 of it.
    assert value == pytest.approx(np.sqrt(squared), rel=1e-2)
    assert metrics.gaussian_w2(np.zeros(6), a, np.zeros(6), a) < 1e-5


# ---- orders of the distance on the line


@pytest.mark.parametrize("size_y", [50, 20])
@pytest.mark.parametrize("p", [2, 20, 50, np.inf])
def test_wasserstein_1d_of_every_order_and_scale(p, size_y):
    rng = np.random.default_rng(0)
    x = rng.normal(size=50).astype(np.float32)
    y = (rng.normal(size=size_y) + 0.3).astype(np.float32)
    long_x, long_y = np.sort(np.repeat(x, 2)), np.sort(np.repeat(y, 100 // size_y))
    gaps = np.abs(long_x.astype(float) - long_y)
    largest = gaps.max()
    expected = largest * np.mean((gaps / largest) ** p) ** (1 / p)
    if np.isinf(p):
        expected = largest
    for scale in (0.01, 1, 100):
        value = metrics.wasserstein_1d(scale * x, scale * y, p)
        assert value == pytest.approx(scale * expected, rel=1e-5)
    assert metrics.wasserstein_1d(x, x, p) == 0


def test_wasserstein_1d_of_infinite_order_has_a_gradient():
    """The largest of the gaps 1, 3, 2 moves with its two ends."""
    x, y = jnp.asarray([0.0, 10.0, 20.0]), jnp.asarray([1.0, 13.0, 22.0])
    gradient = jax.grad(metrics.wasserstein_1d)(x, y, jnp.inf)
    np.testing.assert_array_equal(gradient, [0, -1, 0])
    masked = metrics.wasserstein_1d(x, y, np.inf, mask_y=np.array([True, False, True]))
    # Quantiles of 1 and 22, half of the mass each, against thirds at 0, 10 and 20.
    assert masked == 12


# ---- half precision


def test_half_precision_is_computed_in_float32():
    """In float16 the sums would be infinite: the largest number is 65504."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(10 * rng.normal(size=(3000, 3)), jnp.float16)
    y = jnp.asarray(10 * rng.normal(size=(3000, 3)) + 50, jnp.float16)
    wide_x, wide_y = x.astype(jnp.float32), y.astype(jnp.float32)
    sinkhorn = ft.partial(metrics.sinkhorn_divergence, max_iterations=20)
    sliced = ft.partial(metrics.sliced_w2, num_projections=8, key=jr.key(0))
    for distance, num in (
        (metrics.chamfer, 3000),
        (metrics.energy_distance, 3000),
        (metrics.w2, 100),
        (sinkhorn, 100),
        (sliced, 3000),
    ):
        value = distance(x[:num], y[:num])
        assert value.dtype == jnp.float32
        # Another program, whose last digits may differ.
        wide = distance(wide_x[:num], wide_y[:num])
        assert float(value) == pytest.approx(float(wide), rel=1e-6)

    brain_x, brain_y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    expected = metrics.chamfer(brain_x.astype(jnp.float32), brain_y.astype(jnp.float32))
    assert metrics.chamfer(brain_x, brain_y) == expected

    line = metrics.wasserstein_1d(x[:, 0], y[:, 0])
    assert line == metrics.wasserstein_1d(wide_x[:, 0], wide_y[:, 0])
    moments = metrics.latent_statistics(1000 * x, np.zeros(3000, np.int32), 1)
    expected = np.asarray(1000 * x, float)
    np.testing.assert_allclose(moments.mean[0], expected.mean(0), rtol=1e-2, atol=1)
    np.testing.assert_allclose(moments.std[0], expected.std(0), rtol=1e-3)
    assert moments.count[0] == 3000
    few = x[:30].reshape(5, 6, 3)
    assert metrics.jsd(few, few) == 0
    assert metrics.pairwise(metrics.chamfer, few).dtype == jnp.float32


def test_moments_of_many_latents_keep_their_digits():
    """One after another, a million summands of 0.1 have the mean 0.101 in float32."""
    latents = np.full((1_000_000, 1), 0.1, np.float32)
    moments = metrics.latent_statistics(latents, np.zeros(len(latents), np.int8), 1)
    assert moments.mean[0] == pytest.approx(0.1, rel=1e-4)
    np.testing.assert_allclose(moments.std, 0, atol=1e-4)
    # Float32 counts to 2^24 only.
    assert moments.count.dtype == jnp.int32
    assert moments.count[0] == len(latents)


def test_strict_settings():
    """NumPy's float64 and integers, no promotion of ranks and no warning."""
    x, y = np.random.default_rng(0).normal(size=(2, 4, 6, 2))
    one, other = x[0], y[0]
    masks = {"mask_x": np.arange(6) < 5, "mask_y": np.arange(6) > 0}
    eye = np.eye(2)
    calls = [
        *(
            ft.partial(metric, one, other, **masks)
            for metric in (
                metrics.chamfer,
                metrics.chamfer_l1,
                metrics.emd,
                metrics.w2,
                metrics.energy_distance,
                ft.partial(metrics.emd_bounds, max_iterations=np.int64(5)),
                ft.partial(metrics.sinkhorn_divergence, max_iterations=np.int64(5)),
                ft.partial(
                    metrics.sliced_w2, num_projections=np.int64(4), key=jr.key(0)
                ),
            )
        ),
        lambda: metrics.chamfer(np.ones((5, 20)), np.zeros((4, 20))),
        lambda: metrics.wasserstein_1d(one[:, 0], other[:, 0], np.float64(2), **masks),
        lambda: metrics.gaussian_w2(np.zeros(2), eye, np.ones(2), 2 * eye),
        lambda: metrics.scores_with_floor(x, y, x),
        lambda: metrics.pairwise(metrics.chamfer, x, block_size=np.int64(2)),
        lambda: metrics.jsd(x, y, num_cells=np.int64(5)),
        lambda: metrics.jsd(x, y, limits=(np.float64(-3), np.float64(3))),
        lambda: metrics.straightness(np.linspace(0, 1, 6), one),
        lambda: metrics.latent_statistics(one, np.arange(6) % 2, np.int64(2)),
    ]
    with warnings.catch_warnings(), jax.numpy_rank_promotion("raise"):
        warnings.simplefilter("error")
        for call in calls:
            assert np.isfinite(jax.tree.leaves(call())[0]).all()


@pytest.mark.parametrize("offset", [0.0, 5e6])
def test_float64_far_from_zero_is_not_rounded_silently(offset):
    """Float32 rounds 5e6 to halves: distances there are not those of the points."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20, 2))
    expected = exact_assignment(x, y, 2)
    call = lambda: metrics.w2(x + offset, y + offset)
    if offset:
        with pytest.warns(UserWarning, match="differs by .* Subtract the same offset"):
            assert abs(call() - expected) > 1e-3
        return
    assert call() == pytest.approx(expected, rel=1e-5)


def test_half_precision_comes_back_in_float32():
    log_probs = jnp.asarray([-1000.0], jnp.float16)
    bits = metrics.bits_per_dimension(log_probs, 7, bin_width=1 / 128)
    assert bits.dtype == jnp.float32
    assert bits[0] == pytest.approx(1000 / (7 * np.log(2)) + 7, rel=1e-6)
