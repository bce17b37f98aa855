"""The example of T-Rex: a small run writes what it names and resumes; misuse is reported."""

import dataclasses
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest
from PIL import Image, ImageSequence

import flowkit as fk
from flowkit import few_step

from .examples import (
    check_every_option_is_among,
    check_help_names_every_option,
    check_misuse,
    loaded,
    parsed,
)


STEPS = {"flow": 4, "reflow": 2, "map": 6}
ARGUMENTS = """
all --seed 7 --data.name circles --data.noise 0.01 --data.num-samples 60 --model.hidden-sizes 8 6
--model.num-frequencies 3 --model.time-size 4 --training.num-steps 4
--training.reflow-steps 2 --training.map-steps 6 --training.num-pairs 20
--training.batch-size 5 --training.steps-per-call 2 --training.checkpoint-every 2
--training.num-judged 12 --training.num-draws 3
--visualization.solver heun --visualization.num-sampling-steps 5
--visualization.num-points 30 --visualization.num-particles 4 --visualization.num-frames 2
--visualization.grid-size 4
"""


@pytest.fixture(scope="module")
def example():
    with loaded("trex") as module:
        yield module


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
    models, stored = fk.pipelines.restore_stages(
        output / "checkpoints", example.rebuild
    )
    key = jr.split(jr.key(config.seed), 6)[3]
    gkey, *fkeys = jr.split(key, 7)
    fresh = [fk.data.circles(12, noise=0.01, key=key) for key in fkeys]
    flow = few_step.velocity_of(models["flow"])
    options = {
        "num_samples": 36,
        "solver": fk.pipelines.SOLVERS["heun"],
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
    data = {"name": "circles", "columns": [], "num_samples": 60, "noise": 0.01}
    assert stored["data"] == data
    assert {"w2_one_step", "w2_reflow", "w2_reflow_one_euler_step"} <= set(metrics)


@pytest.mark.slow
def test_options_reach_the_model(example, run):
    folder = run[1] / "checkpoints"
    models, _ = fk.pipelines.restore_stages(folder, example.rebuild)
    assert set(models) == set(STEPS)
    layers = jax.tree.leaves(eqx.filter(models["map"].network.mlp.layers, eqx.is_array))
    assert [leaf.shape for leaf in layers if leaf.ndim == 2] == [
        (2 + 2 * 3 + 2 * 4, 8),
        (8, 6),
        (6, 2),
    ]


@pytest.mark.slow
def test_finished_run_is_found_again(example, run):
    """The same distances; the time does not count what is written after the last step."""
    config, output = run
    sampled = {
        name: getattr(config.visualization, name)
        for name in ("solver", "num_sampling_steps")
    }
    # Options that only figures use are refused with `train`.
    config = dataclasses.replace(
        config, command="train", visualization=example.VisualizationConfig(**sampled)
    )
    before = json.loads((output / "metrics.json").read_text())
    example.main(config)
    after = json.loads((output / "metrics.json").read_text())
    assert 0 < after.pop("seconds")
    del before["seconds"]
    assert after == before


@pytest.mark.slow
def test_another_run_is_refused(example, run):
    config, output = run
    before = sorted(path for path in output.rglob("*"))
    with pytest.raises(ValueError, match=r"holds checkpoints of another run.*'seed'"):
        example.main(dataclasses.replace(config, seed=8))
    training = dataclasses.replace(config.training, reflow_steps=0)
    with pytest.raises(ValueError, match=r"holds a run of flow .*, reflow .*, map"):
        example.main(dataclasses.replace(config, training=training))
    assert sorted(path for path in output.rglob("*")) == before


def test_folder_that_cannot_be_written_is_refused(example, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        example.main(parsed(example, "train", output=str(tmp_path / "file" / "run")))


def test_nothing_to_visualize(example, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no checkpoints: train there first"
    ):
        example.main(parsed(example, "visualize", output=str(tmp_path)))


def test_unknown_data_lists_the_known(example):
    with pytest.raises(
        ValueError,
        match=r"`name` must be one of trex, trex_parametric, .* got 'dinosaur'",
    ):
        example.load(example.DataConfig(name="dinosaur"))
    with pytest.raises(ValueError, match=r"`noise` is not an option of 'checkerboard'"):
        example.load(example.DataConfig(name="checkerboard", noise=0.1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n0,1\n1,two\n", "'two' in line 3, column 2 is not a number"),
        ("0,1\n1,nan\n", "'nan' in line 2, column 2 is not finite"),
        ("0,1\n", r"has 1 point\(s\)"),
        ("0,1,2\n1,2,5\n", "has 3 columns, but points of size 2 are wanted"),
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


# For every option a value that cannot be, or a command for which it has no effect.
MISUSE = """
train --data.name dinosaur: `name` must be one of trex
train --data.columns x y: `columns` are for files
train --data.num-samples 0: --data.num-samples must be at least 1, got 0
train --data.noise -1: --data.noise must be at least 0, got -1.0
train --model.hidden-sizes 8 0: --model.hidden-sizes must be at least 1, got 0
train --model.num-frequencies -1: --model.num-frequencies must be at least 0, got -1
train --model.num-frequencies 0 --model.frequency-scale 2: --model.frequency-scale has no effect
train --model.time cubic: invalid choice 'cubic'
train --model.time-size 1: --model.time-size must be at least 2, got 1
train --training.num-steps 0: --training.num-steps must be at least 1, got 0
train --training.map-steps -1: --training.map-steps must be at least 0, got -1
train --training.reflow-steps -1: --training.reflow-steps must be at least 0, got -1
train --training.map-steps 0 --training.num-pairs 9: --training.num-pairs has no effect
train --training.num-pairs 0: --training.num-pairs must be at least 1, got 0
train --training.batch-size 0: --training.batch-size must be at least 1, got 0
train --training.learning-rate nan: --training.learning-rate must be above 0, got nan
train --training.ema-decay 2: --training.ema-decay must be at least 0 and at most 1, got 2.0
train --training.steps-per-call 0: --training.steps-per-call must be at least 1, got 0
train --training.checkpoint-every 0: --training.checkpoint-every must be at least 1, got 0
train --training.num-judged 0: --training.num-judged must be at least 1, got 0
train --training.num-draws 1: --training.num-draws must be at least 2, got 1
train --visualization.solver euclid: invalid choice 'euclid'
train --visualization.num-sampling-steps 4: --visualization.num-sampling-steps must be at least 5
train --visualization.num-points 9: --visualization.num-points has no effect here: `train` draws
train --visualization.num-particles 9: --visualization.num-particles has no effect
train --visualization.num-frames 9: --visualization.num-frames has no effect
train --visualization.grid-size 9: --visualization.grid-size has no effect
train --visualization.window 9: --visualization.window has no effect
visualize --visualization.window 0: --visualization.window must be above 0, got 0.0
visualize --visualization.num-frames 1: --visualization.num-frames must be at least 2, got 1
visualize --data.num-samples 9: --data.num-samples has no effect
visualize --model.time-size 9: --model.time-size has no effect here: the run in the output
visualize --training.num-draws 9: --training.num-draws has no effect
train --seed x: invalid literal for int
train --sead 1: Unrecognized options: --sead
"""


@pytest.mark.parametrize("line", MISUSE.strip().splitlines())
def test_misuse_is_one_line_and_status_2(example, tmp_path, capsys, line):
    check_misuse(example, line, tmp_path, capsys)


def test_every_option_is_among_the_misuses(example):
    check_every_option_is_among(example, MISUSE)


def test_help_names_every_option(example, capsys):
    check_help_names_every_option(example, capsys)


def test_network_of_the_first_flow_visualizer(example):
    """Its 144,834 parameters, and those of the second time: its embedding, and 64 more
    inputs of the first layer."""
    config = example.ModelConfig(
        hidden_sizes=(128, 256, 256, 128), num_frequencies=0, time="learned"
    )
    model = eqx.filter_eval_shape(lambda: example.build(config, key=jr.key(0)))
    parameters = jax.tree.leaves(eqx.filter(model, lambda leaf: hasattr(leaf, "dtype")))
    assert sum(leaf.size for leaf in parameters) == 144_834 + 4_288 + 64 * 128
