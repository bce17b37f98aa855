"""The example of T-Rex: one small run writes all that it names and is found again; what is wrong is said at once."""

import dataclasses
import importlib
import json
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest
import tyro
from PIL import Image, ImageSequence

import flowkit as fk
from flowkit import few_step


STEPS = {"flow": 4, "reflow": 2, "map": 3}
ARGUMENTS = """
all --seed 7 --data.name circles --data.noise 0.01 --data.num-samples 60 --model.hidden-sizes 8 6
--model.num-frequencies 3 --model.time-size 4 --training.num-steps 4 --training.reflow-steps 2 --training.map-steps 3
--training.num-pairs 20 --training.batch-size 5 --training.steps-per-call 2 --training.checkpoint-every 2
--training.num-judged 12 --training.num-draws 3 --visualization.solver heun --visualization.num-sampling-steps 5
--visualization.num-points 30 --visualization.num-particles 4 --visualization.num-frames 2
--visualization.grid-size 4
"""


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "examples")
        yield importlib.import_module("trex")


def parsed(example, text, **changes):
    return dataclasses.replace(tyro.cli(example.Config, args=text.split()), **changes)


@pytest.fixture(scope="module")
def run(example, tmp_path_factory):
    config = parsed(example, ARGUMENTS, output=str(tmp_path_factory.mktemp("run")))
    example.main(config)
    return config, Path(config.output)


@pytest.mark.slow
def test_every_output_is_there(run):
    _, output = run
    pictures = "comparison trajectory vector_field one_step reflow curvature"
    names = {f"{name}.png" for name in pictures.split()}
    names |= {f"{name}.gif" for name in ("flow", "particles", "density", "field")}
    names |= {"metrics.json", "explorer.html", "checkpoints"}
    assert {path.name for path in output.iterdir()} == names
    for name in ("flow", "particles", "density", "field"):
        with Image.open(output / f"{name}.gif") as image:
            assert (
                len(list(ImageSequence.Iterator(image))) == 2
            )  # the ones that stand still are one
    page = (output / "explorer.html").read_text()
    assert '"label": "step 2"' in page
    assert '"label": "step 4"' in page


@pytest.mark.slow
def test_metrics_are_distances_from_fresh_data(example, run):
    """Those of the flow and of the floor once more, one assignment at a time."""
    config, output = run
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["steps"] == STEPS
    assert metrics["seconds"] > 0
    models, data = example.restore(output)
    key = example.keys_of(config)[3]
    gkey, *fkeys = jr.split(key, 7)
    fresh = [fk.data.circles(12, noise=0.01, key=key) for key in fkeys]
    flow = few_step.velocity_of(models["flow"])
    options = {
        "num_samples": 36,
        "solver": example.SOLVERS["heun"],
        "num_steps": 5,
        "key": gkey,
    }
    clouds = {
        "w2": fk.sample(flow, (2,), **options).values.reshape(3, 12, 2),
        "w2_floor": fresh[3:],
    }
    for name, sets in clouds.items():
        distances = np.array(
            [
                fk.metrics.w2(cloud, other)
                for cloud, other in zip(sets, fresh[:3], strict=True)
            ]
        )
        assert metrics[name] == pytest.approx(distances.mean(), rel=1e-5)
        assert metrics[f"{name}_standard_error"] == pytest.approx(
            distances.std(ddof=1) / 3**0.5, rel=1e-4
        )
    assert metrics["w2_over_floor"] == pytest.approx(
        metrics["w2"] / metrics["w2_floor"]
    )
    assert data == example.DataConfig(
        name="circles", columns=[], num_samples=60, noise=0.01
    )
    assert {"w2_one_step", "w2_reflow", "w2_reflow_one_euler_step"} <= set(metrics)


@pytest.mark.slow
def test_options_reach_the_model(example, run):
    models, _ = example.restore(run[1])
    assert set(models) == set(STEPS)
    layers = jax.tree.leaves(eqx.filter(models["map"].network.mlp.layers, eqx.is_array))
    assert [leaf.shape for leaf in layers if leaf.ndim == 2] == [
        (2 + 2 * 3 + 2 * 4, 8),
        (8, 6),
        (6, 2),
    ]


@pytest.mark.slow
def test_finished_run_is_found_again(example, run):
    config, output = run
    before = json.loads((output / "metrics.json").read_text())
    example.main(dataclasses.replace(config, command="train"))
    assert json.loads((output / "metrics.json").read_text()) == before


@pytest.mark.slow
def test_another_run_is_refused(example, run):
    config, output = run
    before = sorted(path for path in output.rglob("*"))
    with pytest.raises(ValueError, match=r"holds checkpoints of another run.*'seed'"):
        example.main(dataclasses.replace(config, seed=8))
    assert sorted(path for path in output.rglob("*")) == before


def test_folder_that_cannot_be_written_is_refused(example, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        example.main(parsed(example, "train", output=str(tmp_path / "file" / "run")))


def test_nothing_to_visualize(example, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"run `python examples/trex.py train` first"
    ):
        example.main(parsed(example, "visualize", output=str(tmp_path)))


def test_unknown_data_lists_the_known(example):
    with pytest.raises(
        ValueError,
        match=r"--data\.name must be .* trex, trex_parametric, .* got 'dinosaur'",
    ):
        example.load(example.DataConfig(name="dinosaur"))
    with pytest.raises(ValueError, match=r"--data\.noise is not for checkerboard"):
        example.load(example.DataConfig(name="checkerboard", noise=0.1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n0,1\n1,two\n", "'two' in line 3, column 2 is not a number"),
        ("0,1\n1,nan\n", "'nan' in line 2, column 2 is not finite"),
        ("0,1\n", r"has 1 point\(s\)"),
        ("0,1,2\n1,2,5\n", "has 3 columns; name two with --data.columns"),
    ],
)
def test_wrong_files_are_errors_before_training(example, tmp_path, text, message):
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        example.main(
            parsed(
                example,
                f"train --data.name {tmp_path}/points.csv",
                output=str(tmp_path / "run"),
            )
        )
    assert not (tmp_path / "run").exists()


def test_points_of_a_file(example, tmp_path):
    (tmp_path / "points.csv").write_text("name,x,y\na,10,20\nb,12,24\nc,14,28\n")
    sampler = example.load(
        example.DataConfig(
            name=str(tmp_path / "points.csv"), columns=("x", "y"), noise=0.0
        )
    )
    points = np.unique(np.asarray(sampler(100, key=jr.key(0))), axis=0)
    np.testing.assert_allclose(points, [[-0.5, -1], [0, 0], [0.5, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--training.num-draws", 1),
        ("--training.map-steps", -1),
        ("--model.num-frequencies", -1),
        ("--visualization.num-frames", 1),
    ],
)
def test_numbers_that_are_too_small(example, option, value, capsys):
    with pytest.raises(SystemExit):
        parsed(example, f"train {option} {value}")
    text = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert f"{option} must be at least {value + 1}, got {value}." in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--training.num-pairs 9 --training.batch-size 10",
            "--training.num-pairs must be at least .* 10; got 9",
        ),
        (
            "--training.learning-rate nan",
            "--training.learning-rate must be positive, got nan",
        ),
    ],
)
def test_training_that_cannot_be(example, options, message, capsys):
    with pytest.raises(SystemExit):
        parsed(example, f"train {options}")
    assert re.search(
        message, " ".join(capsys.readouterr().err.replace("│", "").split())
    )


def test_help_names_every_option(example, capsys):
    with pytest.raises(SystemExit):
        parsed(example, "--help")
    text = capsys.readouterr().out
    for group in dataclasses.fields(example.Config):
        if dataclasses.is_dataclass(group.type):
            for field in dataclasses.fields(group.type):
                assert f"--{group.name}.{field.name.replace('_', '-')}" in text


def test_network_of_the_first_flow_visualizer(example):
    """Its 144,834 parameters, and those of the second time: its embedding, and 64 more inputs of the first layer."""
    config = example.ModelConfig(
        hidden_sizes=(128, 256, 256, 128), num_frequencies=0, time="learned"
    )
    model = eqx.filter_eval_shape(lambda: example.build(config, key=jr.key(0)))
    parameters = jax.tree.leaves(eqx.filter(model, lambda leaf: hasattr(leaf, "dtype")))
    assert sum(leaf.size for leaf in parameters) == 144_834 + 4_288 + 64 * 128


def test_seconds_are_summed_over_sessions(example):
    assert example.elapsed(np.array([0.5, 3.0, 0.1, 2.0, 7.0, 1.5])) == 3.0 + 7.0 + 1.5
