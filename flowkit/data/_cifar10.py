"""The color images of CIFAR-10, from a folder, the cache or the network.

Files are not trusted: pickles are refused, and labels and sizes are checked.
"""

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from flowkit.data._sets import Split


CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""The names of the ten classes of CIFAR-10, by label."""

_SIDE = 32
_RECORD = 1 + 3 * _SIDE**2
_MAX_RECORDS = 60_000
_GZIP = b"\x1f\x8b"
_FOLDER = "cifar-10-batches-bin"
_ARCHIVE = "cifar-10-binary.tar.gz"
_URL = f"https://www.cs.toronto.edu/~kriz/{_ARCHIVE}"
_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_MEMBERS = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]


class ColorImages(NamedTuple):
    """Color images with what they show.

    - `images`: `(b, h, w, c)`, intensities in `[0, 1]`, row 0 at the top.
    - `labels`: `(b,)`, integers.
    """

    images: Float[np.ndarray, "b h w c"]
    labels: Int[np.ndarray, " b"]


class _Files(NamedTuple):
    """The files of a whole data set, at least one of each kind."""

    train: Sequence[Path]
    test: Path


def load_cifar10(folder: str | os.PathLike | None = None) -> Split:
    """The 60,000 small color photographs of CIFAR-10, 32 x 32 pixels each.

    The binary version is read: `data_batch_1.bin` to `data_batch_5.bin`, 10,000 images
    each, and `test_batch.bin`, in their original order. Each may be compressed
    (`data_batch_1.bin.gz`). Every training batch that is there is read, so one is enough.
    A smaller `test_batch_*.bin` is taken where there is no `test_batch.bin`.

    The files are looked for in `folder` and its subfolder `cifar-10-batches-bin`, as the
    archive has it. Without `folder` these are the folder that the environment variable
    `FLOWKIT_DATA` names and its subfolder `cifar10`, then the user's cache. If no such
    folder has both training and test data, the archive is downloaded to the cache
    (170 MB), and its checksum is compared. `CIFAR10_CLASSES` names the labels.

    **Arguments:**

    - `folder`: the folder of the files. No other place is searched then.

    **Returns:** `Split(train, test)` of `ColorImages` `(b, 32, 32, 3)`, float32.

    **Raises:** `FileNotFoundError`, with all that was looked for, if `folder` lacks files.
    `ValueError`, with the file's name and the fix, if a file is damaged, or if `folder`
    has the Python version, whose files are pickles and can run code. `ImportError` if the
    archive has to be downloaded and `pooch` is not installed; `OSError` if the download
    fails.

    **Reference:** Learning multiple layers of features from tiny images, A. Krizhevsky,
    2009.
    """
    files = _find(folder)
    return Split(_load(files.train), _load([files.test]))


def _load(paths: Sequence[Path]) -> ColorImages:
    records = np.concatenate([_read(path) for path in paths])
    planes = records[:, 1:].reshape(-1, 3, _SIDE, _SIDE)
    # Into an array in the order of its axes: a plain quotient would keep that of the file.
    images = np.empty((len(planes), _SIDE, _SIDE, 3), np.float32)
    np.divide(planes.transpose(0, 2, 3, 1), np.float32(255), out=images)

    return ColorImages(images, records[:, 0].astype(np.int32))


def _read(path: Path) -> np.ndarray:
    """The records of one file, each a label and the planes of red, green and blue."""
    try:
        content = _unpacked(path)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"`{path}` is not a whole gzip file ({error}); replace it by the original."
        ) from error

    num, rest = divmod(len(content), _RECORD)
    if num == 0 or rest or num > _MAX_RECORDS:
        size = "more" if num > _MAX_RECORDS else len(content)
        raise ValueError(
            f"`{path}` must have 1 to {_MAX_RECORDS} records of {_RECORD} bytes, but it "
            f"has {size} bytes; replace it by the original."
        )

    records = np.frombuffer(content, np.uint8).reshape(num, _RECORD)
    labels = records[:, 0]
    if labels.max() >= len(CIFAR10_CLASSES):
        bad = int(np.argmax(labels >= len(CIFAR10_CLASSES)))
        raise ValueError(
            f"`{path}` has the label {labels[bad]} in record {bad}, where 0 to 9 are "
            "expected; replace it by the original file of the binary version."
        )
    return records


def _unpacked(path: Path) -> bytes:
    """The content, but hardly more than is allowed, however well a file compresses."""
    limit = (_MAX_RECORDS + 1) * _RECORD
    with open(path, "rb") as file:
        # No record begins with these two bytes: 31 is no label.
        compressed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        if not compressed:
            return file.read(limit)
        with gzip.GzipFile(fileobj=file) as unpacked:
            return unpacked.read(limit)


def _find(folder: str | os.PathLike | None) -> _Files:
    """The files in the first place that has both kinds; perhaps they are downloaded."""
    if folder is not None:
        roots = [Path(folder)]
    elif root := os.environ.get("FLOWKIT_DATA"):
        roots = [Path(root, "cifar10"), Path(root)]
    else:
        roots = []

    places = [path for root in roots for path in (root, root / _FOLDER)]
    for place in places:
        if files := _files_in(place):
            return files
    if folder is None:
        return _download()

    for place in (*places, Path(folder, "cifar-10-batches-py")):
        if (place / "data_batch_1").is_file():
            raise ValueError(
                f"`{place}` has the Python version of CIFAR-10, whose files are pickles, "
                f"which can run code, and are not read; get the binary version, {_URL}."
            )
    raise FileNotFoundError(
        "no data_batch_*.bin with a test_batch*.bin, nor either of them with .gz, in "
        f"{' or '.join(f'`{path}`' for path in places)}; give the folder of the binary "
        "version of CIFAR-10, or no `folder` to have it downloaded."
    )


def _files_in(folder: Path) -> _Files | None:
    train = _listed(folder, "data_batch_*.bin")
    # The whole `test_batch.bin` comes before any `test_batch_*.bin`, a part of it.
    test = _listed(folder, "test_batch*.bin")
    return _Files(train, test[0]) if train and test else None


def _listed(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern in order, each of them once."""
    found = {path.name: path for path in sorted(folder.glob(pattern))}
    for path in sorted(folder.glob(pattern + ".gz")):
        found.setdefault(path.name.removesuffix(".gz"), path)
    return [found[name] for name in sorted(found)]


def _download() -> _Files:
    """The files in the cache, taken from the archive if they are not there yet."""
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"`load_cifar10` found no data and downloads {_ARCHIVE} with pooch: "
            '`pip install "flowkit-jax[download]"`; or set the environment variable '
            "FLOWKIT_DATA to the folder that has its files."
        ) from error
    cache = pooch.os_cache("flowkit") / "cifar10"
    unpack = pooch.Untar([f"{_FOLDER}/{name}" for name in _MEMBERS], extract_dir=".")

    try:
        pooch.retrieve(
            _URL,
            f"sha256:{_SHA256}",
            _ARCHIVE,
            cache,
            processor=unpack,
            progressbar=True,
        )
    # A connection that failed, or a file with another checksum.
    except (OSError, ValueError) as error:
        raise OSError(
            f"{_URL} could not be downloaded ({error}); put it into {cache}/ by hand."
        ) from error
    return _Files(
        [cache / _FOLDER / name for name in _MEMBERS[:-1]],
        cache / _FOLDER / _MEMBERS[-1],
    )
