"""CIFAR-10: where its files are found, their layout, and every kind of damage."""

import gzip
import hashlib
import http.server
import io
import os
import pickle
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from flowkit import data
from flowkit.data import _cifar10


REAL = os.environ.get("FLOWKIT_DATA")
NAMES = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch, tmp_path):
    """No test sees the user's own files, nor the network."""
    monkeypatch.delenv("FLOWKIT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_cifar10, "_URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")


def pictures(name, num=3):
    """Images `(num, 32, 32, 3)` of bytes, and their labels."""
    rng = np.random.default_rng(list(name.encode()))
    images = rng.integers(0, 256, (num, 32, 32, 3), np.uint8)
    return images, rng.integers(0, 10, num).astype(np.uint8)


def as_records(images, labels):
    """The format: a label, then the planes of red, green and blue, each row by row."""
    content = bytearray()
    for image, label in zip(images, labels, strict=True):
        content.append(label)
        for channel in range(3):
            for row in range(32):
                content += bytes(image[row, :, channel])
    return bytes(content)


def write(folder, names=NAMES, *, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        content = as_records(*pictures(name))
        content = gzip.compress(content) if suffix else content
        (folder / (name + suffix)).write_bytes(content)
    return folder


def assert_is(part, names):
    images, labels = zip(*map(pictures, names), strict=True)
    assert part.images.dtype == np.float32
    assert part.images.flags.c_contiguous
    assert part.labels.dtype == np.int32
    assert np.array_equal(part.labels, np.concatenate(labels))
    assert np.array_equal(part.images, np.concatenate(images) / np.float32(255))


def assert_is_whole(split):
    assert_is(split.train, NAMES[:-1])
    assert_is(split.test, NAMES[-1:])


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "cifar-10-batches-bin"])
def test_found_in_the_folder_that_is_named(tmp_path, monkeypatch, place, suffix):
    monkeypatch.setenv("FLOWKIT_DATA", str(tmp_path / "elsewhere"))
    write(tmp_path / place, suffix=suffix)
    assert_is_whole(data.load_cifar10(tmp_path))


@pytest.mark.parametrize("place", [".", "cifar10", "cifar10/cifar-10-batches-bin"])
def test_found_in_the_folder_of_the_environment(tmp_path, monkeypatch, place):
    write(tmp_path / place)
    monkeypatch.setenv("FLOWKIT_DATA", str(tmp_path))
    assert_is_whole(data.load_cifar10())


def test_any_number_of_training_batches_and_each_of_them_once(tmp_path):
    write(tmp_path, [NAMES[3], NAMES[1], "test_batch_first3.bin"])
    write(tmp_path, [NAMES[1]], suffix=".gz")
    split = data.load_cifar10(tmp_path)
    assert_is(split.train, [NAMES[1], NAMES[3]])
    assert_is(split.test, ["test_batch_first3.bin"])

    write(tmp_path, NAMES[-1:], suffix=".gz")
    assert_is(data.load_cifar10(tmp_path).test, NAMES[-1:])


@pytest.mark.parametrize("names", [[], NAMES[:-1], NAMES[-1:]])
def test_missing_files_say_what_was_looked_for(tmp_path, names):
    write(tmp_path, names)
    where = rf"`{tmp_path}` or `{tmp_path}/cifar-10-batches-bin`; give the folder"
    with pytest.raises(FileNotFoundError, match=rf"data_batch.*test_batch.* {where}"):
        data.load_cifar10(tmp_path)


class Trap:
    """Something whose pickle runs code as it is read."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_pickles_are_refused(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "data_batch_1").write_bytes(pickle.dumps(Trap()))
    message = "Python version.*pickles.*get the binary version.*cifar-10-binary.tar.gz"
    with pytest.raises(ValueError, match=message):
        data.load_cifar10(tmp_path)


GOOD = as_records(*pictures("good"))
BAD = {
    "empty": (b"", "has 0 bytes"),
    "cut": (GOOD[:-1], "1 to 60000 records of 3073 bytes, but it has 9218 bytes"),
    "too long": (GOOD + b"\0", "has 9220 bytes"),
    "label": (
        as_records(pictures("good")[0], [9, 10, 3]),
        "label 10 in record 1, where 0 to 9",
    ),
    "cut gzip": (gzip.compress(GOOD)[:-9], "not a whole gzip file"),
    "damaged gzip": (gzip.compress(GOOD)[:40] + b"x" * 50, "not a whole gzip file"),
    "bomb": (gzip.compress(bytes(_cifar10._RECORD * 60_002), 1), "has more bytes"),
}


@pytest.mark.parametrize("name", [NAMES[0], NAMES[-1]])
@pytest.mark.parametrize("kind", BAD)
def test_damaged_files_are_named(tmp_path, kind, name):
    content, message = BAD[kind]
    (write(tmp_path) / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"`{tmp_path}/{name}` .*{message}.*original"):
        data.load_cifar10(tmp_path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of an archive as the original one; the list of what was asked for."""
    requests = []
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for path in sorted(write(tmp_path / "packed").iterdir()):
            archive.add(path, f"cifar-10-batches-bin/{path.name}")
    content = file.getvalue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{httpd.server_port}/cifar-10-binary.tar.gz"
        monkeypatch.setattr(_cifar10, "_URL", url)
        monkeypatch.setattr(_cifar10, "_SHA256", hashlib.sha256(content).hexdigest())
        yield requests
        httpd.shutdown()
        thread.join()


def test_downloads_once(server):
    pytest.importorskip("pooch")
    assert_is_whole(data.load_cifar10())
    assert_is_whole(data.load_cifar10())
    assert server == ["/cifar-10-binary.tar.gz"]


def test_another_checksum_is_refused(server, monkeypatch):
    pytest.importorskip("pooch")
    monkeypatch.setattr(_cifar10, "_SHA256", "0" * 64)
    with pytest.raises(OSError, match=r"(?s)could not be downloaded.*hash.*by hand"):
        data.load_cifar10()


def test_without_pooch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"flowkit-jax\[download\].*FLOWKIT_DATA"):
        data.load_cifar10()


@pytest.mark.skipif(
    REAL is None or not Path(REAL, "cifar10").is_dir(),
    reason="FLOWKIT_DATA has no CIFAR-10",
)
def test_the_real_files(monkeypatch):
    """The counts of the labels that are known of the first batch.

    Its means and deviations are within 0.005 of those known of all 50,000 images.
    """
    monkeypatch.setenv("FLOWKIT_DATA", str(REAL))
    split = data.load_cifar10()
    first = split.train.images[:10_000]
    counts = [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
    assert first.shape == (10_000, 32, 32, 3)
    assert np.array_equal(np.bincount(split.train.labels[:10_000]), counts)
    counts = [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]
    assert np.array_equal(np.bincount(split.test.labels[:1000]), counts)

    means = first.mean(axis=(0, 1, 2), dtype=float)
    assert means == pytest.approx([0.49140, 0.48216, 0.44653], abs=5e-3)
    deviations = first.std(axis=(0, 1, 2), dtype=float)
    assert deviations == pytest.approx([0.24703, 0.24349, 0.26159], abs=5e-3)
    # The first image is a frog, the second a truck.
    names = [data.CIFAR10_CLASSES[label] for label in split.train.labels[:2]]
    assert names == ["frog", "truck"]
    # Its classes in the order of the file that comes with the data.
    listed = Path(REAL, "cifar10", "batches.meta.txt").read_text().split()
    assert list(data.CIFAR10_CLASSES) == listed
