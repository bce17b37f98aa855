"""Set distances and scores against brute force, scipy and closed forms."""

import functools as ft
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import flowkit.metrics as metrics
from flowkit.training import data_mesh


SLICED = jax.tree_util.Partial(metrics.sliced_w2, key=jr.key(3))

# Distances of two clouds: symmetric, zero for equal clouds, blind to order and padding.
DISTANCES = {
    "chamfer": metrics.chamfer,
    "chamfer_l1": metrics.chamfer_l1,
    "emd": metrics.emd,
    "w2": metrics.w2,
    "energy_distance": metrics.energy_distance,
    "sliced_w2": SLICED,
}
ASSIGNED = {"emd", "w2"}
all_distances = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)


def brute_chamfer(x, y, power=2):
    cost = cdist(x, y) ** power
    return cost.min(1).mean() + cost.min(0).mean()


def brute_assignment(x, y, power):
    cost = cdist(x, y) ** power
    return cost[linear_sum_assignment(cost)].mean() ** (1 / power)


def brute_energy(x, y):
    return np.sqrt(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())


BRUTE = {
    "chamfer": brute_chamfer,
    "chamfer_l1": lambda x, y: brute_chamfer(x, y, 1),
    "emd": lambda x, y: brute_assignment(x, y, 1),
    "w2": lambda x, y: brute_assignment(x, y, 2),
    "energy_distance": brute_energy,
}


def normal(seed, *shape):
    # NumPy, because JAX compiles a program for every new shape.
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def clouds(n=12, m=12, d=2, seed=0, shift=0.5):
    return normal(seed, n, d), normal(seed + 1, m, d) * np.float32(1.3) + np.float32(
        shift
    )


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_secs, **_: (
        COMPILED.append(event) if "backend_compile" in event else None
    )
)


def compilations(function):
    """How many programs are compiled in a call."""
    before = len(COMPILED)
    function()
    return len(COMPILED) - before


def array(*rows):
    return np.asarray(rows, np.float32)


# ---- values by hand


def test_worked_values():
    x, y = array((0, 0), (1, 0), (0, 1)), array((0, 0), (2, 0))
    assert metrics.chamfer(x, y) == pytest.approx(7 / 6)
    assert metrics.chamfer_l1(x, y) == pytest.approx(7 / 6)
    assert metrics.emd(array((0, 0), (1, 0)), array((1, 1), (0, 1))) == pytest.approx(1)


def test_emd_is_the_minimum_over_all_bijections():
    x, y = (np.asarray(a) for a in clouds(5, 5, 3))
    every = [
        np.linalg.norm(x - y[list(pi)], axis=1).mean()
        for pi in itertools.permutations(range(5))
    ]
    assert metrics.emd(x, y) == pytest.approx(min(every), rel=1e-5)


def test_w2_and_emd_may_choose_different_assignments():
    # On a line, to move everything by one or only one point by four costs the same unsquared.
    x, y = array((0, 0), (1, 0), (2, 0), (3, 0)), array((1, 0), (2, 0), (3, 0), (4, 0))
    assert metrics.emd(x, y) == pytest.approx(1)
    assert metrics.w2(x, y) == pytest.approx(1)
    y[:, 1] += np.float32(0.1)
    assert metrics.w2(x, y) == pytest.approx(np.sqrt(1.01))


@pytest.mark.parametrize("name", BRUTE)
@pytest.mark.parametrize("size", [1, 3, 9])
def test_against_brute_force(name, size):
    x, y = clouds(30, 30, size)
    expected = BRUTE[name](np.asarray(x, np.float64), np.asarray(y, np.float64))
    assert DISTANCES[name](x, y) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("name", sorted(set(BRUTE) - ASSIGNED))
def test_unequal_sizes(name):
    x, y = clouds(9, 31)
    assert DISTANCES[name](x, y) == pytest.approx(BRUTE[name](x, y), rel=2e-5)


@pytest.mark.parametrize("name", ["chamfer", "chamfer_l1", "energy_distance"])
def test_blocks_of_rows(name, monkeypatch):
    from flowkit.metrics import _reductions

    monkeypatch.setattr(
        _reductions, "_BLOCK_ENTRIES", 100
    )  # 29 points wide: blocks of 3 rows, the last one padded
    x, y = clouds(37, 29)
    assert DISTANCES[name](x, y) == pytest.approx(BRUTE[name](x, y), rel=2e-5)


@pytest.mark.parametrize("size", [2, 10])
def test_tiles(size, monkeypatch):
    from flowkit.metrics import _chamfer, _reductions

    monkeypatch.setattr(_reductions, "_BLOCK_ENTRIES", 64)
    monkeypatch.setattr(
        _chamfer, "TILE_WIDTH", 16
    )  # 3 tiles of 37 columns, 10 blocks of 4 rows in each
    x, y = clouds(39, 37, size)
    assert metrics.chamfer(x, y) == pytest.approx(brute_chamfer(x, y), rel=2e-5)

    def whole(x, y):
        squared = jnp.sum((x[:, None] - y[None]) ** 2, -1)
        return squared.min(0).mean() + squared.min(1).mean()

    results = [
        jax.jit(
            lambda x, y, f=f: (
                jax.grad(f, (0, 1))(x, y),
                jax.jvp(f, (x, y), (y[:1] + x, y)),
            )
        )
        for f in (metrics.chamfer, whole)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        *[f(x, y) for f in results],
    )


def temporary_memory(function, *shapes):
    """Bytes that the compiled program needs beside its arguments and results."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


@pytest.mark.parametrize(
    "function", [metrics.chamfer, jax.grad(metrics.chamfer)], ids=["value", "gradient"]
)
def test_large_clouds_stay_small(function):
    assert (
        temporary_memory(function, (100_000, 2), (100_000, 2)) < 2**26
    )  # the matrix would be 40 GB


@pytest.mark.parametrize("size", [3, 12])
def test_many_large_clouds_stay_small(size):
    """A thousand clouds of 2,048 points, 25 MB, whose distances would be 17 TB."""
    shape = (1000, 2048, size)
    program = lambda xs, ys: metrics.pairwise(metrics.chamfer, xs, ys)
    assert temporary_memory(program, shape, shape) < 2**27
    within = lambda xs: metrics.pairwise(metrics.chamfer, xs)
    assert temporary_memory(within, shape) < 2**27


@pytest.mark.parametrize(("size", "tolerance"), [(3, 2e-6), (32, 5e-6)])
def test_far_from_the_origin(size, tolerance):
    x, y = (np.asarray(a, np.float64) for a in clouds(40, 40, size))
    offset = np.float32(1000) * np.ones(size)
    x, y = (a.astype(np.float32) + offset for a in (x, y))
    assert metrics.chamfer(x, y) == pytest.approx(brute_chamfer(x, y), rel=tolerance)


# ---- invariants of every distance


@all_distances
def test_zero_for_the_same_cloud(distance):
    x, _ = clouds(20, 20)
    assert distance(x, x[::-1]) == pytest.approx(0, abs=5e-4)


def test_chamfer_of_a_cloud_with_itself_is_exactly_zero():
    x, _ = clouds(50, 50, 3)
    assert metrics.chamfer(x, x) == 0
    x, _ = clouds(50, 50, 40)
    assert 0 <= metrics.chamfer(x, x) < 1e-4


@all_distances
def test_symmetric_and_blind_to_order(distance):
    x, y = clouds()
    value = distance(x, y)
    assert distance(y, x) == pytest.approx(float(value), rel=1e-5)
    assert distance(
        x[np.random.default_rng(0).permutation(len(x))], y[::-1]
    ) == pytest.approx(float(value), rel=1e-5)


@all_distances
@pytest.mark.parametrize("padding", [1e30, np.nan])
def test_masked_points_have_no_influence(distance, padding):
    x, y = clouds(10, 10)
    mask_x, mask_y = np.arange(14) < 10, np.arange(17) >= 7
    padded_x = np.concatenate([x, np.full((4, 2), padding, np.float32)])
    padded_y = np.concatenate([np.full((7, 2), padding, np.float32), y])
    value = distance(padded_x, padded_y, mask_x=mask_x, mask_y=mask_y)
    assert value == pytest.approx(float(distance(x, y)), rel=1e-5)


@all_distances
@pytest.mark.parametrize("size", [12, 9])
def test_traced_nan_is_not_hidden(distance, size):
    x, y = clouds(12, 12)
    x[2, 1] = np.nan
    mask = np.arange(12) < size
    masks = {} if size == 12 else {"mask_x": mask, "mask_y": mask}
    assert np.isnan(jax.jit(distance)(x, y, **masks))


@all_distances
def test_jit_vmap_and_grad(distance):
    x, y = clouds()
    value = float(distance(x, y))
    assert jax.jit(distance)(x, y) == pytest.approx(value, rel=1e-5)
    stack = np.stack([x, x + 1]), np.stack([y, y])
    both = jax.vmap(distance)(*stack)
    np.testing.assert_allclose(both, [value, float(distance(x + 1, y))], rtol=1e-5)
    gradient = jax.jit(jax.grad(distance))
    assert np.isfinite(gradient(x, x)).all()
    with jax.enable_x64(True):  # steps so small that no nearest neighbour changes
        x, y, step = (a.astype(np.float64) for a in (x, y, 1e-6 * normal(7, *x.shape)))
        difference = (float(distance(x + step, y)) - float(distance(x - step, y))) / 2
        assert np.vdot(gradient(x, y), step) == pytest.approx(difference, rel=1e-5)


@all_distances
def test_second_call_compiles_nothing(distance):
    x, y = clouds(7, 7, 4)
    first = compilations(lambda: distance(x, y))
    x = x + 1
    assert first > 0
    assert compilations(lambda: distance(x, y)) == 0


@all_distances
def test_numpy_and_dtypes(distance):
    x, y = (np.asarray(a, np.float64) for a in clouds())
    assert distance(x, y).dtype == jnp.float32
    with jax.enable_x64(True):
        assert distance(x, y).dtype == jnp.float64
        assert distance(x.astype(np.float32), y).dtype == jnp.float32


# ---- the line, slices and Gaussians


@pytest.mark.parametrize(("n", "m"), [(9, 9), (9, 12), (5, 31)])
def test_wasserstein_1d_against_scipy(n, m):
    x, y = normal(0, n), normal(1, m) + 0.3
    assert metrics.wasserstein_1d(x, y) == pytest.approx(
        scipy.stats.wasserstein_distance(x, y), rel=1e-5
    )


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_wasserstein_1d_by_repetition(p):
    # Repeating the points of both samples to a common size changes neither law.
    x, y = np.asarray(normal(0, 4)), np.asarray(normal(1, 6))
    long_x, long_y = np.sort(np.repeat(x, 3)), np.sort(np.repeat(y, 2))
    expected = np.mean(np.abs(long_x - long_y) ** p) ** (1 / p)
    assert metrics.wasserstein_1d(x, y, p) == pytest.approx(expected, rel=1e-5)
    assert metrics.wasserstein_1d(long_x, long_y, p) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("p", [1, 2, 4])
def test_wasserstein_1d_of_a_shift(p):
    x = normal(0, 50)
    assert metrics.wasserstein_1d(x, x + 0.7, p) == pytest.approx(0.7, rel=1e-5)
    assert metrics.wasserstein_1d(x, x, p) == 0


def test_wasserstein_1d_masks_gradient_and_order():
    x, y = normal(0, 10), normal(1, 7)
    padded = np.concatenate([x, np.full(3, np.nan, np.float32)])
    value = metrics.wasserstein_1d(padded, y, 2.0, mask_x=np.arange(13) < 10)
    assert value == pytest.approx(float(metrics.wasserstein_1d(x, y, 2.0)), rel=1e-5)
    gradient = jax.jit(jax.grad(metrics.wasserstein_1d))
    for p in (1.0, 2.0):
        assert np.isfinite(gradient(x, y, p)).all()
        assert np.isfinite(gradient(x, x, p)).all()
        assert gradient(x, y, p).sum() != 0
    with pytest.raises(ValueError, match="`p` is 0.5"):
        metrics.wasserstein_1d(x, y, 0.5)


def test_w2_on_a_line_is_the_sorted_distance():
    x, y = clouds(20, 20, 1)
    assert metrics.w2(x, y) == pytest.approx(
        float(metrics.wasserstein_1d(x[:, 0], y[:, 0], 2)), rel=1e-5
    )
    assert metrics.emd(x, y) == pytest.approx(
        float(metrics.wasserstein_1d(x[:, 0], y[:, 0], 1)), rel=1e-5
    )


def test_energy_distance_on_a_line_against_scipy():
    x, y = clouds(20, 33, 1)
    expected = scipy.stats.energy_distance(x[:, 0], y[:, 0])
    assert metrics.energy_distance(x, y) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_sliced_w2_of_a_shift(size):
    # Each slice of a shifted cloud is a shift by theta.a: W2^2 has mean |a|^2/d and
    # relative variance 2(d-1)/(d+2).
    x = normal(0, 40, size)
    shift = np.arange(1, size + 1, dtype=np.float32)
    number = 4000
    value = metrics.sliced_w2(x, x + shift, num_projections=number, key=jr.key(1)) ** 2
    expected = float(shift @ shift) / size
    error = expected * np.sqrt(2 * (size - 1) / (size + 2) / number)
    assert value == pytest.approx(expected, abs=5 * error + 1e-4)


def test_sliced_w2_of_two_gaussians():
    size, number = 3, 4000
    shift = np.asarray([2, -1, 2], np.float32)
    x, y = normal(0, number, size), normal(1, number, size) + shift
    value = metrics.sliced_w2(x, y, num_projections=256, key=jr.key(1))
    assert value == pytest.approx(3 / np.sqrt(size), rel=0.15)


def test_sliced_w2_same_key_same_value():
    x, y = clouds()
    assert metrics.sliced_w2(x, y, key=jr.key(0)) == metrics.sliced_w2(
        x, y, key=jr.key(0)
    )
    assert metrics.sliced_w2(x, y, key=jr.key(0)) != metrics.sliced_w2(
        x, y, key=jr.key(1)
    )
    with pytest.raises(ValueError, match="`num_projections` is 0"):
        metrics.sliced_w2(x, y, num_projections=0, key=jr.key(0))


def test_gaussian_w2():
    a, b = np.asarray([[1.5, 0.6], [0.6, 0.7]]), np.diag([0.5, 2.0])
    zero, shift = np.zeros(2), np.asarray([1.0, -1.0])
    assert metrics.gaussian_w2(zero, a, shift, b) ** 2 == pytest.approx(
        2.795477, rel=1e-5
    )
    root = np.asarray(scipy.linalg.sqrtm(a))
    cross = np.asarray(scipy.linalg.sqrtm(root @ b @ root))
    expected = 2 + np.trace(a + b - 2 * cross)
    assert metrics.gaussian_w2(zero, a, shift, b) ** 2 == pytest.approx(
        expected, rel=1e-5
    )
    assert metrics.gaussian_w2(shift, b, zero, a) ** 2 == pytest.approx(
        expected, rel=1e-5
    )
    assert metrics.gaussian_w2(zero, a, zero, a) == pytest.approx(0, abs=2e-3)


def test_gaussian_w2_of_singular_and_isotropic():
    eye, zero, mean = np.eye(3), np.zeros(3), np.asarray([1.0, 2.0, 2.0])
    assert metrics.gaussian_w2(zero, 4 * eye, mean, eye) == pytest.approx(
        np.sqrt(9 + 3)
    )
    assert metrics.gaussian_w2(zero, 0 * eye, mean, 0 * eye) == pytest.approx(3)


def test_gradients_of_gaussian_w2():
    """In A the square has the gradient I - T, where T is the matrix of the optimal map."""

    @jax.jit
    @ft.partial(jax.grad, argnums=(1, 3))
    def gradients(mean_x, cov_x, mean_y, cov_y):
        return metrics.gaussian_w2(mean_x, cov_x, mean_y, cov_y) ** 2

    zero, mean = np.zeros(3, np.float32), np.asarray([1.0, 2.0, 2.0], np.float32)
    a, b = np.random.default_rng(0).normal(size=(2, 3, 3))
    covs = a @ a.T + np.eye(3), b @ b.T + np.eye(3)
    root = np.real(scipy.linalg.sqrtm(covs[0]))
    back = np.linalg.inv(root)
    plan = back @ np.real(scipy.linalg.sqrtm(root @ covs[1] @ root)) @ back
    eye = np.eye(3)
    cases = [
        (4 * eye, eye, (0.5 * eye, -eye)),
        (*covs, (eye - plan, eye - np.linalg.inv(plan))),
    ]
    for cov_x, cov_y, expected in cases:
        x, y = np.float32(cov_x), np.float32(cov_y)
        for actual, value in zip(gradients(zero, x, mean, y), expected, strict=True):
            np.testing.assert_allclose(actual, value, atol=2e-5)


@pytest.mark.parametrize(
    ("cov", "message"),
    [
        ([[1.0, 2.0], [0.0, 1.0]], "`cov_y` is not symmetric"),
        ([[1.0, 0.0], [0.0, -1.0]], "negative eigenvalue"),
    ],
)
def test_gaussian_w2_wants_covariances(cov, message):
    with pytest.raises(ValueError, match=message):
        metrics.gaussian_w2(np.zeros(2), np.eye(2), np.zeros(2), np.asarray(cov))


# ---- matrices and scores


@all_distances
def test_pairwise_is_the_matrix_of_distances(distance):
    xs = normal(0, 3, 6, 2)
    ys = normal(1, 4, 6, 2)
    expected = [[float(distance(x, y)) for y in ys] for x in xs]
    np.testing.assert_allclose(
        metrics.pairwise(distance, xs, ys, block_size=6), expected, rtol=1e-4
    )
    within = metrics.pairwise(distance, xs)
    np.testing.assert_allclose(
        within, metrics.pairwise(distance, xs, xs), rtol=1e-4, atol=1e-3
    )
    np.testing.assert_array_equal(within, within.T)


@pytest.mark.parametrize("name", ["chamfer", "emd"])
def test_pairwise_with_masks(name):
    xs, ys = normal(0, 3, 9, 2), normal(1, 2, 7, 2)
    rng = np.random.default_rng(0)
    mask_xs = rng.permuted(np.tile(np.arange(9) < 5, (3, 1)), axis=1)
    mask_ys = rng.permuted(np.tile(np.arange(7) < 5, (2, 1)), axis=1)
    value = metrics.pairwise(DISTANCES[name], xs, ys, mask_xs=mask_xs, mask_ys=mask_ys)
    expected = [
        [BRUTE[name](x[mx], y[my]) for y, my in zip(ys, mask_ys, strict=True)]
        for x, mx in zip(xs, mask_xs, strict=True)
    ]
    np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["chamfer", "emd", "sliced_w2"])
def test_pairwise_over_devices(name):
    """Of odd numbers of pairs: 15 of two lists, 3 within one."""
    xs = normal(0, 3, 6, 2)
    ys = normal(1, 5, 6, 2)
    mesh = jax.make_mesh((2,), ("data",))
    for lists in ((xs, ys), (xs[:2],)):
        value = metrics.pairwise(DISTANCES[name], *lists, mesh=mesh)
        assert value.sharding.is_fully_replicated
        expected = metrics.pairwise(DISTANCES[name], *lists)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_devices_compute_their_parts_of_pairs():
    index = lambda x, y: jax.lax.axis_index("data").astype(float)
    value = metrics.pairwise(
        index, normal(0, 3, 6, 2), normal(1, 5, 6, 2), mesh=data_mesh(), block_size=3
    )
    np.testing.assert_array_equal(np.ravel(value), np.arange(15) >= 8)


def test_pairwise_wants_devices_in_one_axis():
    xs = normal(0, 3, 6, 2)
    with pytest.raises(ValueError, match='`mesh` must have the axis "data" alone'):
        metrics.pairwise(metrics.chamfer, xs, mesh=jax.make_mesh((2,), ("model",)))


def test_pairwise_traces_once():
    traces = []

    def distance(x, y):
        traces.append(1)
        return metrics.chamfer(x, y)

    xs, ys = normal(0, 4, 6, 2), normal(1, 4, 6, 2)
    metrics.pairwise(distance, xs, ys, block_size=2)
    first = len(traces)
    metrics.pairwise(distance, xs + 1, ys, block_size=2)
    assert len(traces) == first


def scores(xs, ys, distance=metrics.chamfer):
    return (
        metrics.pairwise(distance, xs),
        metrics.pairwise(distance, xs, ys),
        metrics.pairwise(distance, ys),
    )


def test_one_nna_of_one_law_is_one_half():
    number = 150
    xs, ys = normal(0, number, 8, 2), normal(1, number, 8, 2)
    for distance in (metrics.chamfer, metrics.energy_distance):
        assert metrics.one_nna(*scores(xs, ys, distance)) == pytest.approx(
            0.5, abs=5 * 0.5 / np.sqrt(number)
        )


def test_one_nna_extremes():
    xs = normal(0, 20, 8, 2)
    assert metrics.one_nna(*scores(xs, xs + 100)) == 1
    assert (
        metrics.one_nna(*scores(xs, xs)) == 0
    )  # copies: the nearest other cloud is the twin


def test_one_nna_against_brute_force_with_ties():
    rng = np.random.default_rng(0)
    points = rng.integers(0, 5, (24, 1)).astype(np.float32)  # many ties
    d = cdist(points, points)
    label, hits = np.arange(24) < 12, []
    for i in range(24):
        others = np.arange(24) != i
        same = d[i][others & (label == label[i])].min()
        other = d[i][others & (label != label[i])].min()
        hits.append(0.5 if same == other else float(same < other))
    value = metrics.one_nna(d[:12, :12], d[:12, 12:], d[12:, 12:])
    assert value == pytest.approx(np.mean(hits))


def test_argument_order_is_samples_then_reference():
    # Three samples near one reference out of two: rows are samples, columns references.
    d_xy = array((1, 5), (2, 6), (3, 7))
    assert metrics.mmd(d_xy) == pytest.approx((1 + 5) / 2)
    assert metrics.coverage(d_xy) == pytest.approx(1 / 2)
    assert metrics.mmd(d_xy.T) == pytest.approx((1 + 2 + 3) / 3)
    assert metrics.coverage(d_xy.T) == pytest.approx(1 / 3)
    xs, ys = jnp.zeros((3, 2, 2)), jnp.ones((2, 2, 2))
    assert metrics.pairwise(metrics.chamfer, xs, ys).shape == (3, 2)


def test_mmd_and_coverage_limits():
    reference = normal(0, 6, 8, 2)
    samples = np.concatenate([reference, normal(1, 3, 8, 2)])
    d_xy = metrics.pairwise(metrics.chamfer, samples, reference)
    assert metrics.mmd(d_xy) == 0
    assert metrics.coverage(d_xy) == 1
    same = np.repeat(reference[:1], len(samples), 0)
    assert metrics.coverage(
        metrics.pairwise(metrics.chamfer, same, reference)
    ) == pytest.approx(1 / 6)


# ---- diagnostics


def test_straightness():
    times = jnp.linspace(0, 1, 2001)
    line = times[:, None] * jnp.asarray([1.0, 2.0]) + 3
    assert metrics.straightness(times, line) == pytest.approx(0, abs=1e-4)
    # v = 1 + sin(2 pi t) ends where v = 1 does, and deviates from it by sin: the integral
    # of its square is 1/2.
    with jax.enable_x64(True):
        times = np.linspace(0, 1, 2001)
        curved = times + (1 - np.cos(2 * np.pi * times)) / (2 * np.pi)
        assert metrics.straightness(times, curved) == pytest.approx(0.5, rel=1e-4)
        assert metrics.straightness(5 * times + 1, curved) == pytest.approx(
            0.5, rel=1e-4
        )
    with pytest.raises(ValueError, match="`times` must increase"):
        metrics.straightness(jnp.asarray([1.0, 0.0]), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="at least two"):
        metrics.straightness(jnp.zeros(1), jnp.zeros((1, 3)))


def test_latent_statistics():
    latents = np.asarray(normal(0, 40, 2, 3))
    labels = np.arange(40) % 3
    overall = metrics.latent_statistics(latents)
    np.testing.assert_allclose(overall.mean, latents.mean(0), atol=1e-6)
    np.testing.assert_allclose(overall.variance, latents.var(0), rtol=1e-5)
    classes = metrics.latent_statistics(latents, labels, 4)
    assert classes.count.tolist() == [14, 13, 13, 0]
    for k in range(3):
        np.testing.assert_allclose(
            classes.mean[k], latents[labels == k].mean(0), atol=1e-6
        )
        np.testing.assert_allclose(
            classes.std[k], latents[labels == k].std(0), rtol=1e-5
        )
    assert jnp.isnan(classes.mean[3]).all()
    of_bytes = metrics.latent_statistics(latents, labels.astype(np.uint8), 4)
    np.testing.assert_array_equal(of_bytes.mean, classes.mean)
    with pytest.raises(ValueError, match="belong together"):
        metrics.latent_statistics(latents, labels)
    with pytest.raises(ValueError, match="`labels` run from 0 to 2"):
        metrics.latent_statistics(latents, labels, 2)


# ---- wrong use


@all_distances
def test_wrong_clouds(distance):
    x, y = clouds()
    with pytest.raises(ValueError, match="`x` has shape"):
        distance(np.zeros((0, 2), np.float32), y)
    with pytest.raises(ValueError, match="`y` has shape"):
        distance(x, np.zeros((0, 2), np.float32))
    with pytest.raises(ValueError, match="`y` holds values that are not finite"):
        distance(x, jnp.asarray(y).at[3, 1].set(jnp.nan))
    with pytest.raises(ValueError, match="`mask_x` leaves no valid point"):
        distance(x, y, mask_x=np.zeros(12, bool))
    with pytest.raises(Exception, match="(?s)Type-check error"):
        distance(x, np.zeros((12, 3), np.float32))


@pytest.mark.parametrize("name", sorted(ASSIGNED))
def test_assignment_needs_equal_counts(name):
    x, y = clouds(12, 9)
    with pytest.raises(ValueError, match="`x` has 12 valid points and `y` has 9"):
        DISTANCES[name](x, y)
    mask = np.arange(12) < 9
    assert np.isfinite(DISTANCES[name](x, y, mask_x=mask))
    assert np.isnan(jax.jit(DISTANCES[name])(x, x, mask_x=mask))
    with pytest.raises(
        ValueError, match=r"`distance` is NaN for 2 pairs, the first of them \(0, 0\)"
    ):
        metrics.pairwise(DISTANCES[name], x[None], np.stack([x, x]), mask_xs=mask[None])


def test_wrong_matrices():
    square, wide = jnp.ones((3, 3)), jnp.ones((3, 4))
    with pytest.raises(ValueError, match=r"`d_xx` has shape \(3, 4\)"):
        metrics.one_nna(wide, square, square)
    with pytest.raises(ValueError, match=r"`d_yy` has shape \(3, 3\)"):
        metrics.one_nna(square, wide, square)
    with pytest.raises(ValueError, match="equally long lists"):
        metrics.one_nna(square, wide, jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="at least two"):
        metrics.one_nna(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1)))
    for function in (metrics.mmd, metrics.coverage):
        with pytest.raises(ValueError, match="`d_xy` holds values that are not finite"):
            function(wide.at[0, 0].set(jnp.nan))
        with pytest.raises(ValueError, match="`d_xy` has shape"):
            function(jnp.ones((0, 4)))


def test_wrong_lists():
    xs = jnp.zeros((3, 4, 2))
    with pytest.raises(ValueError, match="`mask_ys` was given without `ys`"):
        metrics.pairwise(metrics.chamfer, xs, mask_ys=jnp.ones((3, 4), bool))
    with pytest.raises(ValueError, match="`mask_xs` leaves no valid point"):
        metrics.pairwise(
            metrics.chamfer, xs, mask_xs=jnp.zeros((3, 4), bool).at[0].set(True)
        )
    with pytest.raises(ValueError, match="`xs` holds values"):
        metrics.pairwise(metrics.chamfer, xs.at[0].set(jnp.inf))
    with pytest.raises(ValueError, match="`block_size` is 0"):
        metrics.pairwise(metrics.chamfer, xs, block_size=0)


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="processors cannot be chosen here"
)
def test_assignments_on_one_processor():
    """Where no second thread could hand large costs to the host."""
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax
import flowkit as fk

x, y = (jax.random.normal(jax.random.key(seed), (8, 300, 2)) for seed in range(2))
for shift in range(20):
    jax.vmap(fk.metrics.w2)(x + shift, y).block_until_ready()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
