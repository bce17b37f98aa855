"""Data larger than memory: a folder of `.npz` files, whose rows are read in place.

`numpy.savez` stores arrays one after the other without compression, so each of them can be
mapped into memory, and a batch reads its own rows alone.
"""

import functools as ft
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowkit.data._npz import DAMAGED, parse_header, read_header


class Part(NamedTuple):
    """One array of one file: where its numbers begin, and how they are laid out."""

    path: Path
    # Maps are cached by their part, and a new file may have the path of an old one.
    version: tuple[int, ...]
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype
    order: str


# A map holds its file open, and a process may have some thousand of them.
@ft.lru_cache(maxsize=256)
def _mapped(part: Part) -> np.ndarray:
    """The array, of which nothing is read yet."""
    if _version(part.path.stat()) != part.version:
        raise ValueError(
            f"`{part.path}` was written anew; call `fk.data.npz_folder` again."
        )
    how: Any = {"mode": "r", "offset": part.start, "order": part.order}
    return np.memmap(part.path, part.dtype, shape=part.shape, **how)


def _version(stat: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written anew."""
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


class StoredArray:
    """An array in several files, joined along the first axis. `array[rows]` reads rows.

    It has the shape and the type of the whole, and is a leaf of the pytrees that
    `fk.data.batches` takes. `array[3]` is one row; `np.asarray(array)`, and whatever else
    needs all rows, reads all of them into memory. Worker processes open the files for
    themselves.
    """

    def __init__(self, parts: list[Part]):
        self._parts = parts
        lengths = [part.shape[0] for part in parts]
        self._ends = np.cumsum(lengths)
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype.newbyteorder("=")

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(
                "the rows of a `StoredArray` are read from files, which is a copy; leave "
                "`copy=False` out."
            )
        return np.asarray(self[:], dtype)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if not isinstance(rows, slice) and np.ndim(rows) == 0:
            return self[np.reshape(rows, 1)][0]
        rows = self._numbers(rows)
        files = np.searchsorted(self._ends, rows, side="right")
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for number in np.unique(files):
            here = files == number
            first = self._ends[number] - self._parts[number].shape[0]
            found[here] = _mapped(self._parts[number])[rows[here] - first]
        return found

    def _numbers(self, rows: Any) -> np.ndarray:
        """Which rows are meant."""
        if isinstance(rows, slice):
            return np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        if rows.dtype == np.bool_ and rows.shape == (len(self),):
            return np.flatnonzero(rows)
        if rows.ndim != 1 or not (
            np.issubdtype(rows.dtype, np.integer) or not rows.size
        ):
            raise IndexError(
                "rows must be a number, a slice, a mask of all rows, or numbers as a 1-D "
                f"array, got {rows.dtype}{list(rows.shape)}."
            )
        rows = np.where(rows < 0, rows + len(self), rows).astype(np.int64)
        if np.any((rows < 0) | (rows >= len(self))):
            raise IndexError(f"rows must lie in 0 ... {len(self) - 1}.")
        return rows


def npz_folder(
    folder: str | os.PathLike[str], pattern: str = "*.npz"
) -> dict[str, StoredArray]:
    """The arrays of a folder of `.npz` files as if they were one, without reading them.

    ```python
    data = fk.data.npz_folder("simulations")  # {"x": ..., "theta": ...}
    batches = fk.data.batches(data, 256)
    fk.training.fit(loss, model, batches, num_steps=10_000, key=key)
    ```

    `fk.data.batches` shuffles over all files, gives each process its part of every batch,
    and reads only the rows of that part.

    **Arguments:**

    - `folder`: the folder. Files are taken in the order of their names.
    - `pattern`: which files of the folder.

    **Returns:** a dict from each name in the files to an array that has `shape` and
    `dtype` and is read with `array[rows]`.

    **Raises:** `ValueError`, with the name of the file and the fix, for a folder without
    such files, files that hold other names, types or shapes than the first one, compressed
    files, and damaged ones; when rows are read, for files that were written anew since.
    `FileNotFoundError` if there is no such folder.
    """
    paths = paths_in(folder, pattern)
    files = [_parts_of(path) for path in paths]
    for path, parts in zip(paths, files, strict=True):
        if _layout(parts) != _layout(files[0]):
            raise ValueError(
                f"`{path}` holds {_layout(parts)}, but `{paths[0]}` holds "
                f"{_layout(files[0])}; all files need the same names, types and shapes."
            )
    return {name: StoredArray([file[name] for file in files]) for name in files[0]}


def paths_in(folder: str | os.PathLike[str], pattern: str) -> list[Path]:
    """The files of a folder, sorted by name; at least one."""
    # Names below the working folder mean other files when it changes.
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"`folder`: there is no folder {folder}.")
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise ValueError(f"`folder`: {folder} holds no file {pattern}.")
    return paths


def _layout(parts: dict[str, Part]) -> dict[str, str]:
    """What has to agree between files."""
    native = lambda part: part.dtype.newbyteorder("=")
    return {name: f"{native(p)}{list(p.shape[1:])}" for name, p in parts.items()}


def _parts_of(path: Path) -> dict[str, Part]:
    """The arrays of one file, sorted by name."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = sorted(archive.infolist(), key=lambda info: info.filename)
                named = {info.filename.removesuffix(".npy"): info for info in members}
                parts = {}
                for name, info in named.items():
                    where = f"`{path}`: `{name}`"
                    read_header(archive, info, size, where)
                    parts[name] = _part(file, path, info, where)
        except DAMAGED as error:
            raise ValueError(
                f"`{path}` is not a whole .npz file ({error}); write it again with "
                "`numpy.savez`."
            ) from error

    lengths = {part.shape[:1] for part in parts.values()}
    if len(lengths) != 1 or () in lengths:
        shapes = {name: part.shape for name, part in parts.items()}
        raise ValueError(
            f"`{path}` must hold arrays with equal first axes, the examples, got {shapes}."
        )
    return parts


def _part(file: Any, path: Path, info: zipfile.ZipInfo, where: str) -> Part:
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
            f"{where} is compressed, so its rows cannot be read one by one; save it with "
            "`numpy.savez`."
        )
    # The directory of the archive says where a member begins; its own header has 30 bytes,
    # then its name and more, whose lengths are the last two numbers of those 30 bytes.
    file.seek(info.header_offset + 26)
    lengths = struct.unpack("<HH", file.read(4))
    file.seek(info.header_offset + 30 + sum(lengths))
    header = parse_header(file, where)
    order = "F" if header.fortran_order else "C"
    version = _version(os.fstat(file.fileno()))
    return Part(path, version, file.tell(), header.shape, header.dtype, order)
