"""The handwritten digits of MNIST, from a folder, the cache or the network."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from flowkit.data._idx import read_idx
from flowkit.data._images import Images
from flowkit.data._sets import Split


_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


def load_mnist(folder: str | os.PathLike | None = None) -> Split:
    """The 70,000 handwritten digits of 28 x 28 pixels of MNIST, 60,000 to train and 10,000 to test, in their order.

    Each of the four original files is looked for in `folder`, then in the folder that the environment variable
    `FLOWKIT_DATA` names and its subfolder `mnist`, then in the user's cache; if it is nowhere, it is downloaded to the
    cache, 12 MB in all, and its checksum compared. Other data in the same format will do: name their `folder`.

    **Arguments:**

    - `folder`: where `train-images-idx3-ubyte.gz` and its companions are. No other place is looked at then.

    **Returns:** `Split(train, test)` of `Images`.

    **Raises:** `ValueError`, with the file's name and what to do, if a file is damaged or labels do not match their
    images. `ImportError` if a file has to be downloaded and `pooch` is not there; `OSError` if that fails.

    **Reference:** Gradient-based learning applied to document recognition, Y. LeCun et al., Proceedings of the IEEE
    86, 1998.
    """
    return Split(_load("train", folder), _load("t10k", folder))


def _load(part: str, folder: str | os.PathLike | None) -> Images:
    image_path = _find(f"{part}-images-idx3-ubyte.gz", folder)
    label_path = _find(f"{part}-labels-idx1-ubyte.gz", folder)
    pixels, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(pixels) != len(labels):
        raise ValueError(
            f"`{label_path}` has {len(labels)} labels for the {len(pixels)} images of `{image_path}`; "
            "replace both by files that belong together."
        )
    return Images(pixels / np.float32(255), labels.astype(np.int32))


def _find(name: str, folder: str | os.PathLike | None) -> Path:
    if folder is not None:
        return Path(folder, name)
    if root := os.environ.get("FLOWKIT_DATA"):
        for path in (Path(root, "mnist", name), Path(root, name)):
            if path.is_file():
                return path
    return _download(name)


def _download(name: str) -> Path:
    """The file in the cache, fetched from the first mirror that has it unless it is there already."""
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f'`load_mnist` found no {name} and downloads it with pooch: `pip install "flowkit-jax[download]"`; '
            "or set the environment variable FLOWKIT_DATA to the folder that has it."
        ) from error
    cache = pooch.os_cache("flowkit") / "mnist"
    failures: list[Any] = []
    for mirror in _MIRRORS:
        try:
            return Path(
                pooch.retrieve(
                    mirror + name,
                    f"sha256:{_SHA256[name]}",
                    name,
                    cache,
                    progressbar=True,
                )
            )
        # A connection that failed, or a file with another checksum.
        except (OSError, ValueError) as error:
            failures.append(f"{mirror + name} ({error})")
    raise OSError(
        f"{name} could not be downloaded from {', nor from '.join(failures)}; put it into {cache}/ by hand."
    )
