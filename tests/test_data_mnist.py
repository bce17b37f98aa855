"""MNIST: where its files are found, and every kind of damage."""

import functools as ft
import gzip
import hashlib
import http.server
import os
import struct
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from flowkit import data
from flowkit.data import _mnist


NAMES = [
    f"{part}-{rest}-ubyte.gz"
    for part in ("train", "t10k")
    for rest in ("images-idx3", "labels-idx1")
]
SIZES = {"train": 12, "t10k": 5}
REAL = os.environ.get("FLOWKIT_DATA")


def as_idx(array, *, shape=None, magic=None):
    """An array as the bytes of a file, whose header may claim another shape or kind."""
    shape = shape or array.shape
    header = bytes([0, 0, 8, len(shape)]) if magic is None else magic
    return header + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def arrays(part):
    rng = np.random.default_rng(len(part))
    num = SIZES[part]
    images = rng.integers(0, 256, (num, 28, 28), np.uint8)
    images[0].flat[:256] = np.arange(256)
    return images, rng.integers(0, 10, num).astype(np.uint8)


def write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for part in SIZES:
        for rest, array in zip(
            ("images-idx3", "labels-idx1"), arrays(part), strict=True
        ):
            (folder / f"{part}-{rest}-ubyte.gz").write_bytes(
                gzip.compress(as_idx(array))
            )
    return folder


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch, tmp_path):
    """No test sees the user's own files."""
    monkeypatch.delenv("FLOWKIT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_mnist, "_MIRRORS", ())


def assert_is_written(split):
    for part, images in zip(SIZES, split, strict=True):
        pixels, labels = arrays(part)
        assert images.images.dtype == np.float32
        assert images.labels.dtype == np.int32
        assert np.array_equal(
            images.images, pixels.astype(np.float32) / np.float32(255)
        )
        assert np.array_equal(images.labels, labels)


@pytest.mark.parametrize("place", ["mnist", "."])
def test_found_in_the_folder_of_the_environment(tmp_path, monkeypatch, place):
    write(tmp_path / "here" / place)
    monkeypatch.setenv("FLOWKIT_DATA", str(tmp_path / "here"))
    assert_is_written(data.load_mnist())


def test_found_in_the_folder_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWKIT_DATA", str(tmp_path / "elsewhere"))
    assert_is_written(data.load_mnist(write(tmp_path / "here")))
    with pytest.raises(FileNotFoundError, match="absent"):
        data.load_mnist(tmp_path / "absent")


@pytest.mark.parametrize("unpack", [False, True], ids=["compressed", "unpacked"])
@pytest.mark.parametrize("rename", [False, True], ids=["gz", "bare"])
def test_files_as_users_have_them(tmp_path, monkeypatch, unpack, rename):
    """Unpacked or not, whatever the name says, and in the folder that torchvision makes."""
    for place in (tmp_path / "a", tmp_path / "b" / "MNIST" / "raw"):
        for path in list(write(place).iterdir()):
            content = path.read_bytes()
            path.unlink()
            name = path.name.removesuffix(".gz") if rename else path.name
            content = gzip.decompress(content) if unpack else content
            (place / name).write_bytes(content)
    assert_is_written(data.load_mnist(tmp_path / "a"))
    assert_is_written(data.load_mnist(tmp_path / "b"))
    monkeypatch.setenv("FLOWKIT_DATA", str(tmp_path / "b"))
    assert_is_written(data.load_mnist())


def test_a_missing_file_says_what_was_looked_for(tmp_path):
    (write(tmp_path) / NAMES[3]).unlink()
    bare = NAMES[3].removesuffix(".gz")
    message = (
        rf"no {NAMES[3]} or {bare} or .* in `{tmp_path}` or `{tmp_path}/MNIST/raw`"
    )
    with pytest.raises(FileNotFoundError, match=message):
        data.load_mnist(tmp_path)


def test_the_threshold_of_point_clouds_is_that_of_bytes(tmp_path):
    """Brighter than 128 of 255, exactly, after the division in single precision."""
    images = data.load_mnist(write(tmp_path)).train.images
    assert np.array_equal(images > 128 / 255, arrays("train")[0] > 128)


IMAGES, LABELS = arrays("train")
BAD = {
    "empty": (b"", "it begins with nothing"),
    "text": (b"not a gzip file", "begins with 6e 6f 74 20, where 00 00 08 03"),
    "cut, not compressed": (
        as_idx(IMAGES)[:-1],
        "announces 9408 bytes, but 9407 follow",
    ),
    "labels": (
        gzip.compress(as_idx(LABELS)),
        "begins with 00 00 08 01, where 00 00 08 03",
    ),
    "floats": (
        gzip.compress(as_idx(IMAGES, magic=b"\0\0\x0d\x03")),
        "begins with 00 00 0d 03",
    ),
    "header alone": (gzip.compress(as_idx(IMAGES)[:10]), "ends within its header"),
    "no images": (
        gzip.compress(as_idx(IMAGES[:0])),
        r"claims the shape \(0, 28, 28\), which is empty",
    ),
    "too few": (
        gzip.compress(as_idx(IMAGES[:-1], shape=IMAGES.shape)),
        "announces 9408 bytes, but 8624 follow",
    ),
    "too many": (
        gzip.compress(as_idx(IMAGES, shape=(11, 28, 28))),
        "announces 8624 bytes, but more follow",
    ),
    "cut": (gzip.compress(as_idx(IMAGES))[:-50], "end-of-stream"),
    "other bytes behind": (
        gzip.compress(as_idx(IMAGES)) + b"more",
        "Not a gzipped file",
    ),
}


@pytest.mark.parametrize(("content", "fragment"), BAD.values(), ids=BAD)
def test_bad_files_are_named_with_the_fix(tmp_path, content, fragment):
    name = NAMES[0]
    (write(tmp_path) / name).write_bytes(content)
    with pytest.raises(
        ValueError,
        match=rf"{name}` is not a whole.*{fragment}.*replace it by the original {name}",
    ):
        data.load_mnist(tmp_path)


def test_labels_must_match_images(tmp_path):
    (write(tmp_path) / NAMES[1]).write_bytes(gzip.compress(as_idx(LABELS[:7])))
    with pytest.raises(
        ValueError,
        match=f"{NAMES[1]}` has 7 labels for the 12 images of .*{NAMES[0]}`; replace both",
    ):
        data.load_mnist(tmp_path)


def peak_of_failure(folder, fragment):
    tracemalloc.start()
    with pytest.raises(ValueError, match=fragment):
        data.load_mnist(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(
    "shape", [(2**32 - 1,) * 3, (10**6, 28, 28), (300_000, 28, 28)]
)
def test_a_lying_header_allocates_nothing(tmp_path, shape):
    (write(tmp_path) / NAMES[0]).write_bytes(gzip.compress(as_idx(IMAGES, shape=shape)))
    assert peak_of_failure(tmp_path, "its header (claims|announces)") < 2**22


def test_a_bomb_is_left_after_what_its_header_announced(tmp_path):
    """64 MB behind a header for 9 kB."""
    content = gzip.compress(as_idx(IMAGES) + bytes(2**26), 1)
    (write(tmp_path) / NAMES[0]).write_bytes(content)
    assert peak_of_failure(tmp_path, "announces 9408 bytes, but more follow") < 2**22


def test_every_cut_and_random_damage_is_an_error_or_harmless(tmp_path):
    path = write(tmp_path) / NAMES[0]
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(300):
        content = bytearray(
            whole[: rng.integers(len(whole))] if trial % 3 == 0 else whole
        )
        first = len(content) if trial % 2 else min(30, len(content))
        for place in rng.integers(0, max(first, 1), 3 if content else 0):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            split = data.load_mnist(tmp_path)
        except ValueError as error:
            assert NAMES[0] in str(error)  # noqa: PT017
        else:
            assert_is_written(split)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Two mirrors on this machine, of which the first has nothing; the list of requests."""
    folder = write(tmp_path / "served")
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), ft.partial(Handler, directory=str(folder))
    ) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{httpd.server_address[1]}/"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(_mnist, "_MIRRORS", (url + "nothing/", url))
        sums = {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in NAMES
        }
        monkeypatch.setattr(_mnist, "_SHA256", sums)
        yield requests
        httpd.shutdown()
        thread.join()


def test_downloads_once_from_the_mirror_that_has_it(server, tmp_path):
    with pytest.raises(FileNotFoundError, match="FLOWKIT_DATA.*`download=True`"):
        data.load_mnist(download=False)
    assert not server

    assert_is_written(data.load_mnist())
    assert [path for path in server if "nothing" not in path] == [
        f"/{name}" for name in NAMES
    ]
    cached = {path.name for path in (tmp_path / "cache").rglob("*.gz")}
    assert cached == set(NAMES)
    server.clear()
    assert_is_written(data.load_mnist())
    assert_is_written(data.load_mnist(download=False))
    assert not server


def test_another_checksum_is_refused(server, tmp_path):
    path = tmp_path / "served" / NAMES[2]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        OSError,
        match=rf"(?s){NAMES[2]} could not be downloaded.*hash.*put it into .*cache",
    ):
        data.load_mnist()
    assert not list((tmp_path / "cache").rglob(NAMES[2]))


def test_without_pooch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"flowkit-jax\[download\].*FLOWKIT_DATA"):
        data.load_mnist()
    assert_is_written(data.load_mnist(write(tmp_path)))


def test_the_checksums_are_of_whole_digests():
    """The names and digests in the source, which no test can download."""
    assert list(_mnist._SHA256) == NAMES
    assert all(len(bytes.fromhex(digest)) == 32 for digest in _mnist._SHA256.values())


@pytest.mark.skipif(
    REAL is None or not Path(REAL, "mnist").is_dir(), reason="FLOWKIT_DATA has no MNIST"
)
def test_the_real_files(monkeypatch):
    """Checksums, and the counts and moments that are known of MNIST."""
    monkeypatch.setenv("FLOWKIT_DATA", str(REAL))
    for name in NAMES:
        assert (
            hashlib.sha256(Path(REAL, "mnist", name).read_bytes()).hexdigest()
            == _mnist._SHA256[name]
        )
    split = data.load_mnist()
    assert split.train.images.shape == (60_000, 28, 28)
    assert split.test.images.shape == (10_000, 28, 28)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.array_equal(np.bincount(split.test.labels), counts)
    assert split.train.images.mean() == pytest.approx(0.1307, abs=1e-4)
    assert split.train.images.std() == pytest.approx(0.3081, abs=1e-4)
