"""The example that compares models: what it leaves behind, what it refuses, and that it trains nothing twice."""

import dataclasses
import importlib
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest
import tyro
from PIL import Image, ImageSequence

import flowkit as fk


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "examples")
        yield importlib.import_module("compare_models")


@pytest.fixture
def config(example, tmp_path):
    return example.Config(
        dim="1d", models=("vae", "backflow"), epochs=2, num_samples=20, hidden_sizes=(8,), batch_size=10,
        num_inference=10, num_judged=20, num_workers=0, output=str(tmp_path / "run"),
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
        *(f"{name}_1d_visualization.png" for name in names), *(f"{name}_1d_epochs" for name in (*names, "comparison")),
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
    monkeypatch.setattr(fk.latent, "vae_loss", None)  # no step could be made with it
    monkeypatch.setattr(example, "check", lambda *args: None)
    example.main(dataclasses.replace(config, frame_every=2))
    for name in names:
        again = arrays_of(example.final_model(output, name, "1d"))
        assert all(
            np.array_equal(a, b) for a, b in zip(models[name], again, strict=True)
        )
    assert json.loads((output / "metrics.json").read_text())["1d"] == metrics

    with pytest.raises(
        ValueError,
        match="holds models of another configuration .seed is 42 there and 1 here",
    ):
        example.main(dataclasses.replace(config, seed=1))


def test_every_model_keeps_what_it_promises(example, config):
    """In both dimensions, traced: the arrays of each entry are among those it makes, and have the shapes of figures."""
    for size in (1, 2):
        z = np.zeros((5, size), np.float32)
        for name, entry in example.MODELS.items():
            act = lambda key, entry=entry, z=z: entry.apply(
                entry.build(config, z.shape[1], key=key), z, z, key
            )
            arrays = eqx.filter_eval_shape(act, jr.key(0))
            shapes = {"paths": (5, len(example.TIMES), size), "two_steps": (5, 3, size)}
            assert entry.arrays, name
            for array in entry.arrays:
                assert arrays[array].shape == shapes.get(array, (5, size)), (
                    name,
                    array,
                )


@pytest.mark.parametrize(
    "coupling", ["assignment", "entropic", "unbalanced", "reweighted"]
)
def test_pairs_are_those_of_the_coupling(example, config, coupling):
    """Each noise and datum of the pairs was drawn; paired by transport they are nearer than at random."""
    scene = example.make_scene(
        dataclasses.replace(config, coupling=coupling, num_samples=64, batch_size=64),
        "1d",
    )
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
        example.make_scene(example.Config(seed=seed), "1d").data for seed in range(3)
    ]
    # Between the modes, three standard deviations from the one and four from the other.
    counts = [int((data < 0.4).sum()) for data in draws]
    assert max(abs(count - 350) for count in counts) <= 3


def test_points_of_a_file(example, config, tmp_path):
    path = tmp_path / "points.csv"
    points = np.random.default_rng(0).normal(size=(30, 2)) * 50
    np.savetxt(path, points, delimiter=",")
    scene = example.make_scene(dataclasses.replace(config, data_2d=str(path)), "2d")
    expected = fk.data.fit_unit_box(points)[0]
    assert scene.data.shape == (20, 2)
    assert (
        np.linalg.norm(np.asarray(scene.data)[:, None] - expected, axis=-1).min(1).max()
        < 1e-6
    )
    np.savetxt(path, points[:, [0, 1, 1]], delimiter=",")
    with pytest.raises(ValueError, match="has 3 columns; keep two"):
        example.make_scene(dataclasses.replace(config, data_2d=str(path)), "2d")


def test_wrong_options_are_refused_before_anything_is_written(example, config):
    for options, message in (
        (
            {"models": ("vae,gan",)},
            "--models must be some of decoder, ae, vae, vae_beta, fm, .*got 'vae,gan'",
        ),
        ({"models": (",",)}, "--models must be some of"),
        ({"data_1d": "moons"}, "--data-1d must be one of mixture_1d, got 'moons'"),
        (
            {"data_2d": "moon", "dim": "2d"},
            "--data-2d must be one of trex, .* or the path of a .csv file, got 'moon'",
        ),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"frame_every": 0}, "--frame-every must be at least 1"),
        ({"num_workers": -1}, "--num-workers must not be negative"),
        ({"learning_rate": float("nan")}, "--learning-rate must be positive, got nan"),
        ({"fps": 0}, "--fps must be positive and at most 50, got 0"),
        ({"hidden_sizes": (0,)}, "`hidden_sizes` must be positive"),
        ({"batch_size": 21}, "--num-samples must be at least --batch-size"),
        (
            {"vae_beta": -1.0, "models": ("fm", "vae_beta")},
            "`kl_weight` must be a finite number >= 0",
        ),
        ({"coupling": "assignment", "batch_size": 1}, "too small a batch for a plan"),
    ):
        with pytest.raises(ValueError, match=message):
            example.main(dataclasses.replace(config, **options))
    assert not Path(config.output).exists()


def test_folders_that_cannot_hold_the_run(example, config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written to"):
        example.open_output(
            dataclasses.replace(config, output=str(tmp_path / "file" / "run"))
        )
    with pytest.raises(ValueError, match="holds something else"):
        example.open_output(dataclasses.replace(config, output=str(tmp_path)))
    output = example.open_output(config)
    other = dataclasses.replace(config, learning_rate=0.1)
    example.open_output(other)  # nothing was trained in it
    (output / "checkpoints" / "1d" / "vae" / "4").mkdir(parents=True)
    example.open_output(
        dataclasses.replace(other, dim="both", models=("fm",), num_workers=3)
    )
    with pytest.raises(ValueError, match="learning_rate is 0.1 there and 0.001 here"):
        example.open_output(config)


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
    config = tyro.cli(example.Config, args=arguments)
    assert (config.dim, config.hidden_sizes, config.vae_beta, config.coupling) == (
        "2d",
        (8, 9),
        4.0,
        "entropic",
    )
    assert example.chosen_models(config) == ["fm", "vae", "facm"]
    with pytest.raises(SystemExit):
        tyro.cli(example.Config, args=["--coupling", "exact"])
