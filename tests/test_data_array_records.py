"""A folder of ArrayRecord files gives the examples that were written, record by record."""

import io
import pickle

import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

import flowkit as fk


RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 3, 2)).astype(np.float32)
LABELS = RNG.integers(0, 9, size=23)
DATA = {"x": X, "label": LABELS}
# The second file has no records.
CUTS = [(0, 10), (10, 10), (10, 11), (11, 23)]


def encoded(save=np.savez, *args, **arrays):
    record = io.BytesIO()
    save(record, *args, **arrays)
    return record.getvalue()


def named(row):
    return encoded(x=X[row], label=LABELS[row])


def write(folder, record=named):
    folder.mkdir(exist_ok=True)
    for number, (start, stop) in enumerate(CUTS):
        path = folder / f"part_{number}.array_record"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for row in range(start, stop):
            writer.write(record(row))
        writer.close()
    return folder


def spoil(path, where, value):
    content = bytearray(path.read_bytes())
    content[where] = value
    path.write_bytes(content)


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    types = lambda tree: jax.tree.map(lambda leaf: leaf.dtype, tree)
    assert types(one) == types(other)


def test_examples_are_those_that_were_written(tmp_path):
    data = fk.data.array_record_folder(write(tmp_path))
    assert isinstance(data, grain.MapDataset)
    assert len(data) == 23
    for row in (0, 9, 10, 11, 22):
        equal(data[row], {"x": X[row], "label": LABELS[row]})
    equal(data[20:][1], {"x": X[21], "label": LABELS[21]})


LAYOUTS = {
    "one array": lambda row: encoded(np.save, X[row]),
    "fortran": lambda row: encoded(np.save, np.asfortranarray(X[row])),
    "big endian": lambda row: encoded(np.save, X[row].astype(">f4")),
}


@pytest.mark.parametrize("record", LAYOUTS.values(), ids=LAYOUTS)
def test_arrays_without_names(record, tmp_path):
    data = fk.data.array_record_folder(write(tmp_path, record))
    (batch,) = fk.data.batches(data, 9, num_steps=1)
    (resident,) = fk.data.batches(X, 9, num_steps=1)
    equal(batch, resident)


@pytest.mark.parametrize("shape", [(0, 2), ()])
def test_arrays_without_axes_or_entries(shape, tmp_path):
    record = lambda row: encoded(np.savez_compressed, x=np.full(shape, row))
    data = fk.data.array_record_folder(write(tmp_path, record))
    equal(data[3], {"x": np.full(shape, 3)})


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("shard", [{}, {"shard_index": 1, "num_shards": 2}])
def test_batches_are_those_of_arrays_in_memory(num_threads, shard, tmp_path):
    """Over the borders of epochs, and of a process that has a part of each batch."""
    data = fk.data.array_record_folder(write(tmp_path))
    options = {"num_steps": 8, "seed": 3} | shard
    stored = fk.data.batches(data, 8, num_threads=num_threads, **options)
    resident = fk.data.batches(DATA, 8, **options)
    for pair in zip(stored, resident, strict=True):
        equal(*pair)


def test_datasets_of_grain_stand_next_to_arrays(tmp_path):
    """Here a dataset whose examples grain has changed."""
    data = fk.data.array_record_folder(write(tmp_path))
    scaled = data.map(lambda example: 2 * example["x"])
    pair = (scaled, LABELS)
    equal(
        list(fk.data.batches(pair, 7, num_steps=5)),
        list(fk.data.batches((2 * X, LABELS), 7, num_steps=5)),
    )


@pytest.mark.parametrize("position", [0, 4])
def test_resume_is_bitwise(position, tmp_path):
    """After the dataset has traveled to another process, which opens the files itself."""
    data = fk.data.array_record_folder(write(tmp_path))
    batches = fk.data.batches(data, 7, seed=1, num_steps=10)
    iterator = iter(batches)
    for _ in range(position):
        next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    resumed = iter(pickle.loads(pickle.dumps(batches)))
    next(resumed)
    resumed.set_state(state)
    assert len(rest) == 10 - position
    equal(list(resumed), rest)


def test_a_training_resumes_in_the_middle(tmp_path):
    data = fk.data.array_record_folder(write(tmp_path / "data"))
    loss = lambda w, batch, key: jnp.mean((batch["x"] - w) ** 2)

    def fit(num_steps, batches, **options):
        return fk.training.fit(
            loss,
            jnp.zeros((3, 2)),
            fk.data.batches(batches, 5, seed=2),
            optimizer=optax.sgd(0.1),
            num_steps=num_steps,
            progress=False,
            key=jr.key(0),
            **options,
        )

    checkpoints = fk.training.Checkpoints(tmp_path / "run", every=3)
    fit(6, data, checkpoints=checkpoints)
    resumed = fit(11, data, checkpoints=checkpoints)
    equal(resumed.model, fit(11, DATA).model)


def test_splits_are_those_of_arrays_in_memory(tmp_path):
    data = fk.data.array_record_folder(write(tmp_path))
    stored = fk.data.train_test_split(data, test_fraction=0.3)
    equal(stored, fk.data.train_test_split(DATA, test_fraction=0.3))


def test_encodings_of_your_own(tmp_path):
    data = fk.data.array_record_folder(
        write(tmp_path, lambda row: X[row].tobytes()),
        parse=lambda record: np.frombuffer(record, np.float32).reshape(3, 2),
    )
    (batch,) = fk.data.batches(data, 23, num_steps=1)
    (resident,) = fk.data.batches(X, 23, num_steps=1)
    equal(batch, resident)


BAD = {
    "bytes": b"any bytes",
    "no bytes": b"",
    "cut archive": named(0)[:-30],
    "cut array": encoded(np.save, X[0])[:-1],
    "long array": encoded(np.save, X[0]) + b"0",
    "objects": encoded(np.save, np.array([None])),
    "objects by name": encoded(x=np.array([None])),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("row", [0, 12])
def test_records_of_another_encoding(bad, row, tmp_path):
    """The first one is seen at once."""
    write(tmp_path, lambda number: bad if number == row else named(number))
    with pytest.raises(ValueError, match="not what `numpy.save`.*`parse=`") as caught:
        _ = fk.data.array_record_folder(tmp_path)[row]
    number, part = (1, 3) if row else (0, 0)
    assert caught.value.__notes__[0] == (
        f"This is record {number} of `{tmp_path}/part_{part}.array_record`."
    )


def test_errors_of_a_parser_say_where(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        fk.data.array_record_folder(write(tmp_path), parse=lambda record: 1 // 0)
    assert "record 0 of" in caught.value.__notes__[0]


def test_damaged_records(tmp_path):
    """Their checksums are wrong; all others are read."""
    path = write(tmp_path, lambda row: RNG.bytes(1000)) / "part_3.array_record"
    before = path.read_bytes()
    # The records lie one after the other, from the start of the file.
    spoil(path, 3500, before[3500] ^ 1)
    data = fk.data.array_record_folder(tmp_path, parse=np.array)
    bad = []
    for row in range(23):
        try:
            data[row]
        except ValueError:
            bad.append(row)
    (row,) = bad
    with pytest.raises(ValueError, match=f"part_3.*`: record {row - 11} is damaged"):
        list(fk.data.batches(data, 23, num_steps=1))


@pytest.mark.parametrize("kept", [0, 10, 70_000])
def test_truncated_and_foreign_files(kept, tmp_path):
    path = write(tmp_path) / "part_2.array_record"
    path.write_bytes(RNG.bytes(kept) if kept > 10 else path.read_bytes()[:kept])
    message = r"part_2.array_record` is not a whole ArrayRecord file.*write it again"
    with pytest.raises(ValueError, match=message):
        fk.data.array_record_folder(tmp_path)


def test_folders_without_records(tmp_path):
    with pytest.raises(ValueError, match="holds no file"):
        fk.data.array_record_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        fk.data.array_record_folder(tmp_path / "missing")
    ArrayRecordWriter(str(tmp_path / "empty.array_record")).close()
    with pytest.raises(ValueError, match="hold no records"):
        fk.data.array_record_folder(tmp_path)


UNLIKE = {
    "other name": {"y": X[12]},
    "other shape": {"x": X[12, :2]},
    "other type": {"x": X[12].astype(np.float64)},
}


@pytest.mark.parametrize("arrays", UNLIKE.values(), ids=UNLIKE)
def test_examples_that_do_not_fit(arrays, tmp_path):
    record = lambda row: encoded(**(arrays if row == 12 else {"x": X[row]}))
    data = fk.data.array_record_folder(write(tmp_path, record))
    with pytest.raises(ValueError, match="need the same names, types and shapes"):
        list(fk.data.batches(data, 23, num_steps=1))


def test_datasets_without_end_or_with_gaps():
    data = grain.MapDataset.source(X)
    with pytest.raises(ValueError, match=r"leave its `repeat\(\)` out"):
        fk.data.batches(data.repeat(), 4)
    gaps = data.filter(lambda x: x[0, 0] > 0)
    with pytest.raises(ValueError, match="none left out by `filter`"):
        list(fk.data.batches(gaps, 23, num_steps=1))
