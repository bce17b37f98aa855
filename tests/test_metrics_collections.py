"""Scores of collections of clouds: occupancy, order of arguments, and what bad input does."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

import flowkit.metrics as metrics
from flowkit.training import data_mesh, shard_batch

from .oracles import compilations


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def brute_jsd(samples, reference, num_cells, low, width):
    """By NumPy's histogram, in nats, of points clipped into the grid."""
    edges = [np.linspace(l, l + width, num_cells + 1) for l in low]
    histograms = []
    for points in (samples, reference):
        points = points.reshape(-1, points.shape[-1]).astype(np.float64)
        inside = np.clip(points, low, [e[-1] for e in edges])
        histograms.append(np.histogramdd(inside, edges)[0].ravel())
    return jensenshannon(*histograms) ** 2


def cube(reference):
    points = reference.reshape(-1, reference.shape[-1])
    low, high = points.min(0), points.max(0)
    width = np.max(high - low)
    return (low + high - width) / 2, width


# ---- Jensen-Shannon divergence


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_jsd_against_scipy(size):
    samples, reference = (
        normal(0, 5, 40, size) + np.float32(0.4),
        normal(1, 7, 30, size),
    )
    expected = brute_jsd(samples, reference, 6, *cube(reference))
    assert metrics.jsd(samples, reference, num_cells=6) == pytest.approx(
        expected, rel=1e-5
    )
    expected = brute_jsd(samples, reference, 5, np.full(size, -2.0), 4.0)
    assert metrics.jsd(
        samples, reference, num_cells=5, limits=(-2, 2)
    ) == pytest.approx(expected, rel=1e-5)


def test_jsd_limits():
    reference = normal(0, 5, 40, 3)
    assert metrics.jsd(reference[::-1, ::-1], reference) == 0
    assert metrics.jsd(reference + 100, reference, limits=(-200, 200)) == pytest.approx(
        np.log(2), rel=1e-6
    )
    # Blind to shapes: the same points, dealt to other clouds.
    dealt = (
        np.random.default_rng(1).permutation(reference.reshape(-1, 3)).reshape(5, 40, 3)
    )
    assert metrics.jsd(dealt, reference) == 0


def test_jsd_known_value():
    """Half of the samples' points in a cell of their own: KL(p, m)/2 + KL(q, m)/2 by hand."""
    samples = np.asarray([[[0.1], [0.9]]], np.float32)
    reference = np.asarray([[[0.1], [0.2]]], np.float32)
    p, q, m = np.asarray([0.5, 0.5]), np.asarray([1.0, 0.0]), np.asarray([0.75, 0.25])
    expected = 0.5 * np.sum(p * np.log(p / m)) + 0.5 * np.log(1 / 0.75)
    assert metrics.jsd(samples, reference, num_cells=2, limits=(0, 1)) == pytest.approx(
        expected, rel=1e-6
    )
    assert expected == pytest.approx(jensenshannon(p, q) ** 2)


def test_jsd_of_one_law_is_the_bias_of_a_histogram():
    """(K - 1) / (4 N) for N points each on K equal cells, by expanding the logarithm."""
    rng, num_cells, number = np.random.default_rng(0), 4, 4000
    values = []
    for _ in range(30):
        x, y = (rng.random((10, number // 10, 2)).astype(np.float32) for _ in range(2))
        values.append(float(metrics.jsd(x, y, num_cells=num_cells, limits=(0, 1))))
    expected = (num_cells**2 - 1) / (4 * number)
    assert np.mean(values) == pytest.approx(
        expected, abs=4 * np.std(values) / np.sqrt(len(values))
    )


@pytest.mark.parametrize("padding", [1e30, np.nan])
def test_jsd_is_blind_to_masked_points(padding):
    samples, reference = normal(0, 5, 40, 2), normal(1, 7, 30, 2)
    pad = lambda x: np.concatenate([np.full((len(x), 3, 2), padding, np.float32), x], 1)
    mask = lambda x: np.tile(np.arange(x.shape[1] + 3) >= 3, (len(x), 1))
    value = metrics.jsd(samples, reference)
    padded = metrics.jsd(
        pad(samples),
        pad(reference),
        mask_samples=mask(samples),
        mask_reference=mask(reference),
    )
    assert padded == value
    assert jax.jit(metrics.jsd)(samples, reference) == pytest.approx(
        float(value), rel=1e-6
    )


def test_jsd_of_one_point():
    point = np.zeros((1, 1, 3), np.float32)
    assert metrics.jsd(point, point) == 0


# ---- order of the arguments


def segments(*positions):
    """Clouds of two points, a unit apart, at positions on a line."""
    return np.asarray([[[p, 0.0], [p, 1.0]] for p in positions], np.float32)


def test_known_scores_in_both_orders():
    """Chamfer distances are 2 (p - q)^2; samples at 0, 1, 2 and references at 0, 10, 13."""
    samples, reference = segments(0, 1, 2), segments(0, 10, 13)
    there = metrics.set_scores(samples, reference)
    back = metrics.set_scores(reference, samples)
    assert there.mmd == pytest.approx(
        2 * (0 + 64 + 121) / 3
    )  # each reference to its nearest sample
    assert back.mmd == pytest.approx(2 * (0 + 1 + 4) / 3)
    assert there.coverage == pytest.approx(
        1 / 3
    )  # all samples are nearest to the reference at 0
    assert back.coverage == pytest.approx(2 / 3)
    # Of the pool 0 1 2 | 0 10 13: both at 0 are nearest to each other; 1 has one of each
    # list at distance 1.
    expected = (0 + 0.5 + 1 + 0 + 1 + 1) / 6
    assert there.one_nna == pytest.approx(expected)
    assert back.one_nna == pytest.approx(
        expected
    )  # 1-NNA does not depend on which list is which


def test_swapped_matrices_give_another_score():
    d_xx, d_yy = (np.asarray([[0, within], [within, 0]]) for within in (2.5, 1.0))
    d_xy = np.asarray([[2.0, 9.0], [2.0, 9.0]])
    assert metrics.one_nna(d_xx, d_xy, d_yy) == pytest.approx(
        2 / 4
    )  # both samples miss, both references hit
    assert metrics.one_nna(d_yy, d_xy.T, d_xx) == pytest.approx(
        2 / 4
    )  # the lists exchanged
    assert metrics.one_nna(d_yy, d_xy, d_xx) == pytest.approx(
        3 / 4
    )  # wrong: the matrices within exchanged
    assert metrics.one_nna(d_xx, d_xy.T, d_yy) == pytest.approx(
        3 / 4
    )  # wrong: references in rows


def test_set_scores_are_the_scores_of_the_matrices():
    samples, reference = normal(0, 6, 9, 2), normal(1, 6, 9, 2)
    masks = [
        np.random.default_rng(k).permuted(np.tile(np.arange(9) < 5, (6, 1)), axis=1)
        for k in range(2)
    ]
    value = metrics.set_scores(
        samples,
        reference,
        distance=metrics.emd,
        mask_samples=masks[0],
        mask_reference=masks[1],
    )
    lists = (samples, reference)
    matrix = lambda i, j: metrics.pairwise(
        metrics.emd, lists[i], lists[j], mask_xs=masks[i], mask_ys=masks[j]
    )
    d_xy = matrix(0, 1)
    assert value.one_nna == pytest.approx(
        float(metrics.one_nna(matrix(0, 0), d_xy, matrix(1, 1)))
    )
    assert value.mmd == pytest.approx(float(metrics.mmd(d_xy)))
    assert value.coverage == pytest.approx(float(metrics.coverage(d_xy)))


def test_scores_over_devices():
    """Of samples that are spread over them, too."""
    mesh = data_mesh()
    reference = normal(1, 5, 9, 2)
    mask = np.arange(9) < np.arange(3, 8)[:, None]
    samples = shard_batch(normal(0, 10, 9, 2), mesh)
    options = {"mask_reference": mask}
    for score, arguments in (
        (metrics.set_scores, (samples[:5], reference)),
        (metrics.scores_with_floor, (samples, reference, normal(2, 7, 9, 2))),
    ):
        expected = score(*map(np.asarray, arguments), **options)
        value = score(*arguments, **options, mesh=mesh)
        jax.tree.map(ft.partial(np.testing.assert_allclose, rtol=1e-5), value, expected)


def test_scores_with_floor_are_means_over_collections():
    """The scores worked out by hand above, and those of the reference against itself."""
    reference = segments(0, 10, 13)
    samples = segments(0, 1, 2, 0, 10, 13, 7)  # the last one makes no full collection
    scores = metrics.scores_with_floor(samples, reference, segments(0, 10, 13))
    # A copy of the reference: every cloud's nearest other one is its twin.
    assert scores.floor.one_nna == 0
    assert scores.floor.mmd == 0
    assert scores.floor.coverage == 1
    assert scores.samples.one_nna == pytest.approx((3.5 / 6 + 0) / 2)
    assert scores.samples.mmd == pytest.approx(2 * (64 + 121) / 3 / 2)
    assert scores.samples.coverage == pytest.approx((1 / 3 + 1) / 2)

    numbers = scores.as_dict("_emd")
    assert list(numbers) == [
        f"{name}_emd{floor}"
        for name in ("one_nna", "mmd", "coverage")
        for floor in ("", "_floor")
    ]
    assert numbers["coverage_emd"] == pytest.approx(2 / 3)
    header, *rows = str(scores).splitlines()
    assert header.split() == ["samples", "floor"]
    assert [row.split()[0] for row in rows] == ["one_nna", "mmd", "coverage"]
    assert rows[2].split()[1:] == ["0.6667", "1"]


def test_scores_with_floor_take_masks():
    """Padding changes nothing, whatever it holds."""
    clouds = segments(0, 10, 13)
    padded = np.concatenate([clouds, np.full((3, 1, 2), np.nan, np.float32)], axis=1)
    mask = np.tile([True, True, False], (3, 1))
    masked = metrics.scores_with_floor(
        padded[::-1],
        padded,
        padded[:, ::-1],
        mask_samples=mask,
        mask_reference=mask,
        mask_floor=mask[:, ::-1],
    )
    assert masked == metrics.scores_with_floor(clouds[::-1], clouds, clouds)


# ---- degenerate and bad input


DISTANCES = {
    "chamfer": metrics.chamfer,
    "chamfer_l1": metrics.chamfer_l1,
    "energy_distance": metrics.energy_distance,
}
ASSIGNED = {"emd": metrics.emd, "w2": metrics.w2}


@pytest.mark.parametrize(
    "distance", [*DISTANCES.values(), *ASSIGNED.values()], ids=[*DISTANCES, *ASSIGNED]
)
def test_clouds_of_one_point_and_of_equal_points(distance):
    zero, shifted = np.zeros((1, 3), np.float32), np.asarray([[2, 0, 0]], np.float32)
    scale = {
        metrics.chamfer: 8,
        metrics.chamfer_l1: 4,
        metrics.energy_distance: 2,
        metrics.emd: 2,
        metrics.w2: 2,
    }
    assert distance(zero, shifted) == pytest.approx(scale[distance])
    assert distance(zero, zero) == 0
    # Equal points are points like any other.
    assert distance(np.repeat(zero, 7, 0), np.repeat(shifted, 7, 0)) == pytest.approx(
        scale[distance]
    )
    gradient = jax.grad(lambda x: distance(x, jnp.repeat(shifted, 7, 0)))(
        jnp.repeat(zero, 7, 0)
    )
    assert np.isfinite(gradient).all()
    assert np.isfinite(jax.grad(distance)(jnp.asarray(zero), zero)).all()


def test_scores_of_equal_clouds():
    """All distances are zero: only ties, and all samples cover the first reference."""
    clouds = np.zeros((4, 3, 2), np.float32)
    value = metrics.set_scores(clouds, clouds)
    assert (value.one_nna, value.mmd, value.coverage) == (0.5, 0, 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, y: metrics.set_scores(x, y[:3]),
            "`samples` holds 4 clouds and `reference` 3",
        ),
        (lambda x, y: metrics.set_scores(x[:1], y[:1]), "at least two clouds"),
        (lambda x, y: metrics.scores_with_floor(x, y[:1], x), "at least two of them"),
        (
            lambda x, y: metrics.scores_with_floor(x, y, x[:3]),
            "`floor` holds 3 clouds and `reference` 4",
        ),
        (
            lambda x, y: metrics.scores_with_floor(x[:3], y, x),
            "`samples` holds 3 clouds and `reference` 4",
        ),
        (
            lambda x, y: metrics.set_scores(x * np.float32(np.nan), y),
            "`samples` holds values that are not finite",
        ),
        (
            lambda x, y: metrics.set_scores(x, y * np.float32(np.nan)),
            "`reference` holds values that are not finite",
        ),
        (
            lambda x, y: metrics.scores_with_floor(x, y, x * np.float32(np.inf)),
            "`floor` holds values that are not finite",
        ),
        (
            lambda x, y: metrics.set_scores(x, y, mask_samples=np.zeros((4, 5), bool)),
            "`mask_samples` leaves no valid point",
        ),
        (
            lambda x, y: metrics.set_scores(x, y[:, :3], distance=metrics.emd),
            "an assignment needs equal numbers",
        ),
        (
            lambda x, y: metrics.jsd(x * np.float32(np.inf), y),
            "`samples` holds values that are not finite",
        ),
        (
            lambda x, y: metrics.jsd(x, y, mask_reference=np.zeros((4, 5), bool)),
            "`mask_reference` leaves no valid",
        ),
        (lambda x, y: metrics.jsd(x[:0], y), r"`samples` has shape \(0, 5, 2\)"),
        (lambda x, y: metrics.jsd(x, y, num_cells=0), "`num_cells` is 0"),
        (lambda x, y: metrics.jsd(x, y, num_cells=5000), r"5000\^2 cells"),
        (lambda x, y: metrics.jsd(x, y, limits=(1, 1)), r"`limits` is \(1, 1\)"),
    ],
)
def test_wrong_use(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(0, 4, 5, 2), normal(1, 4, 5, 2))


# ---- what a transformation must not hide


def matrices(bad):
    clouds = np.abs(normal(0, 3, 4, 4))
    clouds[1, 2, 3] = bad
    return clouds


@pytest.mark.parametrize("bad", [1.0, np.nan])
@pytest.mark.parametrize(
    "score",
    [
        lambda d: metrics.one_nna(*d),
        lambda d: metrics.coverage(d[1]),
        lambda d: metrics.jsd(d, d),
        lambda d: metrics.interval_coverage(d, d[0], 0.4),
        lambda d: metrics.rank_histogram(d, d[0]),
    ],
    ids=["1-NNA", "coverage", "JSD", "intervals", "ranks"],
)
def test_nan_stays_nan_where_values_are_not_known(score, bad):
    """Comparisons would take NaN for a number."""
    values = jax.jit(score)(matrices(bad))
    assert np.isnan(values).any() == np.isnan(bad)


def test_other_limits_compile_nothing():
    x = normal(0, 2, 5, 2)
    metrics.jsd(x, x, limits=(-1.0, 1.0))
    with compilations() as events:
        metrics.jsd(x, x, limits=(-2.0, 3.0)).block_until_ready()
    assert not events


def test_a_distance_is_one_number():
    with pytest.raises(ValueError, match="`distance` must return one number.*Bounds"):
        metrics.pairwise(metrics.emd_bounds, normal(0, 2, 4, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: metrics.frechet_distance(x, x, jnp.ravel),
            "`x` and `y` must be known",
        ),
        (
            lambda x: metrics.simulation_based_calibration(x, x[0]).p_values,
            "`samples` and `truth` must be known",
        ),
        (lambda x: metrics.Tracker().add(mse=x).means()["mse"], "`mse` must be known"),
    ],
)
def test_what_is_counted_on_the_host_says_so(call, message):
    with pytest.raises(ValueError, match=message):
        jax.jit(call)(normal(0, 4, 3, 2))
