"""Data sets of images by name or folder: what is held out, and what batches hold."""

import numpy as np
import pytest
from PIL import Image

from flowkit import data


def take(dataset, number):
    iterator = iter(dataset)
    return [next(iterator) for _ in range(number)]


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of 6 x 4 pixels: gray by number, white at both ends."""
    for number in range(10):
        pixels = np.full((4, 6, 3), 20 * number, np.uint8)
        pixels[:, [0, -1]] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def numbers(images):
    """Which pictures these are, by the pixel in the middle."""
    return np.rint((images[:, 2, 2, 0] + 1) * 127.5 / 20).astype(int).tolist()


def test_a_folder_is_split_in_two(folder):
    split = data.image_split(folder, 4, test_fraction=0.3, num_threads=0, seed=3)
    assert (split.num_train, split.num_classes) == (7, 0)
    assert split.held_out.labels is None
    assert split.held_out.images.shape == (3, 4, 4, 3)
    held_out = numbers(split.held_out.images)

    # An epoch of whole batches: three times two of the seven.
    epoch = take(split.batches(2), 3)
    seen = [number for batch in epoch for number in numbers(batch.images)]
    assert len(set(seen)) == 6
    assert not set(seen) & set(held_out)
    everything = take(split.batches(7), 1)[0]
    assert sorted(numbers(everything.images) + held_out) == list(range(10))
    assert everything.labels is None


def test_how_pictures_become_squares(folder):
    """Cut to the middle, the white ends are gone; stretched, they are there."""
    options = {"num_threads": 1, "test_samples": 1}
    cropped = data.image_split(folder, 4, **options).held_out.images
    assert np.all(cropped == cropped[:, :1, :1])
    stretched = data.image_split(folder, 4, fit=data.stretch, **options).held_out.images
    assert np.all(stretched[:, :, 0] > stretched[:, :, 1])


def test_damaged_files_are_skipped_on_demand(folder):
    (folder / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1 of the 10 files .* cannot be used"):
        data.image_split(folder, 4)
    with pytest.warns(UserWarning, match=r"3\.png.*skipped"):
        split = data.image_split(folder, 4, skip_damaged=True, max_samples=5)
    assert split.num_train == 5


def test_named_data_are_resized_in_batches():
    """Batches and held-out images are those of `as_images`, with their labels."""
    split = data.image_split("digits", 16, max_samples=30, test_samples=20, seed=1)
    assert (split.num_train, split.num_classes) == (30, 10)
    digits = data.load_digits(seed=1)
    np.testing.assert_array_equal(
        split.held_out.images, data.as_images(digits.test.images[:20], 16)
    )
    np.testing.assert_array_equal(split.held_out.labels, digits.test.labels[:20])

    (batch,) = take(split.batches(30, seed=2), 1)
    expected = data.as_images(digits.train.images[:30], 16)
    order = by_pixels(batch.images)
    expected_order = by_pixels(expected)
    np.testing.assert_array_equal(batch.images[order], expected[expected_order])
    np.testing.assert_array_equal(
        batch.labels[order], digits.train.labels[:30][expected_order]
    )


def by_pixels(images):
    """An order that depends on the images alone."""
    return sorted(range(len(images)), key=lambda number: images[number].tobytes())


def test_flips_are_of_training_images_only():
    plain = data.image_split("digits", max_samples=40)
    flipped = data.image_split("digits", max_samples=40, flip=True)
    np.testing.assert_array_equal(plain.held_out.images, flipped.held_out.images)
    (before,) = take(plain.batches(40), 1)
    (after,) = take(flipped.batches(40), 1)
    same = (after.images == before.images).all((1, 2, 3))
    mirrored = (after.images == before.images[:, :, ::-1]).all((1, 2, 3))
    assert np.all(same | mirrored)
    assert 8 <= mirrored.sum() <= 32  # 20 +- 4 standard deviations


def test_wrong_arguments(tmp_path):
    with pytest.raises(
        ValueError, match="`name` is 'dinosaur': give one of digits, mnist"
    ):
        data.image_split("dinosaur")
    with pytest.raises(ValueError, match="has no file that ends in"):
        data.image_split(tmp_path)
    for name in ("image_size", "max_samples", "test_samples"):
        with pytest.raises(ValueError, match=f"`{name}`"):
            data.image_split("digits", **{name: 0})
