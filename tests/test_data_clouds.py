"""Clouds and scenes made of images: the laws of their points and poses, and their files."""

from typing import NamedTuple, Optional

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Float, Float32, Int
from scipy import stats

from flowkit import data


NUM = 20_000
TURN = (0, 2 * np.pi)
IMAGE = np.array(
    [[0.0, 0.6, 0.1, 0.5], [1.0, 0.0, 0.8, 0.7], [0.0, 0.9, 0.0, 0.0]], np.float32
)
INKED = IMAGE > 128 / 255


def images_of(images, labels=None):
    images = np.asarray(images)
    return data.Images(
        images, np.arange(len(images), dtype=np.int32) if labels is None else labels
    )


def pixels_of(points):
    """Row and column of points without jitter: the outermost of four columns lie at -1 and 1."""
    column, row = 1.5 + 1.5 * points[..., 0], 1 - 1.5 * points[..., 1]
    assert np.allclose([row, column], np.round([row, column]), atol=1e-5)
    return np.round(row).astype(int), np.round(column).astype(int)


def counts_of(points):
    counts = np.zeros(IMAGE.shape, int)
    np.add.at(counts, pixels_of(points), 1)
    return counts


@pytest.mark.parametrize("weighted", [False, True])
def test_pixels_above_the_threshold_have_their_frequencies(weighted, key):
    clouds = data.image_clouds(
        images_of(IMAGE[None]), NUM, weighted=weighted, jitter=0.0, key=key
    )
    counts = counts_of(clouds.points[0])
    assert np.array_equal(counts > 0, INKED)
    weights = IMAGE[INKED] if weighted else np.ones(INKED.sum())
    assert stats.chisquare(counts[INKED], NUM * weights / weights.sum()).pvalue > 1e-4
    assert clouds.points.dtype == np.float32
    assert isinstance(clouds.points, np.ndarray)


@pytest.mark.parametrize(
    ("jitter", "law"),
    [
        (data.pixel_normal, stats.norm(scale=12**-0.5)),
        (0.5, stats.uniform(-0.5, 1)),
        (lambda key, shape, dtype: jr.exponential(key, shape, dtype), stats.expon()),
    ],
    ids=["normal", "uniform", "function"],
)
def test_jitter_is_in_pixels(jitter, law, key):
    """One pixel, in row 1 and column 3 of 3 x 4: offsets are read off against its centre."""
    image = np.zeros((1, 3, 4), np.float32)
    image[0, 1, 3] = 1
    offsets = 1.5 * (
        data.image_clouds(images_of(image), NUM, jitter=jitter, key=key).points[0]
        - [1, 0]
    )
    for axis in offsets.T:
        assert stats.kstest(axis, law.cdf).pvalue > 1e-4
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 5 / np.sqrt(NUM)


def test_an_mnist_image_spans_the_square(key):
    """x = (column - 13.5) / 13.5, y = -(row - 13.5) / 13.5."""
    image = np.zeros((1, 28, 28), np.float32)
    image[0, 4, 21] = 1
    points = data.image_clouds(images_of(image), 3, jitter=0.0, key=key).points
    assert np.allclose(points, [(21 - 13.5) / 13.5, -(4 - 13.5) / 13.5])


def test_an_image_without_ink_is_a_wide_gaussian(key):
    dim = np.stack([0.4 * IMAGE, IMAGE])
    points = data.image_clouds(images_of(dim), NUM, jitter=0.0, key=key).points
    for axis in points[0].T:
        assert stats.kstest(axis / 0.5, "norm").pvalue > 1e-4
    assert np.array_equal(counts_of(points[1]) > 0, INKED)
    with pytest.raises(ValueError, match="zero everywhere in image 0 .*`empty`"):
        data.image_clouds(images_of(dim), 5, empty=None, key=key)


@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_of_images_are_not_mixed_up(weighted, key):
    """2051 images of one pixel each, which is three blocks of unequal size."""
    place = np.random.default_rng(0).integers(0, 12, 2051)
    images = np.eye(12, dtype=np.float32)[place].reshape(-1, 3, 4)
    points = data.image_clouds(
        images_of(images), 2, weighted=weighted, jitter=0.0, key=key
    ).points
    row, column = pixels_of(points)
    assert np.array_equal(4 * row + column, np.repeat(place[:, None], 2, axis=1))


def test_blocks_have_keys_of_their_own(key):
    images = np.ones((2051, 3, 4), np.float32)
    points = data.image_clouds(images_of(images), 2, jitter=0.5, key=key).points
    assert len(np.unique(points)) > 0.99 * points.size  # single precision repeats a few


def fit(base, posed):
    """Angle, scale and translation by least squares, of clouds as complex numbers."""
    base, posed = base[..., 0] + 1j * base[..., 1], posed[..., 0] + 1j * posed[..., 1]
    centred = base - base.mean(axis=1, keepdims=True)
    factor = np.sum(np.conj(centred) * posed, axis=1) / np.sum(
        np.abs(centred) ** 2, axis=1
    )
    shift = posed.mean(axis=1) - factor * base.mean(axis=1)
    return np.angle(factor), np.abs(factor), np.stack([shift.real, shift.imag], axis=-1)


def test_poses_are_those_that_are_stored(key):
    """The same key without poses draws the same points."""
    images = images_of(np.random.default_rng(0).random((50, 5, 5)).astype(np.float32))
    base = data.image_clouds(images, 40, key=key)
    posed = data.image_clouds(
        images, 40, rotate=TURN, scale=(0.5, 1.5), translate=(-1.5, 1.5), key=key
    )
    angles, scales, shifts = fit(base.points.astype(float), posed.points.astype(float))
    assert np.allclose(np.exp(1j * angles), np.exp(1j * posed.rotations), atol=1e-5)
    assert np.allclose(scales, posed.scales, atol=1e-5)
    assert np.allclose(shifts, posed.translations, atol=1e-5)
    assert np.array_equal(base.rotations, np.zeros(50))
    assert np.array_equal(base.scales, np.ones(50))
    assert np.array_equal(base.translations, np.zeros((50, 2)))
    assert np.array_equal(posed.labels, images.labels)


def test_poses_are_uniform(key):
    images = images_of(np.ones((4000, 1, 2), np.float32))
    clouds = data.image_clouds(
        images, 1, rotate=TURN, scale=(0.5, 1.5), translate=(-1.5, 1.5), key=key
    )
    drawn = np.stack(
        [
            clouds.rotations / TURN[1],
            clouds.scales - 0.5,
            *(clouds.translations / 3 + 0.5).T,
        ]
    )
    for values in drawn:
        assert stats.kstest(values, "uniform").pvalue > 1e-4
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 5 / np.sqrt(4000)


DIGITS = images_of(
    np.eye(12, dtype=np.float32).reshape(12, 3, 4), np.arange(12, dtype=np.int32)
)


def test_scenes_undone_are_their_images(key):
    """Every image has one pixel, that of its label: undone poses must lead there."""
    sets = data.scenes(
        DIGITS, 300, 3, rotate=TURN, scale=(0.5, 1.5), jitter=0.0, key=key
    )
    num_objects = np.sum(sets.digit_labels >= 0, axis=1)
    assert sets.points.shape == (300, 12, 2)
    assert np.array_equal(sets.mask.sum(axis=1), 3 * num_objects)
    assert np.array_equal(
        sets.object_ids, np.where(sets.mask, np.repeat(np.arange(4), 3), -1)
    )
    scene, _ = np.nonzero(sets.mask)
    ids = sets.object_ids[sets.mask]
    shifted = sets.points[sets.mask] - sets.translations[scene, ids]
    turned = (shifted[:, 0] + 1j * shifted[:, 1]) * np.exp(
        -1j * sets.rotations[scene, ids]
    )
    row, column = pixels_of(
        np.stack([turned.real, turned.imag], axis=-1) / sets.scales[scene, ids][:, None]
    )
    assert np.array_equal(4 * row + column, sets.digit_labels[scene, ids])
    absent = sets.digit_labels < 0
    assert np.all(sets.points[~sets.mask] == 0)
    assert np.all(sets.rotations[absent] == 0)
    assert np.all(sets.scales[absent] == 1)
    assert np.all(sets.translations[absent] == 0)
    plain = sets.sets()
    assert isinstance(plain, data.PointSets)
    assert np.array_equal(plain.labels, num_objects)


def test_scenes_have_uniform_numbers_images_and_places(key):
    sets = data.scenes(DIGITS, 4000, 1, key=key)
    there = sets.digit_labels >= 0
    assert (
        stats.chisquare(np.bincount(there.sum(axis=1), minlength=5)[1:]).pvalue > 1e-4
    )
    assert stats.chisquare(np.bincount(sets.digit_labels[there])).pvalue > 1e-4
    for axis in sets.translations[there].T:
        assert stats.kstest(axis / 6 + 0.5, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("number", [2, (2, 2)])
def test_scenes_of_a_fixed_number(number, key):
    sets = data.scenes(DIGITS, 6, 3, num_objects=number, translate=None, key=key)
    assert sets.mask.shape == (6, 6)
    assert sets.mask.all()
    assert sets.digit_labels.min() >= 0
    assert np.all(sets.translations == 0)


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda key: data.image_clouds(DIGITS, 0, key=key), "`num_points`"),
        (
            lambda key: data.image_clouds(DIGITS, 5, rotate=(1, 0), key=key),
            r"`rotate` must be two finite .*\(1, 0\)",
        ),
        (
            lambda key: data.image_clouds(DIGITS, 5, scale=(0, 1), key=key),
            "`scale` must be two .* 0 < low",
        ),
        (
            lambda key: data.image_clouds(DIGITS, 5, translate=(0, np.inf), key=key),
            "`translate`",
        ),
        (
            lambda key: data.image_clouds(
                images_of(DIGITS.images, np.arange(3)), 5, key=key
            ),
            "12 images, but 3 labels",
        ),
        (
            lambda key: data.images_to_points(np.ones((1, 2, 2)), 3, unit=0.0, key=key),
            "`unit` must be",
        ),
        (lambda key: data.scenes(DIGITS, 0, key=key), "`num_scenes`"),
        (lambda key: data.scenes(DIGITS, 5, num_objects=0, key=key), "`num_objects`"),
        (
            lambda key: data.scenes(DIGITS, 5, num_objects=(3, 2), key=key),
            "`num_objects`",
        ),
    ],
)
def test_bad_values_are_named(call, fragment, key):
    with pytest.raises(ValueError, match=fragment):
        call(key)


def test_keys_repeat_and_differ(key):
    draw = lambda key: data.scenes(DIGITS, 6, 3, num_objects=2, key=key)
    first, again, other = draw(key), draw(key), draw(jr.fold_in(key, 1))
    assert equal(first, again)
    assert not np.array_equal(first.translations, other.translations)


def test_sets_go_through_splits_and_batches(key):
    sets = data.scenes(DIGITS, 20, 3, num_objects=4, key=key)
    split = data.train_test_split(sets, test_fraction=0.1)
    (batch,) = data.batches(split.train, 4, num_steps=1)
    assert isinstance(batch, data.Scenes)
    assert len(split.test.points) == 2
    assert batch.object_ids.shape == (4, 12)


def equal(a, b):
    return type(a) is type(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("scene", [False, True], ids=["clouds", "scenes"])
def test_files_round_trip(tmp_path, scene, key):
    sets = (
        data.scenes(DIGITS, 7, 3, key=key)
        if scene
        else data.image_clouds(DIGITS, 3, rotate=TURN, key=key)
    )
    path = tmp_path / "sets.npz"
    data.save_npz(path, sets)
    assert equal(data.load_npz(path, type(sets)), sets)
    plain = data.load_npz(path)
    assert isinstance(plain, data.PointSets)
    assert np.array_equal(plain.points, sets.points)
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {
            name for name, array in sets._asdict().items() if array is not None
        }


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"scales": None}, "has no array `scales`, only"),
        ({"mask": None}, "has no array `mask`"),
        (
            {"object_ids": np.zeros((7, 11), int)},
            r"`object_ids` must be integers of shape \(7, 12\)",
        ),
        (
            {"object_ids": np.zeros((7, 12))},
            "`object_ids` must be integers .* got float64",
        ),
        (
            {"scales": np.ones((7, 3))},
            r"`scales` must be real numbers of shape \(7, 4\)",
        ),
        ({"rotations": np.full((7, 4), np.nan)}, "`rotations` is not finite"),
        (
            {"translations": np.ones((7, 4))},
            r"`translations` must be real numbers of shape \(7, 4, 2\)",
        ),
        (
            {"digit_labels": np.zeros(7, int)},
            r"`digit_labels` must be integers of shape \(7, k\)",
        ),
        ({"digit_labels": np.array([["a"]])}, "`digit_labels` must be integers"),
    ],
)
def test_bad_files_name_the_field(tmp_path, change, fragment, key):
    arrays = data.scenes(DIGITS, 7, 3, key=key)._asdict() | change
    path = tmp_path / "bad.npz"
    np.savez(
        path, **{name: array for name, array in arrays.items() if array is not None}
    )
    with pytest.raises(ValueError, match=rf"bad\.npz`:? .*{fragment}"):
        data.load_npz(path, data.Scenes)


def test_files_of_ones_own_fields(tmp_path):
    class Measured(NamedTuple):
        points: Float[np.ndarray, "b n d"]
        energies: Float[np.ndarray, " b"]
        species: Int[np.ndarray, "b n"] | None = None

    sets = Measured(np.ones((2, 3, 4)), np.ones(2, np.float32))
    data.save_npz(tmp_path / "sets.npz", sets)
    assert equal(data.load_npz(tmp_path / "sets.npz", Measured), sets)


def test_axes_of_a_given_length(tmp_path):
    class InSpace(NamedTuple):
        points: Float[np.ndarray, "b n 3"]
        normals: Float[np.ndarray, "b n 3"] | None = None

    path = tmp_path / "sets.npz"
    points = np.ones((2, 5, 3))
    data.save_npz(path, data.PointSets(points[..., :2]))
    with pytest.raises(ValueError, match=r"`points` must .* of shape \(2, 5, 3\)"):
        data.load_npz(path, InSpace)
    np.savez(path, points=points, normals=points[..., :1])
    with pytest.raises(ValueError, match=r"`normals` must .* of shape \(2, 5, 3\)"):
        data.load_npz(path, InSpace)
    data.save_npz(path, InSpace(points))
    assert equal(data.load_npz(path, InSpace), InSpace(points))


def test_optional_fields_are_those_that_may_be_none(tmp_path):
    class Measured(NamedTuple):
        points: Float[np.ndarray, "b n d"]
        energies: Optional[Float[np.ndarray, " b"]] = None  # noqa: UP045
        species: None | Int[np.ndarray, "b n"] = None

    points = np.ones((2, 3, 4))
    for sets in (Measured(points), Measured(points, np.ones(2), np.ones((2, 3), int))):
        data.save_npz(tmp_path / "sets.npz", sets)
        assert equal(data.load_npz(tmp_path / "sets.npz", Measured), sets)


@pytest.mark.parametrize("hint", [Float32[np.ndarray, " b"], np.ndarray | None])
def test_annotations_of_other_kinds_are_named(hint, tmp_path):
    fields = [("points", Float[np.ndarray, "b n d"]), ("energies", hint)]
    kind = NamedTuple("Measured", fields)
    sets = kind(np.ones((2, 3, 4)), np.ones(2, np.float32))
    message = "`Measured.energies` must be annotated by `Float`, `Int` or `Bool`"
    with pytest.raises(ValueError, match=message):
        data.save_npz(tmp_path / "sets.npz", sets)
    data.save_npz(tmp_path / "sets.npz", data.PointSets(sets.points))
    with pytest.raises(ValueError, match=message):
        data.load_npz(tmp_path / "sets.npz", kind)


def test_images_to_points_has_no_bias_in_wide_images(key):
    """A boolean image of a million pixels: the choice among them has more than 24 bits."""
    image = np.ones((1, 1, 2**20 - 3), bool)
    points = np.asarray(data.images_to_points(image, NUM, jitter=0.0, key=key))[0, :, 0]
    assert stats.kstest((points + 1) / 2, "uniform").pvalue > 1e-4
    assert jnp.abs(points).max() < 1


# ---- units of images and angles


UNITS = {
    "bytes": lambda images: np.round(255 * images).astype(np.uint8),
    "0 to 255": lambda images: 255 * images,
    "0 to 16": lambda images: 16 * images,
    "-1 to 1": lambda images: 2 * images - 1,
    "NaN": lambda images: np.where(images > 0.9, np.float32(np.nan), images),
}


@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
def test_images_in_other_units_are_refused(units):
    images = np.random.default_rng(0).random((3, 4, 4)).astype(np.float32)
    sets = data.Images(units(images), np.arange(3))
    with pytest.raises(ValueError, match=r"`images` must have intensities in \[0, 1\]"):
        data.image_clouds(sets, 5, key=jr.key(0))
    with pytest.raises(ValueError, match=r"`images` must have intensities in \[0, 1\]"):
        data.scenes(sets, 2, 5, key=jr.key(0))


def test_images_of_every_kind_in_unit_range():
    """Booleans, integers 0 and 1, and float64 draw what float32 does: ink at one pixel."""
    image = np.zeros((1, 3, 3))
    image[0, 0, 2] = 1
    for dtype in (bool, np.uint8, np.int64, np.float64, np.float32):
        sets = data.Images(image.astype(dtype), np.zeros(1, int))
        points = data.image_clouds(sets, 7, jitter=0.0, key=jr.key(0)).points
        np.testing.assert_array_equal(points, np.ones((1, 7, 2)))


@pytest.mark.parametrize("threshold", [128, 1, -0.1, np.nan])
def test_threshold_is_an_intensity(threshold):
    sets = data.Images(np.ones((1, 2, 2), np.float32), np.zeros(1, int))
    with pytest.raises(
        ValueError, match=r"`threshold` must be an intensity in \[0, 1\)"
    ):
        data.image_clouds(sets, 5, threshold=threshold, key=jr.key(0))


@pytest.mark.parametrize("angles", [(0, 360), (-15, 15)])
def test_degrees_are_refused(angles):
    sets = data.Images(np.ones((1, 2, 2), np.float32), np.zeros(1, int))
    for call in (
        lambda: data.image_clouds(sets, 5, rotate=angles, key=jr.key(0)),
        lambda: data.Augment(rotate=angles),
        lambda: data.AboutAxis(angles=angles),
    ):
        with pytest.raises(ValueError, match=r"must be angles in radians.*np\.deg2rad"):
            call()
