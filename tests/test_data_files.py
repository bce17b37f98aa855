"""Files of point clouds: round trips, and every kind of damage."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
from numpy.lib import format as npy

from flowkit import data


def make_sets(dtype: type = np.float32, dims: int = 3):
    rng = np.random.default_rng(0)
    mask = rng.random((5, 7)) < 0.7
    mask[:, 0] = True
    return data.PointSets(
        rng.normal(2, 3, (5, 7, dims)).astype(dtype), mask, np.arange(5) - 2
    )


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("fields", [(), ("mask",), ("labels",), ("mask", "labels")])
def test_save_and_load_round_trip(tmp_path, fields, dtype, dims):
    full = make_sets(dtype, dims)
    sets = data.PointSets(full.points, **{name: getattr(full, name) for name in fields})
    data.save_npz(tmp_path / "sets.npz", sets)
    assert equal(data.load_npz(tmp_path / "sets.npz"), sets)
    assert os.listdir(tmp_path) == ["sets.npz"]


@pytest.mark.parametrize(
    "save", [np.savez, np.savez_compressed], ids=["stored", "deflated"]
)
def test_loads_what_numpy_saves(tmp_path, save):
    """Either memory order and either byte order, and arrays of other names beside."""
    sets = make_sets()
    points = np.asfortranarray(sets.points.astype(">f4"))
    save(
        tmp_path / "sets.npz",
        points=points,
        mask=sets.mask,
        labels=sets.labels,
        names=np.array(["a", "b"]),
    )
    loaded = data.load_npz(str(tmp_path / "sets.npz"))
    assert equal(loaded, sets)
    assert loaded.points.flags.c_contiguous


def test_hidden_points_are_cleaned(tmp_path):
    sets = make_sets()
    mask = np.asarray(sets.mask)
    sets.points[~mask] = np.nan
    np.savez(tmp_path / "sets.npz", points=sets.points, mask=mask)
    loaded = data.load_npz(tmp_path / "sets.npz")
    assert np.all(loaded.points[~mask] == 0)
    assert np.array_equal(loaded.points[mask], sets.points[mask])


POINTS = np.ones((5, 7, 3), np.float32)
HOLE = np.where(np.arange(7)[:, None] == 4, np.nan, POINTS).astype(np.float32)
DARK = np.ones((5, 7), bool) & (np.arange(5) != 3)[:, None]
BAD = {
    "no points": (dict(cloud=POINTS), "has no array `points`, only cloud.npy"),
    "a matrix": (dict(points=POINTS[0]), r"`points` must have shape .* got \(7, 3\)"),
    "integers": (
        dict(points=POINTS.astype(int)),
        "`points` must be real numbers, got int64",
    ),
    "complex numbers": (
        dict(points=POINTS.astype(complex)),
        "`points` must be real numbers",
    ),
    "text": (dict(points=POINTS.astype(str)), "`points` must be real numbers"),
    "no clouds": (dict(points=POINTS[:0]), "`points` is empty"),
    "no points in a cloud": (dict(points=POINTS[:, :0]), "`points` is empty"),
    "no dimensions": (dict(points=POINTS[:, :, :0]), "`points` is empty"),
    "not finite": (dict(points=HOLE), "`points` is not finite at point 4 of cloud 0"),
    "not finite but masked elsewhere": (
        dict(points=HOLE, mask=DARK | True),
        "not finite at point 4",
    ),
    "hidden cloud": (
        dict(points=POINTS, mask=DARK),
        "`mask` hides every point of cloud 3",
    ),
    "float mask": (dict(points=POINTS, mask=DARK * 1.0), "`mask` must be boolean"),
    "mask of other clouds": (
        dict(points=POINTS, mask=DARK[:4]),
        r"`mask` must be boolean of shape \(5, 7\)",
    ),
    "labels of other clouds": (
        dict(points=POINTS, labels=np.arange(4)),
        r"`labels` must be integers of shape \(5,\)",
    ),
    "float labels": (
        dict(points=POINTS, labels=np.ones(5)),
        "`labels` must be integers",
    ),
    "objects": (dict(points=np.array([POINTS, None], object)), "holds Python objects"),
}


@pytest.mark.parametrize(("arrays", "fragment"), BAD.values(), ids=BAD)
def test_bad_content_names_file_and_fix(tmp_path, arrays, fragment):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=rf"(?s)bad\.npz.*{fragment}"):
        data.load_npz(path)


@pytest.mark.parametrize(
    "name", [name for name, (arrays, _) in BAD.items() if "points" in arrays]
)
def test_save_refuses_what_load_would(tmp_path, name):
    path = tmp_path / "sets.npz"
    data.save_npz(path, make_sets())
    with pytest.raises(ValueError, match="`sets`"):
        data.save_npz(path, data.PointSets(**BAD[name][0]))
    assert equal(data.load_npz(path), make_sets())


def test_pickles_are_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "bomb.npz"
    for bad in ("points", "mask", "labels"):
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("points", "mask", "labels"):
                archive.writestr(
                    f"{name}.npy",
                    pickle.dumps(Bomb()) if name == bad else as_npy(POINTS),
                )
        with pytest.raises(
            ValueError, match=f"bomb.npz`: `{bad}` is not a NumPy array"
        ):
            data.load_npz(path)
    assert not (tmp_path / "ran").exists()


def as_npy(array, shape=None):
    """An array as the bytes of a file, whose header may claim another shape."""
    file = io.BytesIO()
    header = {
        "descr": array.dtype.str,
        "fortran_order": False,
        "shape": shape or array.shape,
    }
    npy.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


@pytest.mark.parametrize(
    "shape", [(10**6, 10**5, 3), (5, 7, 2), (5, 7, 4), (-5, -7, 3), (10**30, 10**30, 3)]
)
def test_a_lying_header_allocates_nothing(tmp_path, shape):
    path = tmp_path / "liar.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("points.npy", as_npy(POINTS, shape))
    tracemalloc.start()
    with pytest.raises(ValueError, match="liar.npz.*`points` (has a header for|must)"):
        data.load_npz(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"]
)
def test_a_lying_directory_allocates_nothing(tmp_path, method):
    """The header claims 2 GB, and so does the archive's own directory."""
    path = tmp_path / "liar.npz"
    shape = (10, 7 * 10**6, 7)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("points.npy", as_npy(POINTS, shape))
        true_size = archive.infolist()[0].file_size
    claimed = true_size - POINTS.nbytes + 4 * int(np.prod(shape))
    content = path.read_bytes()
    assert content.count(struct.pack("<I", true_size)) >= 2
    path.write_bytes(
        content.replace(struct.pack("<I", true_size), struct.pack("<I", claimed))
    )
    tracemalloc.start()
    with pytest.raises(ValueError, match="liar.npz"):
        data.load_npz(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


@pytest.mark.parametrize(
    "save", [np.savez, np.savez_compressed], ids=["stored", "deflated"]
)
def test_every_cut_and_random_damage_is_an_error_or_harmless(tmp_path, save):
    path = tmp_path / "damaged.npz"
    sets = make_sets()
    save(path, **sets._asdict())
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(300):
        content = bytearray(
            whole[: rng.integers(len(whole))] if trial % 3 == 0 else whole
        )
        for place in rng.integers(0, max(len(content), 1), 3 if content else 0):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            loaded = data.load_npz(path)
        except ValueError as error:
            assert "damaged.npz" in str(error)  # noqa: PT017
        else:
            assert np.array_equal(loaded.points, sets.points)


@pytest.mark.parametrize(
    "content", [b"", b"not a zip", as_npy(POINTS)], ids=["empty", "text", "npy"]
)
def test_foreign_files_are_named(tmp_path, content):
    path = tmp_path / "foreign.npz"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match="foreign.npz` is not a whole .npz file.*save_npz"
    ):
        data.load_npz(path)


def test_missing_files_and_folders_are_the_systems_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.npz"):
        data.load_npz(tmp_path / "absent.npz")
    with pytest.raises(FileNotFoundError, match="absent"):
        data.save_npz(tmp_path / "absent" / "sets.npz", make_sets())


def test_an_interrupted_save_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "sets.npz"
    data.save_npz(path, make_sets())

    def fail(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(KeyboardInterrupt):
        data.save_npz(path, make_sets(np.float64))
    assert equal(data.load_npz(path), make_sets())
    assert os.listdir(tmp_path) == ["sets.npz"]


def test_normalize_and_undo():
    sets = make_sets()
    mask = np.asarray(sets.mask)
    sets.points[~mask] = np.inf
    normal, units = data.normalize(sets)
    valid = normal.points[mask]
    assert np.allclose(valid.mean(axis=0), 0, atol=1e-6)
    assert np.mean(valid**2) == pytest.approx(1, rel=1e-6)
    assert np.all(normal.points[~mask] == 0)
    assert normal.points.dtype == units.scale.dtype == np.float32
    assert np.allclose(units.undo(valid), sets.points[mask], atol=1e-5)
    assert np.allclose(jax.jit(units.apply)(sets.points[mask]), valid, atol=1e-6)
    assert normal.labels is sets.labels
    # Proportions are kept: one scale for all axes.
    spread = np.std(sets.points[mask], axis=0)
    assert np.allclose(valid.std(axis=0) * units.scale, spread, rtol=1e-5)


def test_normalize_refuses_a_single_place():
    with pytest.raises(ValueError, match="`sets` has all of its points in one place"):
        # The mean of ten times 0.1 in float64 is not 0.1.
        data.normalize(data.PointSets(np.full((2, 5, 2), 0.1)))
