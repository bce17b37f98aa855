"""Data larger than memory: a folder of ArrayRecord files, whose records are read one by one."""

import dataclasses
import functools as ft
import io
import os
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain
import numpy as np

from flowkit.data._npz import check_header, DAMAGED, Header, parse_header
from flowkit.data._shards import paths_in


def array_record_folder(
    folder: str | os.PathLike[str],
    pattern: str = "*.array_record*",
    *,
    parse: Callable[[bytes], Any] | None = None,
) -> grain.MapDataset:
    """The examples in a folder of ArrayRecord files, without reading them.

    ```python
    data = fk.data.array_record_folder("simulations")  # data[3] is {"x": ..., "theta": ...}
    batches = fk.data.batches(data, 256)
    fk.training.fit(loss, model, batches, num_steps=10_000, key=key)
    ```

    `fk.data.batches` shuffles over all files, gives each process its part of every batch,
    and reads only the records of that part. With the same seed, they equal the batches of
    the same data in memory. Apply grain's own operations to the dataset first:
    `data[1000:]` holds all but the first thousand examples, and `data.map(fn)` changes each
    of them.

    A record is one example. Without `parse`, it must hold the output of `numpy.save` (one
    array) or of `numpy.savez` (several arrays by name); nothing is unpickled. Write such
    files with ArrayRecord itself, which is installed with grain:

    ```python
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter("simulations/0.array_record", "group_size:1")
    for x, theta in simulations:
        record = io.BytesIO()
        np.savez(record, x=x, theta=theta)
        writer.write(record.getvalue())
    writer.close()
    ```

    **Arguments:**

    - `folder`: the folder. Files are taken in the order of their names.
    - `pattern`: which files of the folder.
    - `parse`: a function of the bytes of a record that returns the example, a pytree of
        arrays.

    **Returns:** a `grain.MapDataset` of examples.

    **Raises:** `ValueError`, with the name of the file and the fix, for a folder without
    such files or without records, and for files that are cut short or are not ArrayRecord
    files; when examples are read, for damaged records and for those in another encoding.
    The first example is read at once. `FileNotFoundError` if there is no such folder.
    """
    paths = paths_in(folder, pattern)
    read = ft.partial(_open, parse=parse or _arrays)
    # Each of them is asked for its length, which may take long on a remote disk.
    with ThreadPoolExecutor() as threads:
        files = list(threads.map(read, paths))

    files = [file for file in files if len(file)]
    if not files:
        raise ValueError(
            f"`folder`: the files {pattern} in {paths[0].parent} hold no records."
        )
    # A wrong `parse` is noticed before training starts.
    _ = files[0][0]
    sources = [grain.MapDataset.source(file) for file in files]
    return grain.MapDataset.concatenate(sources)


@dataclasses.dataclass(frozen=True)
class _Examples:
    """The parsed records of one file, as a source of grain."""

    path: Path
    records: grain.sources.RandomAccessDataSource[bytes]
    parse: Callable[[bytes], Any]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        try:
            record = self.records[index]
        except RuntimeError as error:
            raise ValueError(
                f"`{self.path}`: record {index} is damaged ({error}); write the file "
                "again."
            ) from error

        try:
            return self.parse(record)
        except Exception as error:
            error.add_note(f"This is record {index} of `{self.path}`.")
            raise


def _open(path: Path, parse: Callable[[bytes], Any]) -> _Examples:
    try:
        records: Any = grain.sources.ArrayRecordDataSource(str(path))
    except RuntimeError as error:
        raise ValueError(
            f"`{path}` is not a whole ArrayRecord file ({error}); write it again, and "
            "close its writer."
        ) from error
    return _Examples(path, records, parse)


def _arrays(record: bytes) -> Any:
    """One array, or several by name."""
    try:
        if not record.startswith(b"PK"):
            return _array(record)
        with zipfile.ZipFile(io.BytesIO(record)) as archive:
            return {
                info.filename.removesuffix(".npy"): _array(archive.read(info))
                for info in archive.infolist()
            }
    except (ValueError, *DAMAGED) as error:
        raise ValueError(
            f"a record is not what `numpy.save` or `numpy.savez` writes ({error}); give "
            "`parse=` for another encoding."
        ) from error


def _array(content: bytes) -> np.ndarray:
    # A header is one line, after up to twelve bytes of any value.
    start = content.find(b"\n", 12) + 1
    header = _header(content[:start])
    check_header(header, len(content) - start, "the array")
    order = "F" if header.fortran_order else "C"
    array = np.ndarray(header.shape, header.dtype, content, start, order=order)
    return array.astype(header.dtype.newbyteorder("="), copy=False)


# All examples have the same few headers, which take longer to read than the numbers.
@ft.lru_cache(maxsize=64)
def _header(line: bytes) -> Header:
    return parse_header(io.BytesIO(line), "the array")
