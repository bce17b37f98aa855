"""Ragged clouds, subsets of points, and augmentation: exact, or uniform as it should be."""

import functools as ft
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from flowkit import data


REAL = Path(os.environ.get("FLOWKIT_DATA", "absent"), "pointclouds")
RNG = ft.partial(np.random.default_rng, 0)


def make_sets(num=6, size=9, dim=2, *, masked=True):
    rng = np.random.default_rng(1)
    points = rng.normal(size=(num, size, dim)).astype(np.float32)
    mask = np.arange(size) < rng.integers(3, size + 1, (num, 1)) if masked else None
    if masked:
        points[~mask] = np.nan
    return data.PointSets(points, mask, np.arange(num))


def test_pad_keeps_every_point():
    clouds = [np.full((size, 3), size, np.float32) for size in (2, 5, 1)]
    sets = data.pad(clouds, labels=[4, 5, 6] @ np.eye(3, dtype=int))
    assert sets.points.shape == (3, 5, 3)
    assert sets.points.dtype == np.float32
    assert np.array_equal(sets.labels, [4, 5, 6])
    for cloud, points, mask in zip(clouds, sets.points, sets.mask, strict=True):
        assert np.array_equal(points[mask], cloud)
        assert np.all(points[~mask] == 0)
    assert data.pad(clouds, num_points=8).points.shape == (3, 8, 3)


@pytest.mark.parametrize(
    ("clouds", "options", "fragment"),
    [
        ([], {}, "`clouds` is empty"),
        (
            [np.ones((2, 2)), np.ones((2, 3))],
            {},
            "equal dimensions and dtypes, got 2 of float64, 3 of float64",
        ),
        (
            [np.ones((2, 2)), np.ones((2, 2), np.float32)],
            {},
            "equal dimensions and dtypes",
        ),
        (
            [np.ones((2, 2)), np.ones((5, 2))],
            {"num_points": 4},
            "`num_points` is 4, but cloud 1 has 5",
        ),
        (
            [np.ones((2, 2)), np.ones((0, 2))],
            {},
            "`clouds`: `mask` hides every point of cloud 1",
        ),
        ([np.full((2, 2), np.inf)], {}, "`clouds`: `points` is not finite"),
        (
            [np.ones((2, 2))],
            {"labels": np.arange(3)},
            "`labels` must be integers of shape",
        ),
    ],
)
def test_pad_names_what_is_wrong(clouds, options, fragment):
    with pytest.raises(ValueError, match=fragment):
        data.pad(clouds, **options)


@pytest.mark.parametrize("masked", [False, True])
def test_subsets_are_of_valid_points_without_repeats(masked):
    sets = make_sets(masked=masked)
    cut = data.subsample(sets, RNG(), num_points=5)
    assert cut.points.shape == (6, 5, 2)
    assert cut.labels is sets.labels
    assert (cut.mask is None) == (not masked)
    for i in range(6):
        valid = sets.points[i] if not masked else sets.points[i][sets.mask[i]]
        kept = cut.points[i] if not masked else cut.points[i][cut.mask[i]]
        assert len(kept) == min(len(valid), 5)
        rows = {tuple(row) for row in kept}
        assert len(rows) == len(kept)
        assert rows <= {tuple(row) for row in valid}


def test_every_subset_and_order_is_equally_likely():
    """Ordered pairs of four valid points of six: each of the twelve as often."""
    points = np.tile(np.arange(6, dtype=np.float32)[:, None], (6000, 1, 1))
    cut = data.subsample(
        data.PointSets(points, np.tile(np.arange(6) % 3 > 0, (6000, 1))),
        RNG(),
        num_points=2,
    )
    assert cut.mask.all()
    pairs = np.unique(cut.points[..., 0] @ [10, 1], return_counts=True)
    assert len(pairs[0]) == 12
    assert stats.chisquare(pairs[1]).pvalue > 1e-4


def test_the_objects_of_a_scene_go_with_their_points(key):
    images = data.Images(
        np.eye(4, dtype=np.float32).reshape(4, 2, 2), np.arange(4, dtype=np.int32)
    )
    sets = data.scenes(images, 5, 6, num_objects=(1, 3), key=key)
    cut = data.subsample(sets, RNG(), num_points=7)
    assert cut.digit_labels is sets.digit_labels
    for i in range(5):
        pairs = {
            (*point, label)
            for point, label in zip(sets.points[i], sets.object_ids[i], strict=True)
        }
        assert {
            (*point, label)
            for point, label in zip(cut.points[i], cut.object_ids[i], strict=True)
        } <= pairs
        assert np.array_equal(cut.mask[i], cut.object_ids[i] >= 0)


@pytest.mark.parametrize("num_points", [0, 10])
def test_subsets_have_a_size_that_exists(num_points):
    with pytest.raises(ValueError, match="`num_points` must lie in 1 ... 9"):
        data.subsample(make_sets(), RNG(), num_points=num_points)


def moves_of(before, after, mask):
    """The affine map of each cloud by least squares, `(d + 1, d)`."""
    maps = []
    for x, y, valid in zip(
        before.astype(float), after.astype(float), mask, strict=True
    ):
        x = np.concatenate([x[valid], np.ones((valid.sum(), 1))], axis=1)
        solution, residual, _, _ = np.linalg.lstsq(x, y[valid], rcond=None)
        assert np.all(residual < 1e-8)
        maps.append(solution)
    return np.stack(maps)


def linear(sets, augment, num=1):
    """The linear parts, as matrices that act on columns, and the translations."""
    moved = augment(sets, RNG())
    mask = np.ones(sets.points.shape[:2], bool) if sets.mask is None else sets.mask
    maps = moves_of(sets.points, moved.points, mask)
    return np.swapaxes(maps[:, :-1], 1, 2), maps[:, -1]


def test_augment_is_rotate_scale_translate_with_the_defaults():
    sets = make_sets(3000, 6)
    matrices, shifts = linear(sets, data.Augment())
    scales = np.sqrt(np.linalg.det(matrices))
    assert np.allclose(
        matrices @ np.swapaxes(matrices, 1, 2),
        scales[:, None, None] ** 2 * np.eye(2),
        atol=1e-4,
    )
    angles = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]) % (2 * np.pi)
    drawn = np.stack(
        [angles / (2 * np.pi), (scales - 0.7) / 0.6, *(shifts / 0.4 + 0.5).T]
    )
    for values in drawn:
        assert stats.kstest(values, "uniform").pvalue > 1e-4
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 5 / np.sqrt(3000)


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_hidden_points_have_no_influence_and_become_zero(dim):
    sets = make_sets(dim=dim)
    augment = data.Augment(rotate=data.any_rotation, flip=(0, -1))
    moved = augment(sets, RNG())
    clean = sets._replace(points=np.nan_to_num(sets.points))
    assert np.array_equal(moved.points, augment(clean, RNG()).points)
    assert np.all(moved.points[~sets.mask] == 0)
    assert moved.points.dtype == np.float32
    assert moved.labels is sets.labels
    assert np.isnan(sets.points).any()  # the data are as they were


@pytest.mark.parametrize("masked", [False, True])
def test_paired_noise_is_turned_with_its_cloud(masked):
    """Not scaled nor translated; so the stored assignment stays the best one."""
    points, mask, labels = make_sets(dim=3, masked=masked)
    x0 = np.random.default_rng(2).normal(size=points.shape).astype(np.float32)
    valid = np.ones(points.shape[:2], bool) if mask is None else mask
    best = np.arange(points.shape[1])
    for i, rows in enumerate(valid):
        x0[i, rows] = x0[i, rows][assigned(points[i, rows], x0[i, rows])]
    moved = data.Augment(rotate=data.any_rotation, flip=(0, 1))(
        data.PairedSets(points, x0, mask, labels), RNG()
    )
    assert moved.x0.dtype == np.float32
    maps = moves_of(points, moved.points, valid)[:, :-1]
    matrices = maps / np.abs(np.linalg.det(maps))[:, None, None] ** (1 / 3)
    assert np.allclose(moved.x0, x0 @ matrices, atol=1e-4)
    for i, rows in enumerate(valid):
        assert np.array_equal(
            assigned(moved.points[i, rows], moved.x0[i, rows]), best[: rows.sum()]
        )
    still = data.Augment(rotate=None)(data.PairedSets(points, x0, mask), RNG())
    assert np.array_equal(still.x0, x0)


def assigned(points, x0):
    return linear_sum_assignment(cdist(points, x0, "sqeuclidean"))[1]


def test_flips_are_independent_coins():
    matrices, _ = linear(
        make_sets(2000, 4, 3, masked=False),
        data.Augment(rotate=None, scale=None, translate=None, flip=(0, 2)),
    )
    signs = np.round(np.diagonal(matrices, axis1=1, axis2=2)).astype(int)
    assert np.allclose(matrices, signs[:, :, None] * np.eye(3), atol=1e-4)
    assert np.all(signs[:, 1] == 1)
    counts = np.unique(signs @ [2, 0, 1], return_counts=True)[1]
    assert len(counts) == 4
    assert stats.chisquare(counts).pvalue > 1e-4


def test_flips_come_before_rotations():
    """det = -1 for odd ones, and the angle after undoing the flip is the one in the range."""
    augment = data.Augment(rotate=(0.3, 0.3), scale=None, translate=None, flip=(1,))
    matrices, _ = linear(make_sets(20, 4), augment)
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    undone = turn.T @ matrices
    assert np.allclose(np.abs(undone), np.eye(2), atol=1e-4)
    assert len(np.unique(np.round(undone[:, 1, 1]))) == 2


def test_about_an_axis():
    axis = (1.0, -2.0, 2.0)
    matrices = data.AboutAxis(axis, (-1, 2))(RNG(), 3000, 3)
    vectors = Rotation.from_matrix(matrices).as_rotvec()
    angles = vectors @ axis / 3
    assert np.allclose(vectors, angles[:, None] * np.array(axis) / 3, atol=1e-6)
    assert stats.kstest((angles + 1) / 3, "uniform").pvalue > 1e-4
    augment = data.Augment(rotate=data.AboutAxis(), scale=None, translate=None)
    matrices, _ = linear(make_sets(dim=3), augment)
    assert np.allclose(matrices[:, 1], [0, 1, 0], atol=1e-4)


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_any_rotation_is_the_haar_measure(dim):
    """Orthogonal, orientation kept, uniform on the sphere for every column and row.

    The first coordinate of the first column of Q g, squared, is Beta(1/2, (d - 1) / 2). In
    three dimensions the angle has density (1 - cos a) / pi.
    """
    matrices = data.any_rotation(RNG(), 4000, dim)
    assert np.allclose(matrices @ np.swapaxes(matrices, 1, 2), np.eye(dim), atol=1e-12)
    assert np.allclose(np.linalg.det(matrices), 1)
    if dim > 1:
        for entry in matrices.reshape(4000, -1).T:
            assert (
                stats.kstest(entry**2, stats.beta(0.5, (dim - 1) / 2).cdf).pvalue > 1e-5
            )
            assert abs(entry.mean()) < 5 * entry.std() / np.sqrt(4000)
    if dim == 3:
        angles = Rotation.from_matrix(matrices).magnitude()
        assert stats.kstest(angles, lambda a: (a - np.sin(a)) / np.pi).pvalue > 1e-4


def test_transforms_of_batches():
    """Reproducible, different in every step, of plain arrays too, and composed."""
    sets = make_sets(dim=3)
    augment = data.Augment(rotate=data.any_rotation)
    both = lambda batch, rng: augment(data.subsample(batch, rng, num_points=4), rng)
    first, second = (
        list(data.batches(sets, 6, num_steps=2, transform=both)) for _ in range(2)
    )
    assert np.array_equal(first[1].points, second[1].points)
    assert not np.array_equal(first[0].points, first[1].points)
    assert first[0].points.shape == (6, 4, 3)
    (cut,) = data.batches(
        sets, 2, num_steps=1, transform=ft.partial(data.subsample, num_points=3)
    )
    assert cut.points.shape == (2, 3, 3)
    (array,) = data.batches(
        np.ones((3, 4, 3), np.float32), 2, num_steps=1, transform=augment
    )
    assert array.shape == (2, 4, 3)
    assert array.dtype == np.float32


@pytest.mark.parametrize(
    "transform",
    [data.Augment(flip=(1,)), ft.partial(data.subsample, num_points=3)],
    ids=["moved", "cut"],
)
def test_all_kinds_of_batches_change_alike(transform, tmp_path):
    """Named tuples, dicts, the arrays of files, and points alone, also those of JAX."""
    points, mask, _ = make_sets()
    clean = np.nan_to_num(points)
    sets = data.PairedSets(clean, clean + 1, mask, np.arange(6))
    expected = transform(sets, RNG())
    changed = transform(jax.tree.map(jnp.asarray, sets._asdict()), RNG())
    assert set(changed) == set(sets._fields)
    for name, array in changed.items():
        assert np.array_equal(array, getattr(expected, name))

    data.save_npz(tmp_path / "sets.npz", sets)
    (batch,) = data.batches(
        data.npz_folder(tmp_path), 6, num_steps=1, transform=transform
    )
    (same,) = data.batches(sets, 6, num_steps=1, transform=transform)
    assert all(
        np.array_equal(batch[name], array) for name, array in same._asdict().items()
    )

    alone = transform(data.PointSets(clean), RNG()).points
    assert np.array_equal(transform(clean, RNG()), alone)
    assert np.array_equal(transform(jnp.asarray(clean), RNG()), alone)


@pytest.mark.parametrize("batch", [{"x": np.ones((2, 3, 2))}, np.ones((3, 2)), (1, 2)])
def test_batches_without_clouds_are_named(batch):
    message = (
        r"`transform` changes clouds: `fk.data.PointSets`.*got (dict|ndarray|tuple)"
    )
    for transform in (data.Augment(), ft.partial(data.subsample, num_points=1)):
        with pytest.raises(ValueError, match=message):
            transform(batch, RNG())


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (
            lambda: data.Augment()(np.ones((2, 3, 2), int), RNG()),
            "`transform`: .* real numbers, got int64; convert them by",
        ),
        (lambda: data.Augment(rotate=(1, 0)), "`rotate` must be two finite numbers"),
        (lambda: data.Augment(scale=(0, 1)), "`scale` must be .* 0 < low"),
        (lambda: data.Augment(translate=(0, float("nan"))), "`translate`"),
        (
            lambda: data.Augment(flip=(2,))(make_sets(), RNG()),
            r"`flip` must name axes of the 2 dimensions, got \(2,\)",
        ),
        (
            lambda: data.Augment()(make_sets(dim=3), RNG()),
            "`rotate` as two angles .* have 3 dimensions; use",
        ),
        (
            lambda: data.Augment(rotate=data.AboutAxis())(make_sets(), RNG()),
            "rotates points in 3 dimensions, got 2",
        ),
        (lambda: data.AboutAxis((0, 0, 0)), "`axis` must be a direction"),
        (lambda: data.AboutAxis(angles=(0, np.inf)), "`angles`"),
    ],
)
def test_bad_values_are_named(call, fragment):
    with pytest.raises(ValueError, match=fragment):
        call()


real = pytest.mark.skipif(not REAL.is_dir(), reason="FLOWKIT_DATA has no point clouds")


@real
def test_categories_of_shapes_in_space():
    sets = data.load_npz(REAL / "psb_14_categories.npz")
    assert sets.points.shape == (278, 2048, 3)
    assert sets.mask is None
    assert np.array_equal(np.unique(sets.labels), np.arange(14))
    (batch,) = data.batches(
        sets, 8, num_steps=1, transform=data.Augment(rotate=data.AboutAxis())
    )
    assert batch.points.shape == (8, 2048, 3)


@real
def test_persons_are_subsampled():
    """Names are text, which is left out; 2048 of 8192 points."""
    sets = data.load_npz(REAL / "modelnet40_person.npz")
    assert sets.points.shape == (108, 8192, 3)
    assert sets.labels is None
    (batch,) = data.batches(
        sets, 4, num_steps=1, transform=ft.partial(data.subsample, num_points=2048)
    )
    assert batch.points.shape == (4, 2048, 3)
    assert np.linalg.norm(batch.points, axis=-1).max() <= 1 + 1e-6
