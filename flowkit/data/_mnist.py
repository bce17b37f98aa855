"""The handwritten digits of MNIST, from a folder, the cache or the network."""

import importlib.util
import os
from pathlib import Path

import numpy as np

from flowkit.data._idx import read_idx
from flowkit.data._images import Images
from flowkit.data._sets import Split


_SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
    ),
    "train-labels-idx1-ubyte.gz": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
    ),
}
_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


def load_mnist(
    folder: str | os.PathLike | None = None, *, download: bool = True
) -> Split:
    """The 70,000 handwritten digits of MNIST, 28 x 28 pixels each.

    There are 60,000 to train and 10,000 to test, in their original order. Each of the
    four files may be compressed (`train-images-idx3-ubyte.gz`) or not. It is looked for
    in `folder` and its subfolder `MNIST/raw`, as torchvision has it. Without `folder`
    these are the folder that the environment variable `FLOWKIT_DATA` names and its
    subfolder `mnist`, then the user's cache. A file that is not found is downloaded to
    the cache (12 MB in all), and its checksum is compared. Other data in the same
    format will do: give their `folder`.

    **Arguments:**

    - `folder`: the folder of the files. No other place is searched then.
    - `download`: whether a file that is not found is downloaded.

    **Returns:** `Split(train, test)` of `Images`.

    **Raises:** `FileNotFoundError`, with all that was looked for, if `folder` lacks a file,
    or if one is missing and must not be downloaded.
    `ValueError`, with the file's name and the fix, if a file is damaged or labels do not
    match their images. `ImportError` if a file has to be downloaded and `pooch` is not
    installed; `OSError` if the download fails.

    **Reference:** Gradient-based learning applied to document recognition, Y. LeCun et al.,
    Proceedings of the IEEE 86, 1998.
    """
    return Split(_load("train", folder, download), _load("t10k", folder, download))


def _load(part: str, folder: str | os.PathLike | None, download: bool) -> Images:
    image_path = _find(f"{part}-images-idx3-ubyte.gz", folder, download)
    label_path = _find(f"{part}-labels-idx1-ubyte.gz", folder, download)
    pixels = read_idx(image_path, 3)
    labels = read_idx(label_path, 1)
    if len(pixels) != len(labels):
        raise ValueError(
            f"`{label_path}` has {len(labels)} labels for the {len(pixels)} images of "
            f"`{image_path}`; replace both by files that belong together."
        )

    return Images(pixels / np.float32(255), labels.astype(np.int32))


def _find(name: str, folder: str | os.PathLike | None, download: bool) -> Path:
    """The path of a file, compressed or not; without a folder it is perhaps downloaded."""
    if folder is not None:
        roots = [Path(folder)]
    elif root := os.environ.get("FLOWKIT_DATA"):
        roots = [Path(root, "mnist"), Path(root)]
    else:
        roots = []

    unpacked = name.removesuffix(".gz")
    # Some programs that unpack the files write a dot in place of the last hyphen but one.
    names = [name, unpacked, unpacked.replace("-idx", ".idx")]
    folders = [path for root in roots for path in (root, root / "MNIST" / "raw")]
    for path in folders:
        for candidate in names:
            if (path / candidate).is_file():
                return path / candidate

    if folder is None and download:
        return _download(name)
    if folder is None:
        return _cached(name, folders)
    raise FileNotFoundError(
        f"no {' or '.join(names)} in {' or '.join(f'`{path}`' for path in folders)}; give "
        "the folder of the four files of MNIST, or no `folder` to have them downloaded."
    )


def _cached(name: str, folders: list[Path]) -> Path:
    """The file in the cache, as an earlier download left it there."""
    if importlib.util.find_spec("pooch") is not None:
        import pooch

        folders = [*folders, pooch.os_cache("flowkit") / "mnist"]
        if (folders[-1] / name).is_file():
            return folders[-1] / name
    raise FileNotFoundError(
        f"no {name} in {' or '.join(f'`{path}`' for path in folders) or 'any folder'}; "
        "set the environment variable FLOWKIT_DATA to the folder of the four files of "
        "MNIST, or give `download=True`."
    )


def _download(name: str) -> Path:
    """The file in the cache, fetched from the first mirror if it is not there yet."""
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"`load_mnist` found no {name} and downloads it with pooch: "
            '`pip install "flowkit-jax[download]"`; or set the environment variable '
            "FLOWKIT_DATA to the folder that has it."
        ) from error
    cache = pooch.os_cache("flowkit") / "mnist"
    checksum = f"sha256:{_SHA256[name]}"
    failures: list[str] = []

    for mirror in _MIRRORS:
        url = mirror + name
        try:
            return Path(pooch.retrieve(url, checksum, name, cache, progressbar=True))
        # A connection that failed, or a file with another checksum.
        except (OSError, ValueError) as error:
            failures.append(f"{url} ({error})")

    raise OSError(
        f"{name} could not be downloaded from {', nor from '.join(failures)}; put it into "
        f"{cache}/ by hand."
    )
