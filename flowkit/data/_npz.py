"""Point clouds in `.npz` files of any origin.

Files are not trusted: nothing is unpickled, and memory is taken only for bytes that are
really there.
"""

import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from flowkit._files import replacing
from flowkit.data._layout import check_layout, fields_of
from flowkit.data._sets import check_sets, PointSets, Sets, to_host


_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_CHUNK = 1 << 20
# What `zipfile` raises for foreign bytes, found by damaging files at random. An `OSError`
# comes from a seek to nowhere.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    UnicodeDecodeError,
)


class Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def load_npz(path: str | os.PathLike, kind: type[Sets] = PointSets) -> Sets:
    """Reads point clouds from a `.npz` file.

    The file holds `points` `(b, n, d)` and perhaps `mask` `(b, n)` and `labels` `(b,)`;
    other arrays in it are ignored. Headers are checked before anything of their size is
    allocated, and pickled objects are refused. Points that the mask hides become zero if
    they are not finite, so that no gradient meets them.

    **Arguments:**

    - `path`: the file.
    - `kind`: what to read. `fk.data.PosedSets` or `fk.data.Scenes` add what is known about
        each cloud to its points. A named tuple of your own needs the fields `points` and
        `mask`, annotated by jaxtyping's `Float`, `Int` and `Bool`. A field without
        `| None` must be in the file.

    **Raises:** `ValueError`, with the file's name and the fix, if the file is not an
    `.npz`, is cut short or damaged, lacks `points`, or holds arrays of wrong shape or
    dtype, non-finite valid points, or clouds without a valid point; and for a `kind` with
    other annotations. `OSError` if the file cannot be opened.
    """
    where = f"`{os.fspath(path)}`"
    with open(path, "rb") as file:
        file_size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                sets = _read_sets(archive, kind, file_size, where)
        except DAMAGED as error:
            raise ValueError(
                f"{where} is not a whole .npz file ({error}); write it again with "
                "`fk.data.save_npz`."
            ) from error

    check_sets(sets, where)
    # All of these are masked, as the check has shown.
    points: np.ndarray = sets.points  # pyright: ignore[reportAttributeAccessIssue]
    points[~np.isfinite(points)] = 0
    return sets


def save_npz(path: str | os.PathLike, sets: tuple[Any, ...]) -> None:
    """Writes `PointSets`, `PosedSets` or `Scenes` for `load_npz`, all or nothing.

    The arrays go to a temporary file in the same folder, which replaces `path` when it is
    complete, so what was there before is never lost.
    """
    host = to_host(sets)
    check_sets(host, "`sets`")
    arrays = {
        name: array for name, array in host._asdict().items() if array is not None
    }

    with replacing(Path(path)) as temporary, open(temporary, "xb") as file:
        np.savez(file, **arrays)
        file.flush()
        # On the disk before it replaces the old file, even if the machine stops in
        # between.
        os.fsync(file.fileno())


def _read_sets(
    archive: zipfile.ZipFile, kind: type[Sets], file_size: int, where: str
) -> Sets:
    members = {info.filename: info for info in archive.infolist()}
    fields = fields_of(kind)
    for name, field in fields.items():
        if field.required and f"{name}.npy" not in members:
            found = ", ".join(sorted(members)) or "nothing"
            raise ValueError(
                f"{where} has no array `{name}`, only {found}; save it with "
                f"`numpy.savez(path, {name}=...)`."
            )

    members = {
        name: members[f"{name}.npy"] for name in fields if f"{name}.npy" in members
    }
    headers = {
        name: read_header(archive, info, file_size, f"{where}: `{name}`")
        for name, info in members.items()
    }
    check_layout(headers, kind, where)
    arrays = {
        name: _read_array(archive, info, headers[name], f"{where}: `{name}`")
        for name, info in members.items()
    }

    return kind(**arrays)


def read_header(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, file_size: int, where: str
) -> Header:
    """The header of one array, compared with the number of bytes that the file has."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"{where} is compressed in an unknown way; save it with `numpy.savez`."
        )
    if info.compress_size > file_size:
        raise ValueError(
            f"{where} claims more bytes than the file has; it is cut short or damaged, "
            "write it again."
        )

    with archive.open(info) as file:
        header = parse_header(file, where)
        check_header(header, info.file_size - file.tell(), where)
    return header


def check_header(header: Header, num_bytes: int, where: str) -> None:
    """Raises if the `num_bytes` after a header are not those of its array of numbers."""
    if header.dtype.hasobject:
        raise ValueError(
            f"{where} holds Python objects, which are never unpickled; save an array of "
            "numbers."
        )
    if min(header.shape, default=0) < 0 or header.num_bytes != num_bytes:
        raise ValueError(
            f"{where} has a header for shape {header.shape} of {header.dtype}, "
            f"{header.num_bytes} bytes, but {num_bytes} follow it; it is damaged, write "
            "it again."
        )


def parse_header(file: Any, where: str) -> Header:
    try:
        return Header(*_READERS[npy.read_magic(file)](file))
    # NumPy evaluates the header as a Python literal, which foreign bytes can break in all
    # of these ways.
    except (
        ValueError,
        KeyError,
        TypeError,
        SyntaxError,
        RecursionError,
        MemoryError,
    ) as error:
        raise ValueError(
            f"{where} is not a NumPy array ({error}); save it with `numpy.savez`."
        ) from error


def _read_array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, header: Header, where: str
) -> np.ndarray:
    """Grows with the bytes that are there, whatever header and directory claim."""
    content = bytearray()
    with archive.open(info) as file:
        # The member was opened again, so its header is skipped.
        parse_header(file, where)
        while chunk := file.read(_CHUNK):
            content += chunk

    if len(content) != header.num_bytes:
        raise ValueError(
            f"{where} ends after {len(content)} of {header.num_bytes} bytes; write the file "
            "again."
        )

    order = "F" if header.fortran_order else "C"
    array = np.frombuffer(content, header.dtype).reshape(header.shape, order=order)
    # In the byte order of this machine, the only one that JAX takes.
    return np.ascontiguousarray(array, header.dtype.newbyteorder("="))
