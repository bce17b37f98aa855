"""The example of images: a small run writes what it names and resumes; misuse is reported."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from PIL import Image

import flowkit as fk
from flowkit import pipelines


ARGUMENTS = """
train --class-conditional --seed 7 --data.name digits --data.max-samples 40
--data.test-samples 24 --model.backbone dit --model.width-size 8 --model.depth 1
--model.num-heads 2 --model.patch-size 4 --model.time-size 4 --training.epochs 2
--training.batch-size 16 --training.previews 3 --training.keep 1
"""


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "examples")
        yield importlib.import_module("images")


def parsed(example, text, **changes):
    config = pipelines.parse(example.Config, text.split())
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def run(example, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    example.main(parsed(example, ARGUMENTS, output=str(folder)))
    return folder


def longer(example, folder, **changes):
    """The same run with one epoch more."""
    config = parsed(example, ARGUMENTS, output=str(folder))
    return dataclasses.replace(
        config, training=dataclasses.replace(config.training, epochs=3, **changes)
    )


def weights(folder, **options):
    flow, _ = pipelines.load_image_flow(folder, **options)
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(flow, eqx.is_array))
    ]


def same(first, second):
    return all(map(np.array_equal, first, second))


@pytest.mark.slow
def test_every_output_is_there(run):
    assert {path.name for path in run.iterdir()} == {
        "checkpoints", "epochs", "loss_trajectory.png", "metrics.json",
    }  # fmt: skip
    pictures = sorted(path.name for path in (run / "epochs").iterdir())
    assert pictures == ["epoch_0000.png", "epoch_0001.png", "epoch_0002.png"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["steps"] == 4
    assert len(metrics["loss"]) == len(metrics["held_out_loss"]) == 2
    assert metrics["best_epoch"] == 1 + np.argmin(metrics["held_out_loss"])
    assert metrics["parameters"] == sum(leaf.size for leaf in weights(run))
