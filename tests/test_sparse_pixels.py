"""Sparse pixels: which pixels are drawn, where they are, what they hold."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowkit as fk


RNG = np.random.default_rng(0)
# Neither square nor gray, so that no two axes can be exchanged.
IMAGES = RNG.random((5, 6, 10, 3)).astype(np.float32)


@jax.jit
def draw(key):
    return fk.data.sparse_pixels(IMAGES, input_ratio=0.3, output_ratio=0.25, key=key)


def test_pixels_are_disjoint_and_hold_what_the_image_has(key):
    pixels = jax.tree.map(np.asarray, draw(key))
    assert pixels.input_indices.shape == (5, 18)
    assert pixels.output_indices.shape == (5, 15)
    both = np.concatenate([pixels.input_indices, pixels.output_indices], axis=1)
    assert all(len(set(row)) == 33 for row in both)

    for part in ("input", "output"):
        coords = getattr(pixels, f"{part}_coords")
        values = getattr(pixels, f"{part}_values")
        indices = getattr(pixels, f"{part}_indices")
        assert coords.dtype == values.dtype == np.float32
        for image in range(5):
            for place, index in enumerate(indices[image]):
                row, column = divmod(int(index), 10)
                where = coords[image, place]
                assert np.allclose(where, [column / 9, row / 5], atol=1e-6)
                assert np.array_equal(values[image, place], IMAGES[image, row, column])


def test_pixels_are_fixed_by_the_key_and_differ_between_images(key):
    first = draw(key)
    assert np.array_equal(first.input_indices, draw(key).input_indices)
    assert len({tuple(map(int, row)) for row in first.input_indices}) == 5
    assert not np.array_equal(first.input_indices, draw(jr.key(1)).input_indices)


def test_the_pixels_of_an_image_do_not_depend_on_the_others(key):
    """Also across the border of a block of images."""
    many = np.zeros((1030, 2, 3, 1), np.float32)
    far = fk.data.sparse_pixels(many, input_ratio=0.5, output_ratio=0.5, key=key)
    near = fk.data.sparse_pixels(many[:5], input_ratio=0.5, output_ratio=0.5, key=key)
    assert far.input_indices.shape == (1030, 3)
    assert np.array_equal(far.input_indices[:5], near.input_indices)
    assert np.array_equal(far.output_indices[:5], near.output_indices)

    # Each order of six pixels is as likely: each pixel is at each place in a sixth of the
    # images, to 5 standard errors.
    orders = np.concatenate([far.input_indices, far.output_indices], axis=1)
    counts = np.stack([np.bincount(place, minlength=6) for place in orders.T])
    assert np.all(np.abs(counts - 1030 / 6) < 5 * np.sqrt(1030 * (1 / 6) * (5 / 6)))
    # Nothing links the first place of an image with that of the next one.
    same = np.sum(orders[1:, 0] == orders[:-1, 0])
    assert abs(same - 1029 / 6) < 5 * np.sqrt(1029 * (1 / 6) * (5 / 6))


@pytest.mark.parametrize(
    ("ratios", "counts"),
    [((0.2, 0.2), (204, 204)), ((0.0, 1.0), (0, 1024)), ((1.0, 0.0), (1024, 0))],
)
def test_counts_of_ratios(ratios, counts):
    """None and all pixels, too; the numbers of CIFAR-10 are those of the method."""
    shape = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

    def pixels(images, key):
        input_ratio, output_ratio = ratios
        return fk.data.sparse_pixels(
            images, input_ratio=input_ratio, output_ratio=output_ratio, key=key
        )

    out = jax.eval_shape(pixels, shape, jr.key(0))
    assert out.input_values.shape == (2, counts[0], 3)
    assert out.output_coords.shape == (2, counts[1], 2)


def test_ratios_that_are_whole_pixels_but_for_rounding():
    shape = jax.ShapeDtypeStruct((1, 10, 10, 1), jnp.float32)
    pixels = lambda images: fk.data.sparse_pixels(
        images, input_ratio=0.29, output_ratio=0.71, key=jr.key(0)
    )
    assert 0.29 * 100 < 29
    out = jax.eval_shape(pixels, shape)
    assert out.input_indices.shape == (1, 29)
    assert out.output_indices.shape == (1, 71)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ((-0.1, 0.2), "`input_ratio` must be in"),
        ((0.2, 1.1), "`output_ratio` must be in"),
        ((float("nan"), 0.2), "`input_ratio` must be in"),
        ((0.6, 0.5), "`input_ratio` and `output_ratio` must sum to at most 1"),
        ((0.01, 0.2), "`input_ratio` is 0.01, which is less than one of 60 pixels"),
    ],
)
def test_bad_ratios_are_named(ratios, message, key):
    with pytest.raises(ValueError, match=message):
        fk.data.sparse_pixels(
            IMAGES, input_ratio=ratios[0], output_ratio=ratios[1], key=key
        )


def test_images_of_bytes_are_named(key):
    images = np.full((1, 6, 10, 3), 255, np.float32)
    with pytest.raises(ValueError, match="`images` must be.*got 0 to 255; divide"):
        fk.data.sparse_pixels(images, key=key)


def test_coordinates_are_those_of_the_same_square_at_any_resolution():
    coarse = np.asarray(fk.data.pixel_coords(3, 5)).reshape(3, 5, 2)
    assert np.allclose(coarse[1, 3], [3 / 4, 1 / 2])
    assert np.array_equal(coarse[0, 0], [0, 0])
    assert np.array_equal(coarse[0, -1], [1, 0])
    assert np.array_equal(coarse[-1, -1], [1, 1])

    # 2n - 1 pixels have those of n at every second place.
    fine = np.asarray(fk.data.pixel_coords(5, 9)).reshape(5, 9, 2)
    assert np.allclose(fine[::2, ::2], coarse, atol=1e-6)
    assert np.array_equal(fk.data.pixel_coords(1, 2), [[0, 0], [1, 0]])
    with pytest.raises(ValueError, match="`w` must be at least 1"):
        fk.data.pixel_coords(3, 0)


def test_masks_have_the_pixels_and_no_others(key):
    indices = np.asarray(draw(key).input_indices)
    mask = np.asarray(fk.data.pixel_mask(indices, 6, 10))
    expected = np.zeros((5, 6, 10), bool)
    for image, row in enumerate(indices):
        expected[image, row // 10, row % 10] = True
    assert np.array_equal(mask, expected)
    assert np.array_equal(fk.data.pixel_mask(indices[1], 6, 10), expected[1])
    assert not fk.data.pixel_mask(indices[:, :0], 6, 10).any()

    for bad in (-1, 60):
        with pytest.raises(ValueError, match="`indices` must be in 0 ... 59"):
            fk.data.pixel_mask(np.array([3, bad]), 6, 10)
