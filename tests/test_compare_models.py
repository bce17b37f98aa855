"""The example that compares models: its files, what it refuses, that nothing is trained twice."""

import dataclasses
import errno
import functools
import json
import os
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest
from PIL import Image, ImageSequence

import flowkit as fk

from .examples import loaded


@pytest.fixture(scope="module")
def example():
    with loaded("compare_models") as module:
        yield module


@pytest.fixture
def config(example, tmp_path):
    return example.Config(
        dim="1d", models=("vae", "backflow"), epochs=2, num_samples=20, hidden_sizes=(8,),
        batch_size=10, num_inference=10, num_judged=20, num_workers=0, output=str(tmp_path / "run"),
    )  # fmt: skip


def arrays_of(model):
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array))
    ]


@pytest.mark.slow
def test_run_and_repetition(example, config, monkeypatch):
    example.main(config)
    output = Path(config.output)
    names = ("vae", "backflow")
    assert {path.name for path in output.iterdir()} == {
        *(f"{name}_1d_visualization.png" for name in names),
        *(f"{name}_1d_epochs" for name in (*names, "comparison")),
        "comparison_1d.gif", "comparison_1d.png", "metrics.json", "config.json", "checkpoints",
    }  # fmt: skip
    for name in (*names, "comparison"):
        frames = sorted((output / f"{name}_1d_epochs").iterdir())
        assert [path.name for path in frames] == ["epoch_0001.png", "epoch_0002.png"]
    with (
        Image.open(output / "comparison_1d.gif") as gif,
        Image.open(output / "comparison_1d.png") as last,
    ):
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
        assert (durations, gif.size) == ([100, 100], last.size)
    metrics = json.loads((output / "metrics.json").read_text())["1d"]
    assert metrics["models"].keys() == set(names)
    for numbers in metrics["models"].values():
        assert min(numbers[key] for key in ("w2", "latent_w2", "seconds")) > 0
    assert "w2_one_step" not in metrics["models"]["vae"]

    models = {
        name: arrays_of(example.final_model(output, name, "1d")) for name in names
    }
    untrained = arrays_of(example.MODELS["vae"].build(config, 1, key=jr.key(0)))
    assert [array.shape for array in models["vae"]] == [
        array.shape for array in untrained
    ]
    # No step could be made with these losses.
    broken = {name: entry._replace(loss=None) for name, entry in example.MODELS.items()}
    monkeypatch.setattr(example, "MODELS", broken)
    example.main(dataclasses.replace(config, frame_every=2))
    for name in names:
        again = arrays_of(example.final_model(output, name, "1d"))
        assert all(
            np.array_equal(a, b) for a, b in zip(models[name], again, strict=True)
        )
    repeated = json.loads((output / "metrics.json").read_text())["1d"]
    # The time of a run that is found does not count its last checkpoint.
    for numbers in (*repeated["models"].values(), *metrics["models"].values()):
        assert numbers.pop("seconds") > 0
    assert repeated == metrics

    with pytest.raises(
        ValueError,
        match="holds a run of another configuration .seed is 42 there and 1 here",
    ):
        example.main(dataclasses.replace(config, seed=1))


def test_every_model_keeps_what_it_promises(example, config):
    """In both dimensions, traced: each entry's outputs are made, with the shapes of figures."""

    # Several models are built alike.
    @functools.cache
    def outputs(build, size):
        z = np.zeros((5, size), np.float32)
        act = lambda key: fk.pipelines.model_outputs(
            build(config, size, key=key), z, z, key=key
        )
        return eqx.filter_eval_shape(act, jr.key(0))

    for size in (1, 2):
        shapes = {"paths": (5, 21, size), "two_steps": (5, 3, size)}
        for name, entry in example.MODELS.items():
            assert entry.outputs, name
            for output in entry.outputs:
                shape = outputs(entry.build, size)[output].shape
                assert shape == shapes.get(output, (5, size)), (name, output)


@pytest.mark.parametrize(
    "coupling", ["assignment", "entropic", "unbalanced", "reweighted"]
)
def test_pairs_are_those_of_the_coupling(example, config, coupling):
    """Each noise and datum of the pairs was drawn; paired by transport they are nearer
    than at random."""
    config = dataclasses.replace(
        config, coupling=coupling, num_samples=64, batch_size=64
    )
    *_, scene = example.make_scene(config, "1d")
    for pairs, drawn in zip(scene.pairs, scene.random_pairs, strict=True):
        assert set(np.ravel(pairs)) <= set(np.ravel(drawn))
    costs = [
        np.mean((np.asarray(x0) - np.asarray(x1)) ** 2)
        for x0, x1 in (scene.pairs, scene.random_pairs)
    ]
    assert costs[0] < 0.7 * costs[1]


def test_mixture_has_exact_counts(example):
    """Narrow modes hold 0.7 and 0.3 of the examples, in every draw."""
    draws = [
        example.make_scene(example.Config(seed=seed), "1d")[1] for seed in range(3)
    ]
    # Between the modes, three standard deviations from the one and four from the other.
    counts = [int((data < 0.4).sum()) for data in draws]
    assert max(abs(count - 350) for count in counts) <= 3


def test_points_of_a_file(example, config, tmp_path):
    path = tmp_path / "points.csv"
    points = np.random.default_rng(0).normal(size=(30, 2)) * 50
    np.savetxt(path, points, delimiter=",")
    config = dataclasses.replace(config, data_2d=str(path))
    _, data, _ = example.make_scene(config, "2d")
    expected = fk.data.fit_unit_box(points)[0]
    assert data.shape == (20, 2)
    gaps = np.linalg.norm(np.asarray(data)[:, None] - expected, axis=-1)
    assert gaps.min(1).max() < 1e-6
    np.savetxt(path, points[:, [0, 1, 1]], delimiter=",")
    with pytest.raises(ValueError, match="has 3 columns, but points of size 2"):
        example.make_scene(config, "2d")


def test_wrong_options_are_refused_before_anything_is_written(example, config):
    for options, message in (
        (
            {"models": ("vae,gan",)},
            "--models must be some of decoder, ae, vae, vae_beta, fm, .*got 'vae,gan'",
        ),
        ({"models": (",",)}, "--models must be some of"),
        ({"data_1d": "moons"}, "`name` must be one of mixture_1d, or .*; got 'moons'"),
        (
            {"data_2d": "moon", "dim": "2d"},
            "`name` must be one of trex, .* or the path of a CSV file .*; got 'moon'",
        ),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"frame_every": 0}, "--frame-every must be at least 1"),
        ({"num_workers": -1}, "--num-workers must be at least 0, got -1"),
        ({"learning_rate": float("nan")}, "--learning-rate must be above 0, got nan"),
        ({"fps": 0}, "--fps must be above 0 and at most 50, got 0"),
        ({"hidden_sizes": (0,)}, "--hidden-sizes must be at least 1, got 0"),
        ({"batch_size": 21}, "--num-samples must be at least --batch-size"),
        (
            {"vae_beta": -1.0, "models": ("fm", "vae_beta")},
            "--vae-beta must be at least 0, got -1",
        ),
        ({"coupling": "assignment", "batch_size": 1}, "too small a batch for a plan"),
        (
            {"vae_beta": 2.0},
            "--vae-beta has no effect here: the model `vae_beta` is not",
        ),
        ({"models": ("vae",), "coupling": "entropic"}, "--coupling has no effect here"),
        ({"data_2d": "trex"}, "--data-2d has no effect here: --dim is 1d"),
        ({"dim": "2d", "data_1d": "x"}, "--data-1d has no effect here: --dim is 2d"),
        ({"num_samples": 0}, "--num-samples must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"num_inference": 0}, "--num-inference must be at least 1"),
        ({"num_judged": 0}, "--num-judged must be at least 1"),
        ({"dpi": 0}, "--dpi must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            example.main(dataclasses.replace(config, **options))
    assert not Path(config.output).exists()


def test_folders_that_cannot_hold_the_run(example, config, tmp_path):
    def opened(config):
        given = example.stored(config, config.models, example.dims_of(config))
        return fk.pipelines.open_run(config.output, given)

    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written to"):
        opened(dataclasses.replace(config, output=str(tmp_path / "file" / "run")))
    with pytest.raises(ValueError, match="holds something else"):
        opened(dataclasses.replace(config, output=str(tmp_path)))
    output = opened(config)
    other = dataclasses.replace(config, learning_rate=0.1)
    opened(other)  # nothing was trained in it
    (output / "checkpoints" / "1d" / "vae" / "4").mkdir(parents=True)
    opened(dataclasses.replace(other, dim="both", models=("fm",), num_workers=3))
    with pytest.raises(ValueError, match="learning_rate is 0.1 there and 0.001 here"):
        opened(config)

    # No model of this run depends on it: it is neither refused nor forgotten.
    beta = dataclasses.replace(other, models=("vae_beta",), vae_beta=20.0)
    opened(beta)
    opened(other)
    opened(beta)
    with pytest.raises(ValueError, match="vae_beta is 20.0 there and 10.0 here"):
        opened(dataclasses.replace(beta, vae_beta=10.0))


def test_a_full_disk_leaves_the_configuration_as_it_was(tmp_path, monkeypatch):
    folder = fk.pipelines.open_run(tmp_path / "run", {"a": 1})
    (folder / "checkpoints" / "4").mkdir(parents=True)
    before = (folder / "config.json").read_text()

    def full(path, text):
        path.touch()
        os.truncate(path, 0)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        fk.pipelines.open_run(folder, {"a": 1, "b": 2})
    # Nothing is written if nothing has changed.
    fk.pipelines.open_run(folder, {"a": 1})
    assert (folder / "config.json").read_text() == before
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["checkpoints", "config.json"]


def test_command_line_overrides_every_field(example):
    arguments = [
        "--dim",
        "2d",
        "--models",
        "fm,vae",
        "facm",
        "--hidden-sizes",
        "8",
        "9",
        "--vae-beta",
        "4",
        "--coupling",
        "entropic",
    ]
    config = fk.pipelines.parse(example.Config, arguments)
    assert (config.dim, config.hidden_sizes, config.vae_beta, config.coupling) == (
        "2d",
        (8, 9),
        4.0,
        "entropic",
    )
    config = dataclasses.replace(config, vae_beta=10.0)
    assert example.check(config) == ["fm", "vae", "facm"]
    with pytest.raises(ValueError, match="invalid choice 'exact'"):
        fk.pipelines.parse(example.Config, ["--coupling", "exact"])
