"""The example of sparse images: a small run writes what it names and resumes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flowkit as fk

from .examples import (
    check_every_option_is_among,
    check_help_names_every_option,
    check_misuse,
    loaded,
    parsed,
)


# Two steps in each of two epochs.
ARGUMENTS = """
all --seed 7 --data.name digits --data.max-samples 8 --data.no-renew --model.width-size 8
--model.num-latents 2 --model.depth 1 --model.num-heads 2 --model.num-frequencies 3
--training.num-epochs 2 --training.batch-size 4 --training.checkpoint-every 1
--evaluation.every 1 --evaluation.monitor-batches 1 --evaluation.num-steps 2
--evaluation.figure-every 2 --evaluation.solver euler --evaluation.batch-size 4
--evaluation.num-batches 2 --evaluation.final-steps 2 --evaluation.num-samples 2
"""


@pytest.fixture(scope="module")
def example():
    with loaded("sparse_images") as module:
        yield module


@pytest.fixture(scope="module")
def run(example, tmp_path_factory):
    config = parsed(example, ARGUMENTS, output=str(tmp_path_factory.mktemp("run")))
    example.main(config)
    return config, Path(config.output)


@pytest.mark.slow
def test_every_output_is_there(run):
    _, output = run
    figures = "loss reconstruction samples errors pixel_flow"
    names = {f"{name}.png" for name in figures.split()}
    names |= {"metrics.json", "predictions", "checkpoints"}
    assert {path.name for path in output.iterdir()} == names
    figures = {path.name for path in (output / "predictions").iterdir()}
    assert figures == {"epoch_0000.png", "epoch_0002.png"}
    steps = fk.pipelines.checkpoint_steps(output / "checkpoints")
    assert steps == [2, 4]


@pytest.mark.slow
def test_figures_have_a_row_for_each_image(run):
    """Four rows of square panels, three of them for truth, input and reconstruction."""
    _, output = run
    with Image.open(output / "reconstruction.png") as figure:
        assert figure.height > figure.width > 0.6 * figure.height
    with Image.open(output / "samples.png") as figure:
        assert figure.width > figure.height


@pytest.mark.slow
def test_metrics_are_those_of_the_reconstructions(example, run):
    _, output = run
    metrics = json.loads((output / "metrics.json").read_text())
    names = "mse mae psnr ssim psnr_of_mean ssim_of_mean crps images"
    assert set(metrics) == set(names.split())
    assert metrics["images"] == 8
    assert np.all(np.isfinite(list(metrics.values())))


@pytest.mark.slow
def test_finished_run_is_found_again(example, run):
    """The same command, and `evaluate` alone, give the same numbers."""
    config, output = run
    before = (output / "metrics.json").read_text()
    (output / "metrics.json").unlink()
    (output / "loss.png").unlink()
    example.main(config)
    assert (output / "loss.png").exists()
    assert (output / "metrics.json").read_text() == before

    (output / "metrics.json").unlink()
    options = ARGUMENTS[ARGUMENTS.index("--evaluation.solver") :]
    example.main(parsed(example, f"evaluate {options}", output=str(output)))
    assert (output / "metrics.json").read_text() == before


@pytest.mark.slow
def test_another_run_is_refused(example, run):
    config, _ = run
    with pytest.raises(ValueError, match=r"holds checkpoints of another run.*'seed'"):
        example.main(dataclasses.replace(config, seed=8))


@pytest.mark.slow
def test_runs_have_a_kind(run):
    folder, stored = fk.pipelines.stored_run(run[1], "sparse images")
    assert folder == run[1] / "checkpoints"
    assert stored["seed"] == 7
    with pytest.raises(ValueError, match="a run of sparse images, not of images"):
        fk.pipelines.stored_run(run[1], "images")


@pytest.mark.slow
def test_options_reach_the_model(example, run):
    folder = run[1] / "checkpoints"
    stored = fk.training.stored_config(folder)
    assert stored["data"]["name"] == "digits"
    assert stored["model"]["shape"] == [8, 8, 1]
    assert stored["model"]["state_tokens"] == 12
    model = fk.training.restore_model(folder, example.rebuild)
    assert model.flow.network.network.reader.latents.shape == (2, 8)


@pytest.mark.slow
def test_pixels_of_a_run(example):
    """Disjoint, a fifth of all pixels each, and the same for the same seed."""
    config = example.DataConfig(name="digits", max_samples=8)
    _, pixels = example.load(config, 42)
    rows = np.concatenate([pixels.train.input_indices, pixels.train.output_indices], 1)
    assert rows.shape == (8, 24)
    assert all(len(set(row)) == 24 for row in rows.tolist())
    _, again = example.load(config, 42)
    np.testing.assert_array_equal(again.train.input_indices, pixels.train.input_indices)
    _, other = example.load(config, 43)
    assert (other.train.input_indices != pixels.train.input_indices).any()


def test_nothing_to_evaluate(example, tmp_path):
    with pytest.raises(FileNotFoundError):
        example.main(parsed(example, "evaluate", output=str(tmp_path / "none")))


# For every option a value that cannot be, or a command for which it has no effect.
MISUSE = """
train --data.name faces: invalid choice 'faces'
train --data.max-samples 0: --data.max-samples must be at least 1, got 0
train --data.name digits --data.input-ratio 0: --data.input-ratio must be above 0, got 0.0
train --data.name digits --data.output-ratio 0.9: `output_ratio` must sum to at most 1
evaluate --data.no-renew: --data.renew has no effect here: the run in the output folder
train --model.shape 8 8 1: --model.shape has no effect here: it is that of the images
train --model.network cnn: invalid choice 'cnn'
train --model.start zero: invalid choice 'zero'
train --model.start noise --model.length-scale 0.5: --model.length-scale has no effect
train --model.width-size 0: --model.width-size must be at least 1, got 0
train --model.num-latents 0: --model.num-latents must be at least 1, got 0
train --model.network unet --model.depth 1: --model.depth has no effect here: unet is made
train --data.name digits --model.num-heads 3: `width_size` 64 must be divisible by
train --model.num-frequencies 0: --model.num-frequencies must be at least 1, got 0
train --model.frequency-scale 0: --model.frequency-scale must be above 0, got 0.0
train --model.network perceiver --model.num-neighbors 1: only pixel-field has it, not perceiver
train --model.state-tokens -1: --model.state-tokens must be at least 0, got -1
train --model.multipliers 1 2 2: --model.multipliers has no effect here: only unet has it
train --model.patch-size 2: --model.patch-size has no effect here: only unet has it
train --model.dropout 2: --model.dropout must be at least 0 and at most 1, got 2.0
train --training.num-epochs 0: --training.num-epochs must be at least 1, got 0
train --training.batch-size 0: --training.batch-size must be at least 1, got 0
train --training.learning-rate nan: --training.learning-rate must be above 0, got nan
train --training.clip 0: --training.clip must be above 0, got 0.0
train --training.ema-decay 2: --training.ema-decay must be at least 0 and at most 1, got 2.0
train --training.checkpoint-every 0: --training.checkpoint-every must be at least 1, got 0
train --training.keep 0: --training.keep must be at least 1, got 0
evaluate --evaluation.every 9: --evaluation.every has no effect here: nothing is trained
evaluate --evaluation.monitor-batches 9: --evaluation.monitor-batches has no effect
evaluate --evaluation.num-steps 9: --evaluation.num-steps has no effect
evaluate --evaluation.figure-every 9: --evaluation.figure-every has no effect
train --evaluation.solver euclid: invalid choice 'euclid'
train --evaluation.batch-size 0: --evaluation.batch-size must be at least 1, got 0
train --evaluation.num-batches 9: --evaluation.num-batches has no effect here: `train` draws
train --evaluation.final-steps 9: --evaluation.final-steps has no effect
train --evaluation.num-samples 9: --evaluation.num-samples has no effect
train --evaluation.no-keep-observed: --evaluation.keep-observed has no effect
train --evaluation.resolution 9: --evaluation.resolution has no effect
evaluate --training.keep 9: --training.keep has no effect
evaluate --seed 9: --seed has no effect here: the run in the output folder has its own
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
