"""Arrays of bytes in gzip'd IDX files, the format of MNIST: no memory but for bytes that are really there."""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np


_UINT8 = 8
_CHUNK = 1 << 20
_LIMIT = 1 << 28
"""More than five times MNIST. What claims more is refused, however well it compresses."""


def read_idx(path: str | os.PathLike, ndim: int) -> np.ndarray:
    """The array of unsigned bytes with `ndim` axes that a gzip'd IDX file holds.

    A header of two zeros, the type, the number of axes and their sizes in four bytes each, most significant first; then
    the entries. The header is compared with what the file can hold before anything is allocated.

    **Raises:** `ValueError`, with the file's name and what to do, if the file is anything else or is cut short.
    """
    path = Path(path)
    fix = (
        f"replace it by the original {path.name}, or delete it to have that downloaded"
    )
    with open(path, "rb") as compressed:
        try:
            with gzip.GzipFile(fileobj=compressed) as file:
                shape = _read_header(file, ndim)
                content = _read_content(file, math.prod(shape))
        except (_Bad, OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"`{path}` is not a whole gzip'd IDX file: {str(error).rstrip('.')}; {fix}."
            ) from error
    return np.frombuffer(content, np.uint8).reshape(shape)


class _Bad(Exception):
    """What is wrong with the content."""


def _read_header(file: gzip.GzipFile, ndim: int) -> tuple[int, ...]:
    magic = file.read(4)
    wanted = bytes([0, 0, _UINT8, ndim])
    if magic != wanted:
        raise _Bad(
            f"it begins with {magic.hex(' ') or 'nothing'}, where {wanted.hex(' ')} is the sign of {ndim} axes"
        )
    sizes = file.read(4 * ndim)
    if len(sizes) != 4 * ndim:
        raise _Bad("it ends within its header")
    shape = struct.unpack(f">{ndim}I", sizes)
    if 0 in shape or math.prod(shape) > _LIMIT:
        raise _Bad(
            f"its header claims the shape {shape}, which is empty or more than {_LIMIT} bytes"
        )
    return shape


def _read_content(file: gzip.GzipFile, size: int) -> bytearray:
    """Grows with the bytes that are really there, and stops after those that the header announced."""
    content = bytearray()
    while chunk := file.read(min(_CHUNK, size + 1 - len(content))):
        content += chunk
    if len(content) != size:
        found = "more" if len(content) > size else str(len(content))
        raise _Bad(f"its header announces {size} bytes, but {found} follow it")
    return content
