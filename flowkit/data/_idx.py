"""Arrays of bytes in IDX files, the format of MNIST, compressed by gzip or not.

Files are not trusted: memory is taken only for bytes that are really there.
"""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np


_UINT8 = 8
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
_LIMIT = 1 << 28
"""More than five times MNIST. A file that claims more is refused, however well it
compresses."""


def read_idx(path: str | os.PathLike, ndim: int) -> np.ndarray:
    """The array of unsigned bytes with `ndim` axes that an IDX file holds.

    The file begins with a header: two zeros, the type, the number of axes, and their sizes
    in four bytes each, most significant first. The entries follow. The header is compared
    with what the file can hold before anything is allocated. The first two bytes tell
    whether the file is compressed, whatever its name says.

    **Raises:** `ValueError`, with the file's name and the fix, if the file is anything else
    or is cut short.
    """
    path = Path(path)
    with open(path, "rb") as file:
        compressed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        try:
            if compressed:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    return _read(unpacked, ndim)
            return _read(file, ndim)
        except (_Bad, OSError, EOFError, zlib.error) as error:
            kind = "gzip'd IDX file" if compressed else "IDX file"
            raise ValueError(
                f"`{path}` is not a whole {kind}: {str(error).rstrip('.')}; replace it by "
                f"the original {path.name}, or delete it to have that downloaded."
            ) from error


class _Bad(Exception):
    """What is wrong with the content."""


def _read(file: Any, ndim: int) -> np.ndarray:
    shape = _read_header(file, ndim)
    content = _read_content(file, math.prod(shape))
    # The content is a `bytearray`, not `bytes`, so the array can be written to.
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_header(file: Any, ndim: int) -> tuple[int, ...]:
    magic = file.read(4)
    wanted = bytes([0, 0, _UINT8, ndim])
    if magic != wanted:
        found = magic.hex(" ") or "nothing"
        raise _Bad(
            f"it begins with {found}, where {wanted.hex(' ')} is expected, bytes with "
            f"{ndim} axes"
        )

    sizes = file.read(4 * ndim)
    if len(sizes) != 4 * ndim:
        raise _Bad("it ends within its header")

    shape = struct.unpack(f">{ndim}I", sizes)
    if 0 in shape or math.prod(shape) > _LIMIT:
        raise _Bad(
            f"its header claims the shape {shape}, which is empty or more than "
            f"{_LIMIT} bytes"
        )
    return shape


def _read_content(file: Any, size: int) -> bytearray:
    """Grows with the bytes that are there, and stops after those that were announced."""
    content = bytearray()
    # One byte more than announced is asked for, to notice a file that is too long.
    while chunk := file.read(min(_CHUNK, size + 1 - len(content))):
        content += chunk
    if len(content) != size:
        found = "more" if len(content) > size else str(len(content))
        raise _Bad(f"its header announces {size} bytes, but {found} follow it")
    return content
