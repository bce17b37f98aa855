"""The main example: every part by its name has a loss, data are held out as they say, a run is found again."""

import dataclasses
import importlib
import itertools
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowkit as fk


ENCODERS = {
    "global": {"encoder": "point-net"},
    "pooled": {"encoder": "dgcnn", "pooling": "attention"},
    "seeds": {"encoder": "set-transformer", "pooling": "pma"},
    "recurrent": {"encoder": "cross-attention", "pooling": "set2set"},
    "local": {"encoder": "set-transformer"},
    "neighbours": {"encoder": "dgcnn"},
    "slots": {"encoder": "slot-attention", "num_latents": 3},
    "latents": {"encoder": "cross-attention", "num_latents": 3},
    "mixture": {"encoder": "gmm", "num_latents": 2},
}
SELECTED = {"slots", "latents", "mixture"}
BACKBONES = ("adaln-mlp", "dit", "cross-attention", "concat-squash")
OPTIONS = {
    "class": {"num_classes": 3},
    "normal": {"prior": "normal"},
    "gaussians": {"prior": "mixture"},
    "variational": {"variational": True, "normalize": True},
    "features": {"features": True, "num_components": 4},
    "target": {"prediction": "target", "path": "cosine"},
    "noise": {"prediction": "noise"},
}


@pytest.fixture(scope="module")
def examples():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "examples")
        yield importlib.import_module("point_clouds")


def traced_loss(examples, **options):
    """Shapes of the loss and its parts, of clouds in space; traced, not compiled."""
    config = examples.ModelConfig(
        **{"in_size": 3, "width_size": 16, "depth": 2, "prior_depth": 2} | options
    )
    points, mask = np.zeros((4, 12, 3), np.float32), np.ones((4, 12), bool)

    def loss(points, mask, labels):
        model = examples.build(config)
        cond = examples.class_condition(labels, config)
        prior_weight = 1.0 if examples.has_trainable_prior(config) else 0.0
        return fk.latent.set_flow_loss(
            model,
            points,
            mask=mask,
            cond=cond,
            prior_weight=prior_weight,
            block=2,
            key=jr.key(0),
        )

    return eqx.filter_eval_shape(
        loss, jnp.asarray(points), jnp.asarray(mask), jnp.zeros(4, int)
    )


@pytest.mark.parametrize(
    ("encoder", "backbone"), [*itertools.product(ENCODERS, BACKBONES)]
)
def test_every_combination_has_a_loss(examples, encoder, backbone):
    conditioners = ("auto", "select") if encoder in SELECTED else ("auto",)
    for conditioner in conditioners:
        loss, parts = traced_loss(
            examples, **ENCODERS[encoder], backbone=backbone, conditioner=conditioner
        )
        assert loss.shape == ()
        assert ("prior_loss" in parts) == (encoder not in ("local", "neighbours"))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_loss(examples, name):
    loss, parts = traced_loss(examples, **OPTIONS[name])
    assert loss.shape == ()
    assert ("vae_kl" in parts) == (name == "variational")


@pytest.mark.parametrize("ragged", [False, True])
def test_halves_share_no_point(examples, ragged):
    points = np.arange(3 * 9 * 2, dtype=np.float32).reshape(3, 9, 2)
    mask = np.arange(9) < np.array([[9], [4], [5]]) if ragged else None
    first, second = examples.halves(fk.data.PointSets(points, mask), seed=0)
    for i, size in enumerate((9, 4, 5) if ragged else (9, 9, 9)):
        parts = [
            half.points[i] if mask is None else half.points[i][half.mask[i]]
            for half in (first, second)
        ]
        assert [len(part) for part in parts] == [size // 2] * 2
        rows = {tuple(row) for part in parts for row in part.tolist()}
        assert len(rows) == 2 * (size // 2)
        assert rows <= {tuple(row) for row in points[i, :size].tolist()}


def test_training_batches_hold_some_points_of_each_cloud(examples):
    points = np.tile(np.arange(40, dtype=np.float32)[:, None, None], (1, 30, 2))
    points[..., 1] = np.arange(30)
    config = examples.Config(num_points=10, batch_size=4)
    batch = next(iter(examples.training_batches(fk.data.PointSets(points), config)))
    assert batch.points.shape == (4, 10, 2)
    assert all(len(set(cloud[:, 1])) == 10 for cloud in batch.points)
    moved = next(
        iter(
            examples.training_batches(
                fk.data.PointSets(points), dataclasses.replace(config, augment=True)
            )
        )
    )
    assert not np.allclose(moved.points, batch.points)


def test_held_out_clouds_of_files_have_the_size_of_training(examples, tmp_path):
    points = np.random.default_rng(0).normal(size=(10, 50, 3)).astype(np.float32)
    fk.data.save_npz(tmp_path / "clouds.npz", fk.data.PointSets(points))
    data = examples.load(
        examples.Config(data=str(tmp_path / "clouds.npz"), num_points=16)
    )
    assert [sets.points.shape for sets in data] == [(8, 50, 3), (2, 16, 3), (2, 16, 3)]


def test_muon_makes_updates_of_matrices_orthogonal(examples):
    """Equal singular values, up to the error of five Newton-Schulz iterations; those of the gradient are 1 to 9."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(2))
    gradient = {"w": jnp.asarray((u * np.linspace(1, 9, 6)) @ v, jnp.float32)}
    optimizer = examples.build_optimizer(
        examples.Config(optimizer="muon", num_steps=1000)
    )
    state = optimizer.init(gradient)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(2):  # the first step of the warm-up is zero
            updates, state = optimizer.update(gradient, state, gradient)
    values = np.linalg.svd(np.asarray(updates["w"]), compute_uv=False)
    assert values.min() > 0.5 * values.max()


def test_classes_need_labels(examples, tmp_path):
    path = tmp_path / "clouds.npz"
    fk.data.save_npz(
        path,
        fk.data.PointSets(
            np.random.default_rng(0).normal(size=(10, 8, 3)).astype(np.float32)
        ),
    )
    with pytest.raises(ValueError, match="--class-conditional needs labels"):
        examples.load(examples.Config(data=str(path), class_conditional=True))


def test_missing_run_is_an_error(examples, tmp_path):
    with pytest.raises(FileNotFoundError, match="run examples/point_clouds.py first"):
        examples.final_model(tmp_path)


@pytest.mark.slow
def test_stages_by_hand_and_a_run_found_again(examples, tmp_path):
    """A ragged data set in space: the flow first, then the whole, then another prior on what that gave."""
    rng = np.random.default_rng(0)
    mask = np.arange(12) < rng.integers(6, 13, size=(20, 1))
    points = rng.normal(size=(20, 12, 3)).astype(np.float32)
    fk.data.save_npz(
        tmp_path / "clouds.npz", fk.data.PointSets(points, mask, rng.integers(0, 2, 20))
    )
    model = examples.ModelConfig(
        latent_size=4,
        encoder_sizes=(8,),
        width_size=8,
        depth=1,
        prior_width=8,
        prior_depth=1,
    )
    config = examples.Config(
        data=str(tmp_path / "clouds.npz"), class_conditional=True, num_points=12, num_steps=3, prior_steps=50,
        batch_size=4, block=2, checkpoint_every=None, output=str(tmp_path / "run"), stages="flow", model=model,
        optimizer="muon", times="late",
    )  # fmt: skip
    examples.main(config)
    examples.main(dataclasses.replace(config, stages="two-stage"))
    assert json.loads((tmp_path / "run/metrics.json").read_text())["steps"] == {
        "flow": 3,
        "prior": 50,
    }
    flow = fk.training.restore_model(
        tmp_path / "run/checkpoints/flow", examples.restore
    )
    final, stored = examples.final_model(tmp_path / "run")
    assert stored.model == dataclasses.replace(
        model, in_size=3, num_classes=2, encoder_sizes=[8]
    )
    same = jax.tree.map(
        np.array_equal,
        *(eqx.filter((m.encoder, m.flow), eqx.is_array) for m in (flow, final)),
    )
    assert all(jax.tree.leaves(same))
    other = dataclasses.replace(
        config,
        stages="prior",
        start_from=str(tmp_path / "run"),
        output=str(tmp_path / "other"),
    )
    examples.main(other)
    metrics = json.loads((tmp_path / "other/metrics.json").read_text())
    assert metrics["chamfer_floor"] > 0
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {
        "explained_velocity.png", "loss_trajectory.png", "samples.png", "unconditional_samples.png",
    }  # fmt: skip
