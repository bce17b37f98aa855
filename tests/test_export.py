"""Exported samplers: the samples of a process without flowkit, and every refusal."""

import json
import subprocess
import sys
import zipfile

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowkit as fk

from .oracles import compilations


# The lines of the page on saving, with imports of flowkit and its libraries made impossible.
STRANGER = """
import sys
sys.modules.update(dict.fromkeys(["flowkit", "equinox", "diffrax", "jaxtyping"]))

import zipfile, jax
with zipfile.ZipFile(sys.argv[1]) as file:
    program = jax.export.deserialize(bytearray(file.read("sampler.bin")))
draw = jax.jit(program.call)

import numpy as np
cond = {"label": np.arange(6), "shift": np.ones((6, 3), np.float32)}
samples = draw(jax.random.key(7), cond)
sys.stdout.buffer.write(np.asarray(samples).tobytes())
"""
CHEAP: dict = {"num_samples": 3, "num_steps": 1, "solver": fk.RK4()}


class Network(eqx.Module):
    layers: eqx.nn.MLP

    def __call__(self, t, x, cond):
        label = cond["label"].astype(x.dtype)
        return self.layers(jnp.concatenate([x, cond["shift"], jnp.stack([t, label])]))


def conditions():
    return {"shift": jnp.ones((6, 3)), "label": jnp.arange(6)}


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A conditional flow in the units of its data, and the file of its sampler."""
    network = Network(eqx.nn.MLP(7, 2, 16, 2, key=jr.key(0)))
    flow = fk.Standardized(fk.Flow(network), 1.0, 2.0)
    path = tmp_path_factory.mktemp("export") / "sampler.zip"
    fk.export_sampler(
        path,
        flow,
        (2,),
        num_samples=6,
        cond=conditions(),
        source=fk.Normal(0.5),
        platforms=("cpu", "cuda"),
    )
    return flow, path


@pytest.fixture(scope="module")
def decaying(tmp_path_factory):
    """The file of dx/dt = -x."""
    path = tmp_path_factory.mktemp("export") / "decay.zip"
    fk.export_sampler(path, lambda t, x, cond: -x, (2,), **CHEAP)
    return path


def rewritten(source, path, **changes):
    """A copy of a sampler with other entries in what it says of itself."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        about = json.loads(old.read("about.json"))
        new.writestr("about.json", json.dumps(about | changes))
        new.writestr("sampler.bin", old.read("sampler.bin"))
    return path


def test_a_process_without_flowkit_draws_the_same_samples(conditional):
    flow, path = conditional
    expected = fk.sample(
        flow,
        (2,),
        num_samples=6,
        cond=conditions(),
        source=fk.Normal(0.5),
        key=jr.key(7),
    ).values
    command = [sys.executable, "-I", "-W", "error", "-c", STRANGER, str(path)]
    run = subprocess.run(command, check=True, capture_output=True)
    found = np.frombuffer(run.stdout, np.float32).reshape(6, 2)
    np.testing.assert_array_equal(found, expected)

    sampler = fk.load_sampler(path)
    np.testing.assert_array_equal(sampler(jr.key(7), conditions()), expected)
    with compilations() as events:
        others = sampler(jr.key(8), conditions())
    assert not events
    assert np.all(others != expected)


def test_what_the_file_says(conditional):
    about = fk.load_sampler(conditional[1]).about
    assert about["flowkit"] == fk.__version__
    assert about["jax"] == jax.__version__
    assert about["platforms"] == ["cpu", "cuda"]
    assert about["samples"] == "f32[6,2]"
    assert about["arguments"] == {
        "key": "key<fry>[]",
        "cond": "{'label': i32[6], 'shift': f32[6,3]}",
        "mask": "None",
    }


def test_clouds_with_masks(tmp_path, key):
    """The points move to the mean of the valid ones."""

    def field(t, x, cond, mask=None):
        keep = mask[:, None]
        return jnp.sum(jnp.where(keep, x, 0), axis=0) / jnp.sum(keep, dtype=x.dtype) - x

    path = tmp_path / "clouds.zip"
    mask = np.arange(5) < np.array([[2], [5], [3]])
    spec = jax.ShapeDtypeStruct(mask.shape, mask.dtype)
    fk.export_sampler(path, field, (5, 2), mask=spec, **CHEAP)
    found = fk.load_sampler(path)(key, None, mask)
    expected = fk.sample(field, (5, 2), mask=mask, key=key, **CHEAP).values
    np.testing.assert_array_equal(found, expected)
    assert np.all(np.asarray(found)[~mask] == 0)


def test_samples_that_fail_are_nan(tmp_path, key):
    field = lambda t, x, cond: -30 * x**3
    # Some samples need more steps, others fewer.
    options = {"num_samples": 32, "max_steps": 12}
    fk.export_sampler(tmp_path / "few.zip", field, (1,), **options)
    found = fk.load_sampler(tmp_path / "few.zip")(key)
    expected = fk.sample(field, (1,), key=key, throw=False, **options)
    steps = expected.stats.accepted + expected.stats.rejected
    failed = np.isnan(found)[:, 0]
    assert 0 < np.sum(failed) < 32
    np.testing.assert_array_equal(found[~failed], expected.values[~failed])
    assert np.all(steps[failed] == 12)


@pytest.mark.parametrize("own_steps", [False, True], ids=["grid", "learned"])
def test_grids_and_the_jump_to_the_data(own_steps, tmp_path, key):
    flow = fk.Flow(lambda t, x, cond: jnp.tanh(x), prediction=fk.Target())
    if own_steps:
        times = np.array([0, 0.3, 1], np.float32)
        weights = np.tril(np.full((2, 2), 0.4, np.float32))
        solver = fk.solvers.LearnedSteps(times, np.ones(2, np.float32), weights)
        options = {"solver": solver}
    else:
        grid = dfx.StepTo(np.array([0, 0.3, flow.t_end], np.float32))
        options = {"solver": dfx.Euler(), "stepsize_controller": grid}
    fk.export_sampler(tmp_path / "a.zip", flow, (2,), num_samples=3, **options)
    found = fk.load_sampler(tmp_path / "a.zip")(key)
    expected = fk.sample(flow, (2,), num_samples=3, key=key, **options).values
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("cond", "fragment"),
    [
        (None, r"`cond` must be \{'label': i32\[6\], .* got None"),
        ({"label": np.arange(6), "shift": np.ones((6, 4))}, r"got .*f32\[6,4\]"),
        ({"label": np.ones(6), "shift": np.ones((6, 3))}, r"got .*'label': f32\[6\]"),
        ({"shift": np.ones((6, 3))}, r"got \{'shift': f32\[6,3\]\}"),
    ],
    ids=["missing", "shape", "type", "structure"],
)
def test_conditions_of_another_kind(conditional, cond, fragment):
    with pytest.raises(ValueError, match=fragment):
        fk.load_sampler(conditional[1])(jr.key(0), cond)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"format": 99, "flowkit": "9.0"}, "written by flowkit 9.0.*update flowkit"),
        ({"calling_convention_version": 99, "jax": "9.0"}, "jax 9.0.*update jax"),
        ({"calling_convention_version": 1}, "export the sampler again"),
    ],
    ids=["format", "newer-jax", "older-jax"],
)
def test_files_from_elsewhere(decaying, tmp_path, changes, fragment):
    path = rewritten(decaying, tmp_path / "elsewhere.zip", **changes)
    with pytest.raises(ValueError, match=f"elsewhere.zip.*{fragment}"):
        fk.load_sampler(path)


def test_another_platform(tmp_path):
    path = tmp_path / "elsewhere.zip"
    field = lambda t, x, cond: -x
    fk.export_sampler(path, field, (2,), platforms=("cuda", "tpu"), **CHEAP)
    with pytest.raises(ValueError, match="elsewhere.zip.*cuda and tpu, .* on cpu"):
        fk.load_sampler(path)


def test_damaged_files(decaying, tmp_path):
    whole = decaying.read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 1
    path = tmp_path / "broken.zip"
    for content in (b"", b"no archive", whole[:-100], whole[100:], bytes(broken)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="broken.zip` is damaged, or no file"):
            fk.load_sampler(path)

    np.savez(path.with_suffix(".npz"), points=np.zeros(3))
    with pytest.raises(ValueError, match="is damaged, or no file.*about.json"):
        fk.load_sampler(path.with_suffix(".npz"))
    with pytest.raises(FileNotFoundError):
        fk.load_sampler(tmp_path / "nothing.zip")


def test_a_program_that_jax_cannot_read(decaying, tmp_path):
    path = tmp_path / "unknown.zip"
    with zipfile.ZipFile(decaying) as old, zipfile.ZipFile(path, "w") as new:
        new.writestr("about.json", old.read("about.json"))
        new.writestr("sampler.bin", b"of another layout")
    with pytest.raises(ValueError, match="unknown.zip.*cannot read it"):
        fk.load_sampler(path)


def printing(t, x, cond):
    jax.debug.print("{}", t)
    return -x


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"flow": printing}, "`flow` calls Python while it runs"),
        (
            {"platforms": ("gpu",)},
            r"`platforms` must hold some of cpu, cuda.*\('gpu',\)",
        ),
        ({"platforms": "cpu"}, "`platforms` must hold some of .*'cpu'"),
        ({"platforms": ()}, "`platforms` must hold some of"),
        ({"cond": np.ones((4, 2))}, "`cond` must have 3 rows"),
        ({"num_steps": None}, "no error estimate"),
        (
            {"num_steps": None, "stepsize_controller": dfx.StepTo(np.arange(3.0))},
            "StepTo must have times that increase from 0 to 1, where this solve begins",
        ),
    ],
    ids=["callback", "gpu", "string", "nowhere", "rows", "solver", "times"],
)
def test_what_cannot_be_exported(tmp_path, options, fragment):
    options = CHEAP | {"flow": lambda t, x, cond: -x, "shape": (2,)} | options
    with pytest.raises(ValueError, match=fragment):
        fk.export_sampler(tmp_path / "sampler.zip", **options)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named(decaying, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ImportError, match=r"flowkit-jax\[export\]"):
        fk.load_sampler(decaying)
    with pytest.raises(ImportError, match=r"flowkit-jax\[export\]"):
        fk.export_sampler(tmp_path / "a.zip", printing, (2,), **CHEAP)
