"""A folder of files is read as the arrays it was written from, row by row."""

import pickle

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import flowkit as fk


RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 3, 2)).astype(np.float32)
LABELS = RNG.integers(0, 9, size=23)
CUTS = [(0, 10), (10, 11), (11, 23)]


def write(folder, save=np.savez, **changes):
    folder.mkdir(exist_ok=True)
    for number, (start, stop) in enumerate(CUTS):
        arrays = {"x": X[start:stop], "label": LABELS[start:stop]}
        if number == 1:
            arrays |= changes
        save(folder / f"part_{number}.npz", **arrays)
    return folder


def test_rows_are_those_that_were_written(tmp_path):
    data = fk.data.npz_folder(write(tmp_path))
    assert set(data) == {"x", "label"}
    assert data["x"].shape == X.shape
    assert data["x"].dtype == np.float32
    assert len(data["label"]) == 23
    mask = np.arange(23) % 3 == 0
    for rows in (np.array([0, 22, 10, 11, -1, -23]), [], slice(5, None, 2), mask):
        expected = [] if isinstance(rows, list) else np.arange(23)[rows]
        expected = np.array(expected, int)
        np.testing.assert_array_equal(data["x"][rows], X[expected])
        np.testing.assert_array_equal(data["label"][rows], LABELS[expected])
    for row in (0, 10, -1, np.int64(22)):
        np.testing.assert_array_equal(data["x"][row], X[row])


def test_whoever_needs_all_rows_gets_them(tmp_path):
    data = fk.data.npz_folder(write(tmp_path))
    for read in (np.asarray, jnp.asarray, list):
        np.testing.assert_array_equal(read(data["x"]), X)
    assert np.asarray(data["label"], np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="leave `copy=False` out"):
        np.array(data["x"], copy=False)


def test_splits_are_those_of_arrays_in_memory(tmp_path):
    data = fk.data.npz_folder(write(tmp_path))
    stored = fk.data.train_test_split(data, test_fraction=0.3)
    resident = fk.data.train_test_split({"x": X, "label": LABELS}, test_fraction=0.3)
    jax.tree.map(np.testing.assert_array_equal, stored, resident)


@pytest.mark.parametrize("change", ["fortran", "big endian"])
def test_other_layouts(change, tmp_path):
    part = X[10:11]
    part = np.asfortranarray(part) if change == "fortran" else part.astype(">f4")
    data = fk.data.npz_folder(write(tmp_path, x=part))
    found = data["x"][np.arange(23)]
    np.testing.assert_array_equal(found, X)
    assert found.dtype == np.dtype("=f4")


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    """Nor is it pickled, as it is for worker processes."""
    data = fk.data.npz_folder(write(tmp_path))["x"]
    data[np.array([3])]
    stored = pickle.dumps(data)
    assert len(stored) < 2000
    np.testing.assert_array_equal(pickle.loads(stored)[np.array([3, 22])], X[[3, 22]])


def test_a_file_that_is_written_anew_is_read_anew(tmp_path):
    for value in (0, 1):
        sets = fk.data.PointSets(np.full((4, 2, 1), value, np.float32))
        fk.data.save_npz(tmp_path / "sets.npz", sets)
        data = fk.data.npz_folder(tmp_path)
        np.testing.assert_array_equal(data["points"][:], sets.points)
        (batch,) = fk.data.batches(data, 4, num_steps=1)
        np.testing.assert_array_equal(batch["points"], sets.points)


def test_rows_of_files_that_have_changed_are_not_read(tmp_path):
    data = fk.data.npz_folder(write(tmp_path))
    np.savez(tmp_path / "part_0.npz", x=X[:9], label=LABELS[:9])
    np.testing.assert_array_equal(data["x"][10:], X[10:])
    with pytest.raises(ValueError, match="part_0.npz` was written anew; call"):
        data["x"][:1]


def test_folders_are_those_of_the_call(tmp_path, monkeypatch):
    for number in (3, 4):
        folder = tmp_path / f"run{number}" / "sims"
        folder.mkdir(parents=True)
        np.savez(folder / "part.npz", x=np.full(5, number))
    found = []
    for number in (3, 4):
        monkeypatch.chdir(tmp_path / f"run{number}")
        found.append(fk.data.npz_folder("sims")["x"])
    for number, array in zip((3, 4), found, strict=True):
        np.testing.assert_array_equal(array[:], number)


def test_batches_are_those_of_arrays_in_memory(tmp_path):
    data = fk.data.npz_folder(write(tmp_path))
    stored = iter(fk.data.batches(data, 7, seed=3))
    resident = iter(fk.data.batches({"x": X, "label": LABELS}, 7, seed=3))
    for _ in range(8):
        one, other = next(stored), next(resident)
        for name in ("x", "label"):
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("whole", [False, True])
def test_a_model_is_trained_on_them(whole, tmp_path):
    data = fk.data.npz_folder(write(tmp_path))
    loss = lambda w, batch, key: jnp.mean((batch["x"] - w) ** 2)
    result = fk.training.fit(
        loss,
        jnp.zeros((3, 2)),
        data if whole else fk.data.batches(data, 23),
        optimizer=optax.sgd(1.0),
        num_steps=50,
        progress=False,
        key=jr.key(0),
    )
    np.testing.assert_allclose(result.model, X.mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("rows", [[0, 23], [-24], 23, [0.5], 0.5, [[1]], [True, False]])
def test_wrong_rows(rows, tmp_path):
    data = fk.data.npz_folder(write(tmp_path))
    with pytest.raises(IndexError, match="rows must"):
        data["x"][rows]


BAD = {
    "other name": ({"y": X[10:11]}, "all files need the same names"),
    "other shape": ({"x": X[10:11, :2]}, "all files need the same names"),
    "other type": ({"x": X[10:11].astype(np.float64)}, "all files need the same names"),
    "other length": ({"x": X[10:13]}, "equal first axes"),
    "number": ({"x": np.float32(3)}, "equal first axes"),
    "objects": ({"x": np.array([None])}, "never unpickled"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_files_that_do_not_fit(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fk.data.npz_folder(write(tmp_path, **changes))


def test_compressed_files(tmp_path):
    write(tmp_path, save=np.savez_compressed)
    with pytest.raises(ValueError, match="is compressed.*savez"):
        fk.data.npz_folder(tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 200, 400])
def test_truncated_files(kept, tmp_path):
    path = write(tmp_path) / "part_1.npz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"part_1.npz.*write it again"):
        fk.data.npz_folder(tmp_path)


def test_folders_without_files(tmp_path):
    with pytest.raises(ValueError, match="holds no file"):
        fk.data.npz_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        fk.data.npz_folder(tmp_path / "missing")
