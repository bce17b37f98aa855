"""Pictures: conversions, folders of them as batches, and every kind of damage."""

import io
import itertools
import os
import pickle
import struct
import zlib
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from PIL import Image

import flowkit as fk
from flowkit import data


REAL = Path(os.environ.get("FLOWKIT_DATA", "absent"))
RNG = np.random.default_rng(0)
SIDE = 6
PIXELS = RNG.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
GRAY = np.linspace(0, 255, SIDE**2).astype(np.uint8).reshape(SIDE, SIDE)


def scaled(pixels):
    """From bytes to [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1


def save(folder, name, picture, **options):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / name, **options)


def load(folder, side=SIDE, **options):
    return data.load_image_folder(folder, side, num_threads=1, **options)


def colored(folder, num, side=4):
    """Pictures of one color each, whose red is their number; their means are returned."""
    for number in range(num):
        pixels = np.full((side, side, 3), (number, 7, 200), np.uint8)
        save(folder, f"{number:03}.png", pixels)
    return folder


def numbers(batch):
    """What `colored` wrote into the pictures of a batch."""
    return np.rint((batch[:, 0, 0, 0] + 1) * 127.5).astype(int)


def take(dataset, num):
    return list(itertools.islice(iter(dataset), num))


# Reading one picture


def test_files_without_loss_are_read_exactly(tmp_path):
    for name in ("a.png", "b.bmp", "c.tif", "d.TIFF", "e.PNG"):
        save(tmp_path, name, PIXELS)
    images = load(tmp_path)
    assert images.dtype == np.float32
    assert images.shape == (5, SIDE, SIDE, 3)
    for image in images:
        assert np.allclose(image, scaled(PIXELS), atol=1e-6)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG"])
def test_photographs_are_read(tmp_path, name):
    smooth = np.mgrid[0:1:64j, 0:1:64j, 0:1:3j].sum(axis=0) * 80
    save(tmp_path, name, smooth.astype(np.uint8), quality=95)
    error = np.abs(load(tmp_path, 64)[0] - scaled(smooth))
    assert error.max() < 12 / 127.5


def rgba(alpha):
    return np.concatenate([PIXELS, np.full((SIDE, SIDE, 1), alpha, np.uint8)], -1)


def on_white(pixels, alpha):
    return 255 + (pixels.astype(float) - 255) * alpha / 255


def palette():
    picture = Image.fromarray((np.arange(36) % 4).astype(np.uint8).reshape(6, 6), "P")
    picture.putpalette([10, 20, 30, 250, 0, 0, 0, 250, 0, 90, 80, 70])
    return picture


COLORS = np.array([[10, 20, 30], [250, 0, 0], [0, 250, 0], [90, 80, 70]])
INDEXED = COLORS[np.arange(36).reshape(6, 6) % 4]
ONE_IS_CLEAR = np.where((np.arange(36).reshape(6, 6, 1) % 4) == 1, 255, INDEXED)
WIDE = np.linspace(0, 65535, 36).astype(np.uint16).reshape(6, 6)
CMYK = RNG.integers(0, 256, (6, 6, 4), np.uint8)
# Subtractive colors: each ink and black take away from white.
INKED = 255 * (1 - CMYK[..., :3] / 255) * (1 - CMYK[..., 3:] / 255)
KINDS = {
    "gray": ("a.png", Image.fromarray(GRAY), {}, GRAY[..., None]),
    "black and white": (
        "a.png",
        Image.fromarray(GRAY > 99),
        {},
        255 * (GRAY > 99)[..., None],
    ),
    "palette": ("a.png", palette(), {}, INDEXED),
    "palette of BMP": ("a.bmp", palette(), {}, INDEXED),
    "clear color": ("a.png", palette(), {"transparency": 1}, ONE_IS_CLEAR),
    "opaque": ("a.png", Image.fromarray(rgba(255)), {}, PIXELS),
    "clear": ("a.png", Image.fromarray(rgba(0)), {}, on_white(PIXELS, 0)),
    "half clear": ("a.png", Image.fromarray(rgba(51)), {}, on_white(PIXELS, 51)),
    "half clear gray": (
        "a.png",
        Image.fromarray(np.stack([GRAY, np.full_like(GRAY, 51)], -1), "LA"),
        {},
        on_white(GRAY[..., None], 51),
    ),
    "16 bits": ("a.png", Image.fromarray(WIDE), {}, WIDE[..., None] / 257),
    "16 bits of TIFF": ("a.tif", Image.fromarray(WIDE), {}, WIDE[..., None] / 257),
    "16 bits, other order": (
        "a.tif",
        Image.frombytes("I;16B", (6, 6), WIDE.astype(">u2").tobytes()),
        {},
        WIDE[..., None] / 257,
    ),
    "inks": ("a.tif", Image.fromarray(CMYK, "CMYK"), {}, INKED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_colors_become_red_green_and_blue(tmp_path, kind):
    """To within one of 255 steps."""
    name, picture, options, expected = KINDS[kind]
    picture.save(tmp_path / name, **options)
    expected = np.broadcast_to(expected, (SIDE, SIDE, 3))
    assert np.abs(load(tmp_path)[0] - scaled(expected)).max() < 1.01 / 127.5


# Where the first row and the first column of the file are in the upright picture, as EXIF
# defines it: transposed or not, then the axes of the file that run backward.
ORIENTATIONS = {
    1: (False, ()),  # top, left
    2: (False, (1,)),  # top, right
    3: (False, (0, 1)),  # bottom, right
    4: (False, (0,)),  # bottom, left
    5: (True, ()),  # left, top
    6: (True, (0,)),  # right, top
    7: (True, (0, 1)),  # right, bottom
    8: (True, (1,)),  # left, bottom
}


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("number", ORIENTATIONS)
def test_pictures_are_turned_upright(tmp_path, name, number):
    transposed, backward = ORIENTATIONS[number]
    stored = PIXELS.swapaxes(0, 1) if transposed else PIXELS
    exif = Image.Exif()
    exif[0x0112] = number
    stored = np.ascontiguousarray(np.flip(stored, backward))
    save(tmp_path, name, stored, exif=exif)
    assert np.allclose(load(tmp_path)[0], scaled(PIXELS), atol=1e-6)


def test_photographs_are_turned_before_they_are_cropped(tmp_path):
    """A tall picture that lies in its file: its upper half is white."""
    upright = np.zeros((64, 32, 3), np.uint8)
    upright[:32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.ascontiguousarray(np.flip(upright.swapaxes(0, 1), 0))
    save(tmp_path, "a.jpg", stored, exif=exif, quality=95)
    image = load(tmp_path, 32, fit=data.center_crop)[0]
    assert image[:15].min() > 0.9
    assert image[17:].max() < -0.9


def test_a_damaged_description_is_no_damaged_picture(tmp_path):
    save(tmp_path, "a.png", PIXELS, exif=b"Exif\0\0nothing of the kind")
    assert np.allclose(load(tmp_path)[0], scaled(PIXELS), atol=1e-6)


@pytest.mark.parametrize(("h", "w"), [(6, 11), (11, 6), (6, 6)])
def test_the_middle_is_cropped(tmp_path, h, w):
    """Without any change of the pixels where they need no resizing."""
    pixels = RNG.integers(0, 256, (h, w, 3), np.uint8)
    save(tmp_path, "a.png", pixels)
    top, left = (h - 6) // 2, (w - 6) // 2
    middle = pixels[top : top + 6, left : left + 6]
    assert np.allclose(load(tmp_path, fit=data.center_crop)[0], scaled(middle))


def test_whole_pictures_are_stretched(tmp_path):
    pixels = RNG.integers(0, 256, (12, 20, 3), np.uint8)
    save(tmp_path, "a.png", pixels)
    size = (8, 8, 3)
    expected = jax.image.resize(pixels.astype(np.float32), size, "bilinear")
    # To within the rounding of two passes.
    assert np.abs(load(tmp_path, 8)[0] - scaled(np.asarray(expected))).max() < 2 / 127.5


def test_what_does_not_fit_is_named(tmp_path):
    save(tmp_path, "a.png", PIXELS)
    with pytest.raises(ValueError, match="`fit` must return an RGB picture of 4 x 4"):
        load(tmp_path, 4, fit=lambda picture, side: picture)


# Folders


def test_listing_is_sorted_and_leaves_out_what_is_no_picture(tmp_path):
    for number, name in enumerate(["b.png", "a.bmp", "c.PNG", "B.tif"]):
        save(tmp_path, name, np.full((4, 4, 3), number, np.uint8))
    save(tmp_path / "subfolder", "0.png", PIXELS)
    save(tmp_path, ".hidden.png", PIXELS)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes.txt").write_text("not a picture")
    assert list(numbers(load(tmp_path, 4))) == [3, 1, 0, 2]


def test_epochs_are_shuffled_and_drop_the_rest(tmp_path):
    dataset = data.image_folder(colored(tmp_path, 11), 4, batch_size=3, num_threads=0)
    assert isinstance(dataset, grain.IterDataset)
    found = take(dataset, 12)
    for batch in found:
        assert batch.dtype == np.float32
        assert batch.shape == (3, 4, 4, 3)
        # The whole picture is that of its number.
        assert np.allclose(batch[..., 1:], scaled(np.array([7, 200])), atol=1e-6)

    epochs = np.stack([numbers(batch) for batch in found]).reshape(4, 9)
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # What is left out changes, so every picture is seen.
    assert set(epochs.ravel()) == set(range(11))


def test_threads_and_seeds(tmp_path):
    colored(tmp_path, 7)
    make = lambda threads, seed: take(
        data.image_folder(
            tmp_path, 4, batch_size=2, seed=seed, num_threads=threads, num_steps=9
        ),
        20,
    )
    alone = make(0, 0)
    assert len(alone) == 9
    assert np.array_equal(alone, make(3, 0))
    assert not np.array_equal(alone, make(3, 1))


@pytest.mark.parametrize("num_threads", [0, 3])
@pytest.mark.parametrize("position", [0, 5])
def test_resume_is_bitwise(tmp_path, position, num_threads):
    colored(tmp_path, 5)
    dataset = data.image_folder(
        tmp_path,
        4,
        batch_size=2,
        transform=data.random_flips,
        num_steps=12,
        num_threads=num_threads,
    )
    iterator = iter(dataset)
    for _ in range(position):
        next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    resumed = iter(pickle.loads(pickle.dumps(dataset)))
    next(resumed)
    resumed.set_state(state)
    # Batches that were read ahead do not count.
    assert len(rest) == 12 - position
    assert np.array_equal(list(resumed), rest)


def test_shards_partition_the_batch(tmp_path):
    colored(tmp_path, 9)
    whole = take(data.image_folder(tmp_path, 4, batch_size=4, num_threads=0), 5)
    parts = [
        take(
            data.image_folder(
                tmp_path,
                4,
                batch_size=4,
                num_threads=0,
                shard_index=index,
                num_shards=2,
            ),
            5,
        )
        for index in (0, 1)
    ]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_flips_are_fair_and_whole():
    images = np.arange(2000 * 2 * 3 * 1, dtype=np.float32).reshape(2000, 2, 3, 1)
    flipped = data.random_flips(images, np.random.default_rng(3))
    same = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, [2, 1, 0]]).all(axis=(1, 2, 3))
    assert np.all(same ^ mirrored)
    assert abs(same.sum() - 1000) < 5 * np.sqrt(2000 / 4)


def test_training_stops_and_resumes_with_the_same_batches(tmp_path):
    batches = data.image_folder(
        colored(tmp_path / "in", 40), 4, batch_size=3, num_threads=2
    )

    def loss(model, batch, key):
        del key
        return jnp.mean((model - batch[:, 0, 0, 0]) ** 2)

    def run(num_steps, checkpoints=None):
        return fk.training.fit(
            loss,
            jnp.zeros(()),
            batches,
            optimizer=optax.sgd(0.3),
            num_steps=num_steps,
            checkpoints=checkpoints,
            progress=False,
            key=jr.key(0),
        )

    saved = fk.training.Checkpoints(tmp_path / "out", every=3, config={})
    whole = run(7).model
    first = run(3, saved).model
    assert first != whole
    assert run(7, saved).model == whole


# Damage


def jpeg(size=64, **options):
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG", **options)
    return file.getvalue()


def as_file(picture, kind):
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def with_thumbnail():
    """A photograph whose description holds a small one, with an end of its own."""
    return jpeg(exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\0\0\0\0\0\0" + jpeg(8))


def claims(side):
    """A PNG file of 60 bytes that claims to be `side` pixels high and wide."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + checksum.to_bytes(4)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", b""),
            chunk(b"IEND", b""),
        ]
    )


def png():
    return as_file(Image.fromarray(PIXELS), "PNG")


DAMAGED = {
    "text": ("a.jpg", b"not a picture", "it is no BMP, JPEG, PNG or TIFF"),
    "empty": ("a.png", b"", "it is no BMP"),
    "other format": ("a.png", as_file(Image.fromarray(GRAY), "GIF"), "it is no BMP"),
    "cut photograph": ("a.jpg", jpeg()[:-200], "it is cut short"),
    "cut after a thumbnail": ("a.jpg", with_thumbnail()[:-200], "it is cut short"),
    "cut PNG": ("a.png", png()[:-30], ""),
    "changed PNG": ("a.png", png()[:60] + b"\0\xff" + png()[62:], ""),
    "cut BMP": ("a.bmp", as_file(Image.fromarray(PIXELS), "BMP")[:-20], "truncated"),
    "cut TIFF": ("a.tif", as_file(Image.fromarray(WIDE), "TIFF")[:-40], ""),
    "huge": ("a.png", claims(20_000), "DecompressionBombError"),
    "large": ("a.png", claims(10_000), "DecompressionBombWarning"),
    "floats": (
        "a.tif",
        as_file(Image.fromarray(WIDE.astype(np.float32)), "TIFF"),
        "its pixels are of the kind F, of unknown range",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_named_or_skipped(tmp_path, kind):
    name, content, message = DAMAGED[kind]
    colored(tmp_path, 2)
    (tmp_path / name).write_bytes(content)
    found = rf"1 of the 3 files in {tmp_path} cannot be used: `{name}` \(.*{message}"
    with pytest.raises(ValueError, match=found + ".*give `skip_damaged=True`"):
        data.image_folder(tmp_path, 4, batch_size=2)
    with pytest.warns(UserWarning, match=found + ".*skipped"):
        images = load(tmp_path, 4, skip_damaged=True)
    assert list(numbers(images)) == [0, 1]


def test_whole_files_are_not_called_damaged(tmp_path):
    (tmp_path / "a.jpg").write_bytes(with_thumbnail())
    (tmp_path / "b.jpg").write_bytes(jpeg(progressive=True))
    # Some cameras append a film.
    (tmp_path / "c.jpg").write_bytes(jpeg() + bytes(100_000))
    assert load(tmp_path, 4).shape == (3, 4, 4, 3)


def test_many_damaged_files_are_counted(tmp_path):
    colored(tmp_path, 2)
    for number in range(5):
        (tmp_path / f"x{number}.jpg").write_text("nothing")
    message = r"5 of the 7 files.*x0.jpg.*x1.jpg.*x2.jpg` \([^`]*\), \.\.\.; remove"
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    for path in tmp_path.glob("0*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="5 of the 5 files.*name a folder"):
        load(tmp_path, skip_damaged=True)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_damage_after_the_check_is_named(tmp_path, num_threads):
    colored(tmp_path, 2)
    dataset = data.image_folder(tmp_path, 4, batch_size=2, num_threads=num_threads)
    (tmp_path / "001.png").write_bytes(png()[:40])
    with pytest.raises(ValueError, match=rf"`{tmp_path}/001.png` could not be read"):
        next(iter(dataset))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4}, "`batch_size` is 4, but there are only 3 examples"),
        ({"batch_size": 0}, "`batch_size` must be a positive multiple"),
        ({"seed": -1}, "`seed` must not be negative"),
        ({"num_steps": 0}, "`num_steps` must be at least 1"),
        ({"num_threads": -1}, "`num_threads` must not be negative"),
        ({"side": 0}, "`side` must be at least 1"),
        ({"num_shards": 2}, "`shard_index` and `num_shards` belong together"),
    ],
)
def test_bad_arguments_are_named_before_files_are_read(tmp_path, options, message):
    for number in range(3):
        (tmp_path / f"{number}.png").write_text("damaged")
    with pytest.raises(ValueError, match=message):
        data.image_folder(tmp_path, **({"side": 4, "batch_size": 2} | options))


def test_folders_without_pictures(tmp_path):
    save(tmp_path / "subfolder", "a.png", PIXELS)
    with pytest.raises(ValueError, match=rf"{tmp_path} has no file.*jpg.*subfolders"):
        data.image_folder(tmp_path, 4, batch_size=1)
    with pytest.raises(FileNotFoundError, match="absent"):
        load(tmp_path / "absent")


# Arrays of intensities


@pytest.mark.parametrize("side", [5, 16, 28])
@pytest.mark.parametrize("channels", [1, 3])
def test_intensities_are_resized_as_by_another_library(side, channels):
    images = RNG.random((2, 12, 16, channels)).astype(np.float32)
    size = (2, side, side, channels)
    expected = jax.image.resize(images, size, "bilinear", antialias=True)
    given = images[..., 0] if channels == 1 else images
    found = data.as_images(given, side)
    assert found.dtype == np.float32
    assert found.shape == size
    assert np.allclose(found, 2 * np.asarray(expected) - 1, atol=1e-5)


def test_ranges_of_intensities():
    images = np.array([[[0, 0.25], [0.5, 1]]], np.float32)
    expected = np.array([[-1, -0.5], [0, 1]])
    assert np.array_equal(data.as_images(images)[0, ..., 0], expected)
    assert np.array_equal(data.as_images(images, low=0.0)[..., 0], images)
    # The given array is not changed.
    assert images.max() == 1
    assert images.min() == 0

    ink = np.array([[[True, False]]])
    assert np.array_equal(data.as_images(ink), [[[[1.0], [-1.0]]]])
    many = data.as_images(RNG.random((3, 9, 9)).astype(np.float32).round(), 7)
    assert many.min() >= -1
    assert many.max() <= 1


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.full((1, 2, 2), 255, np.uint8), {}, "uint8; divide bytes by 255"),
        (
            np.full((1, 2, 2), 255.0),
            {},
            "got 255.0 to 255.0; divide images of 0 to 255",
        ),
        (np.full((1, 2, 2), -0.5), {}, "got -0.5 to -0.5"),
        (np.full((1, 2, 2), np.nan), {}, "got nan to nan"),
        (np.zeros((0, 2, 2)), {}, "`images` is empty"),
        (np.zeros((1, 2, 2)), {"low": 1.0}, "`low` must be a finite number below 1"),
        (np.zeros((1, 2, 2)), {"low": -np.inf}, "`low` must be"),
        (np.zeros((1, 2, 2)), {"side": 0}, "`side` must be at least 1"),
    ],
)
def test_bad_intensities_are_named(images, options, message):
    with pytest.raises(ValueError, match=message):
        data.as_images(images, **options)


# Real data


@pytest.mark.skipif(not (REAL / "faces").is_dir(), reason="FLOWKIT_DATA has no faces")
def test_real_portraits():
    images = data.load_image_folder(REAL / "faces", 64)
    assert images.shape == (539, 64, 64, 3)
    # Nearly all of them are before a blue wall: upright, it is above the shoulders.
    corners = images[:, :8, :8].mean(axis=(1, 2))
    assert np.mean(corners[:, 2] > corners[:, 0]) > 0.8
    means = images.mean(axis=(0, 2, 3))
    assert means[:8].mean() > means[-8:].mean()


@pytest.mark.skipif(not (REAL / "mnist").is_dir(), reason="FLOWKIT_DATA has no MNIST")
@pytest.mark.parametrize("side", [28, 64, 128])
def test_real_digits_keep_their_ink(side):
    """A resized image has the mean of the original, but for its blurred margins."""
    digits = data.load_mnist(REAL / "mnist").test.images[:500]
    images = data.as_images(digits, side)
    assert images.shape == (500, side, side, 1)
    ink = (images.mean(axis=(1, 2, 3)) + 1) / 2
    assert np.allclose(ink, digits.mean(axis=(1, 2)), atol=2e-3)
