"""The main example: every part by its name has a loss, every option an effect or a reason."""

import dataclasses
import itertools
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowkit as fk
from flowkit import pipelines

from .examples import loaded


EXAMPLES = Path(__file__).parents[1] / "examples"
ENCODERS = {
    "global": {"encoder": "point-net"},
    "pooled": {"encoder": "dgcnn", "pooling": "attention"},
    "seeds": {"encoder": "set-transformer", "pooling": "pma"},
    "recurrent": {"encoder": "cross-attention", "pooling": "set2set"},
    "local": {"encoder": "set-transformer"},
    "neighbors": {"encoder": "dgcnn"},
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
    with loaded("point_clouds") as module:
        yield module


def traced_loss(**options):
    """Shapes of the loss and its parts, of clouds in space; traced, not compiled."""
    sizes = {"in_size": 3, "width_size": 16, "depth": 2}
    config = pipelines.SetFlowConfig(**sizes | options)
    if config.prior == "flow" and not config.is_local:
        config = dataclasses.replace(config, prior_depth=2)
    clouds = fk.data.PointSets(
        np.zeros((4, 12, 3), np.float32), np.ones((4, 12), bool), np.zeros(4, int)
    )
    training = pipelines.SetFlowTraining(block=2)
    first, *_ = pipelines.set_flow_stages(training, config, clouds, num_points=12)
    batch = next(iter(first.batches))

    def loss():
        return first.loss(config.build(), batch, jr.key(0))

    return eqx.filter_eval_shape(loss)


@pytest.mark.parametrize(
    ("encoder", "backbone"), [*itertools.product(ENCODERS, BACKBONES)]
)
def test_every_combination_has_a_loss(encoder, backbone):
    selects = encoder in SELECTED and backbone != "cross-attention"
    for conditioner in ("auto", "select") if selects else ("auto",):
        loss, parts = traced_loss(
            **ENCODERS[encoder], backbone=backbone, conditioner=conditioner
        )
        assert loss.shape == ()
        assert ("prior_loss" in parts) == (encoder not in ("local", "neighbors"))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_loss(name):
    loss, parts = traced_loss(**OPTIONS[name])
    assert loss.shape == ()
    assert ("vae_kl" in parts) == (name == "variational")


@pytest.mark.parametrize("ragged", [False, True])
def test_halves_share_no_point(ragged):
    points = np.arange(3 * 9 * 2, dtype=np.float32).reshape(3, 9, 2)
    mask = np.arange(9) < np.array([[9], [4], [5]]) if ragged else None
    first, second = fk.data.halve(fk.data.PointSets(points, mask), seed=0)
    for i, size in enumerate((9, 4, 5) if ragged else (9, 9, 9)):
        parts = [
            half.points[i] if mask is None else half.points[i][half.mask[i]]
            for half in (first, second)
        ]
        assert [len(part) for part in parts] == [size // 2] * 2
        rows = {tuple(row) for part in parts for row in part.tolist()}
        assert len(rows) == 2 * (size // 2)
        assert rows <= {tuple(row) for row in points[i, :size].tolist()}


@pytest.mark.parametrize("masked", [False, True])
def test_clouds_of_one_point_have_no_halves(masked, tmp_path):
    points = np.arange(30, dtype=np.float32).reshape(5, -1, 2)
    mask = np.arange(3) < np.array([[3], [2], [1], [3], [1]])
    sets = fk.data.PointSets(points, mask)
    if not masked:
        sets = fk.data.PointSets(points[:, :1])
    which = r"cloud 2 \(2 such\)" if masked else r"cloud 0 \(5 such\)"
    with pytest.raises(ValueError, match=f"`sets`: {which} has fewer than two valid"):
        fk.data.halve(sets)

    fk.data.save_npz(tmp_path / "few.npz", sets)
    with pytest.raises(ValueError, match=f"few.npz`: {which} has fewer than two"):
        fk.data.cloud_split(tmp_path / "few.npz", 2)


def first_batch(points, **options):
    training = pipelines.SetFlowTraining(batch_size=4, **options)
    model = pipelines.SetFlowConfig(in_size=int(points.shape[-1]))
    clouds = fk.data.PointSets(points)
    stage, *_ = pipelines.set_flow_stages(training, model, clouds, num_points=10, up=1)
    batch: Any = next(iter(stage.batches))
    return np.asarray(batch.points)


def test_training_batches_hold_some_points_of_each_cloud():
    points = np.tile(np.arange(40, dtype=np.float32)[:, None, None], (1, 30, 2))
    points[..., 1] = np.arange(30)
    batch = first_batch(points)
    assert batch.shape == (4, 10, 2)
    assert all(len(set(cloud[:, 1])) == 10 for cloud in batch)
    assert not np.allclose(first_batch(points, augment=True), batch)


def test_augmentation_keeps_what_is_upright():
    """In space clouds turn about the axis that points up, here 1: a vertical line stays
    vertical."""
    points = np.zeros((8, 10, 3), np.float32)
    points[..., 1] = np.linspace(-1, 1, 10)
    moved = first_batch(points, augment=True)
    heights = np.ptp(moved[..., 1], axis=1)
    assert np.all((heights > 2 * 0.7 - 0.5) & (heights < 2 * 1.3 + 1e-5))
    np.testing.assert_allclose(np.ptp(moved[..., [0, 2]], axis=1), 0, atol=1e-5)
    assert first_batch(np.zeros((8, 10, 4), np.float32), augment=True).shape == (
        4,
        10,
        4,
    )


def save_clouds(path, *, dim=3, number=20, labels=True):
    """A ragged data set of labeled clouds."""
    rng = np.random.default_rng(0)
    mask = np.arange(12) < rng.integers(6, 13, size=(number, 1))
    points = rng.normal(5, 3, size=(number, 12, dim)).astype(np.float32)
    chosen = rng.integers(0, 2, number) if labels else None
    fk.data.save_npz(path, fk.data.PointSets(points, mask, chosen))
    return str(path)


def test_held_out_clouds_of_files_have_the_size_of_training(tmp_path):
    points = np.random.default_rng(0).normal(size=(10, 50, 3)).astype(np.float32)
    fk.data.save_npz(tmp_path / "clouds.npz", fk.data.PointSets(points))
    split = fk.data.cloud_split(tmp_path / "clouds.npz", 16)
    shapes = [sets.points.shape for sets in split[:3]]
    assert shapes == [(8, 50, 3), (2, 16, 3), (2, 16, 3)]


class EachPoint(eqx.Module):
    """Every point is its own latent."""

    in_size: int = 2
    out_size: int = 2

    def __call__(self, points, mask=None, key=None):
        return points if mask is None else jnp.where(mask[:, None], points, 0)


class Masked(eqx.Module):
    """The data are the latents, for a network that is told which of them are there."""

    def __call__(self, t, x, latents, mask=None):
        assert mask is not None
        return latents


def test_reports_of_points_with_latents_of_their_own_mask_the_others():
    points = np.random.default_rng(0).normal(size=(4, 6, 2)).astype(np.float32)
    mask = np.arange(6) < np.array([[6], [3], [4], [2]])
    sets = fk.data.PointSets(points, mask)
    other = fk.data.PointSets(points + 1, mask)
    flow = fk.Flow(Masked(), prediction=fk.Target())
    model = fk.latent.SetFlow(EachPoint(), flow, fk.Normal())
    report = pipelines.SetFlowReport(fk.data.CloudSplit(sets, sets, other))

    pairs = zip(points, mask, strict=True)
    exact = [fk.metrics.chamfer(x[valid], x[valid] + 1) for x, valid in pairs]
    found = report.monitor(model, key=jr.key(0))["chamfer"]
    assert found == pytest.approx(np.mean(exact), rel=1e-5)


def test_muon_makes_updates_of_matrices_orthogonal():
    """Equal singular values, up to five Newton-Schulz iterations; the gradient's are 1 to 9."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(2))
    gradient = {"w": jnp.asarray((u * np.linspace(1, 9, 6)) @ v, jnp.float32)}
    training = pipelines.SetFlowTraining(optimizer="muon")
    optimizer = training.make_optimizer(lambda count: 1e-3 * (count + 1))
    state = optimizer.init(gradient)
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(gradient, state, gradient)
    moved = jax.tree.leaves(updates)[0]
    values = np.linalg.svd(np.asarray(moved), compute_uv=False)
    assert values.min() > 0.5 * values.max()


class Started(Exception):
    """Training would start here."""


SMALL = pipelines.SetFlowConfig(
    latent_size=4,
    encoder_sizes=(8,),
    width_size=8,
    depth=1,
    prior_width=8,
    prior_depth=1,
)


def started(examples, monkeypatch, config):
    """What a configuration hands to training, part by part, the cheap ones first."""
    calls = {}

    def fit_stages(stages, model, **options):
        calls.update(stages=stages, model=model, **options)
        raise Started

    def report(split, **options):
        calls.update(split=split, report=options)
        return

    monkeypatch.setattr(fk.training, "fit_stages", fit_stages)
    monkeypatch.setattr(pipelines, "SetFlowReport", report)
    with pytest.raises(Started):
        examples.main(config)
    checkpoints, stages, split = calls["checkpoints"], calls["stages"], calls["split"]
    yield str(checkpoints.directory), checkpoints.every
    yield calls["report"], calls["ema_decay"].decay
    yield [(stage.name, stage.num_steps, stage.batch_size) for stage in stages]
    yield [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(split)]
    model = calls["model"]
    flow = model.flow
    yield eqx.tree_pformat((vars(model), vars(flow), flow.network, model.prior))
    yield [leaf for leaf in jax.tree.leaves(model) if isinstance(leaf, int | float)]
    yield [
        np.asarray(leaf).tobytes()
        for leaf in jax.tree.leaves(calls["model"])
        if eqx.is_array(leaf)
    ]
    yield [updates_of(stage.optimizer) for stage in stages]
    first = stages[0]
    batch = next(iter(first.batches))
    yield [leaf.tobytes() for leaf in jax.tree.leaves(batch)]
    for stage in stages:
        if stage.name == "prior":
            batch = jnp.zeros((4, *calls["model"].latent_shape)), jnp.zeros(4, int)
        yield str(
            eqx.filter_make_jaxpr(stage.loss)(calls["model"], batch, jr.key(0))[0]
        )


def updates_of(optimizer):
    """Three updates of a matrix and a vector."""
    params = {"w": jnp.eye(2), "b": jnp.ones(2)}
    state, found = optimizer.init(params), []
    with jax.numpy_dtype_promotion("standard"):
        for scale in (1.0, 0.1, 0.3):
            gradient = jax.tree.map(lambda leaf, s=scale: s * leaf + 0.01, params)
            updates, state = optimizer.update(gradient, state, params)
            found.append(
                np.concatenate([np.ravel(u) for u in jax.tree.leaves(updates)])
            )
    return np.round(found, 8).tolist()


# Another value of every option, and what it takes to have an effect.
CHANGES = {
    "data": (None, {}),
    "max_samples": (9, {}),
    "num_points": (5, {}),
    "draws": (2, {"data": "digits", "max_samples": 2000}),
    "test_fraction": (0.4, {}),
    "test_samples": (3, {}),
    "class_conditional": (True, {}),
    "guidance": (2.0, {"class_conditional": True}),
    "checkpoint_every": (7, {}),
    "up_axis": (1, {}),
    "seed": (1, {}),
    "output": (None, {}),
    "stages": ("two-stage", {}),
    "num_steps": (11, {}),
    "prior_steps": (11, {}),
    "batch_size": (3, {}),
    "block": (1, {}),
    "augment": (True, {}),
    "learning_rate": (0.1, {}),
    "optimizer": ("muon", {}),
    "momentum": ("doubled", {}),
    "ema_decay": (0.9, {}),
    "times": ("late", {}),
    "coupling": ("points", {}),
    "class_dropout": (0.3, {"class_conditional": True}),
    "vae_kl_weight": (0.5, {"variational": True}),
    "marginal_kl_weight": (0.5, {}),
    "grid_mask": (True, {}),
    "grid_size": (4, {"grid_mask": True}),
    "grid_mask_probability": (0.7, {"grid_mask": True}),
    "encoder": ("dgcnn", {"encoder_sizes": (64, 128, 256), "pooling": "max"}),
    "pooling": ("max", {"encoder": "gmm", "encoder_sizes": (64, 128, 256)}),
    "latent_size": (6, {}),
    "num_latents": (3, {"encoder": "gmm", "encoder_sizes": (64, 128, 256)}),
    "encoder_sizes": ((9,), {}),
    "backbone": ("dit", {}),
    "conditioner": ("pool", {}),
    "width_size": (12, {}),
    "depth": (2, {}),
    "features": (True, {}),
    "time_scale": (5.0, {}),
    "path": ("cosine", {}),
    "prediction": ("target", {}),
    "num_components": (2, {}),
    "prior": ("mixture", {"prior_width": 128, "prior_depth": 4}),
    "prior_width": (12, {}),
    "prior_depth": (2, {}),
    "variational": (True, {}),
    "normalize": (True, {}),
}
NEEDED = {
    "draws": "digits", "guidance": "conditioned", "class_dropout": "conditioned",
    "vae_kl_weight": "variational", "grid_size": "grid_mask", "num_latents": "num_latents",
    "grid_mask_probability": "grid_mask", "up_axis": "dimensions",
}  # fmt: skip
MODEL = {field.name for field in dataclasses.fields(pipelines.SetFlowConfig)}
TRAINING = {field.name for field in dataclasses.fields(pipelines.SetFlowTraining)}


def configured(examples, values):
    parts = [
        {name: value for name, value in values.items() if name in names}
        for names in (MODEL, TRAINING)
    ]
    rest = {name: values[name] for name in values if name not in MODEL | TRAINING}
    model = dataclasses.replace(SMALL, **parts[0])
    training = pipelines.SetFlowTraining(
        **{"batch_size": 4, "num_steps": 10} | parts[1]
    )
    return examples.Config(**rest, model=model, training=training)


def test_all_options_are_tried(examples):
    names = {field.name for field in dataclasses.fields(examples.Config)}
    known = MODEL | TRAINING | names
    apart = {"model", "training", "start_from", "in_size", "num_classes"}
    assert set(CHANGES) == known - apart


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_has_an_effect(examples, monkeypatch, tmp_path, name):
    value, needed = CHANGES[name]
    data = save_clouds(tmp_path / "clouds.npz")
    if name == "data":
        value = save_clouds(tmp_path / "other.npz", number=21)
    if name == "output":
        value = str(tmp_path / "other")
    common = {"data": data, "num_points": 6, "output": str(tmp_path / "run")}
    before = configured(examples, common | needed)
    after = configured(examples, common | needed | {name: value})
    parts = [started(examples, monkeypatch, config) for config in (before, after)]
    assert any(one != other for one, other in zip(*parts, strict=False))


def test_equal_options_hand_over_the_same(examples, monkeypatch, tmp_path):
    """So that the differences above are the effects of an option."""
    data = save_clouds(tmp_path / "clouds.npz")
    common = {"data": data, "num_points": 6, "output": str(tmp_path / "run")}
    config = configured(examples, common)
    parts = [list(started(examples, monkeypatch, config)) for _ in range(2)]
    assert parts[0] == parts[1]


@pytest.mark.parametrize("name", NEEDED)
def test_options_without_effect_are_refused(examples, tmp_path, name):
    data = save_clouds(tmp_path / "clouds.npz", dim=2)
    with pytest.raises(ValueError, match=f"(?s){name}.*{NEEDED[name]}|{NEEDED[name]}"):
        examples.main(
            configured(
                examples,
                {"data": data, name: CHANGES[name][0], "output": str(tmp_path)},
            )
        )
    assert not (tmp_path / "checkpoints").exists()


REFUSED = {
    "normal": ({"stages": "prior", "prior": "normal"}, "normal prior has nothing to train"),
    "local": ({"stages": "prior", "encoder": "dgcnn"}, "latent for each point"),
    "no encoder": ({"stages": "prior"}, "no trained encoder"),
    "dimension": ({"in_size": 3}, "`in_size` is 3"),
    "classes": ({"num_classes": 3}, "`num_classes` is 3"),
    "attends": ({"backbone": "cross-attention", "conditioner": "pool"}, "attend to the latents"),
    "class of a mixture": ({"class_conditional": True, "prior": "mixture"}, "only a flow"),
    "no guidance": ({"class_conditional": True, "class_dropout": 0.0, "guidance": 2.0}, "above 0"),
    "unknown": ({"data": "cloud"}, "path of an .npz file"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_misuse_is_refused_before_training(examples, tmp_path, name):
    values, reason = REFUSED[name]
    sizes = {"encoder_sizes": (64, 128, 256), "prior_width": 128, "prior_depth": 4}
    data = save_clouds(tmp_path / "clouds.npz", dim=2)
    values = {"data": data, "output": str(tmp_path / "run")} | sizes | values
    with pytest.raises(ValueError, match=reason):
        examples.main(configured(examples, values))


def test_classes_need_labels(examples, tmp_path):
    path = save_clouds(tmp_path / "clouds.npz", labels=False)
    with pytest.raises(ValueError, match="`class_conditional` needs labels"):
        examples.main(examples.Config(data=path, class_conditional=True))


def test_missing_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        pipelines.load_set_flow(tmp_path)


RUNS = {
    "point clouds": {"model": dataclasses.asdict(pipelines.SetFlowConfig())},
    "images": {"model": dataclasses.asdict(pipelines.ImageFlowConfig())},
    "sparse images": {"model": dataclasses.asdict(pipelines.SparseFlowConfig())},
    "something else": {"model": "fm"},
}


@pytest.mark.parametrize(
    ("kind", "staged"),
    [
        ("point clouds", True),
        ("images", True),
        ("images", False),
        ("sparse images", False),
        ("something else", True),
    ],
)
def test_runs_of_another_kind_are_named(tmp_path, kind, staged):
    loss = lambda model, x, key: jnp.mean(jax.vmap(model)(x) ** 2)
    stage = fk.training.Stage("flow", loss, num_steps=1)
    folder = tmp_path / "checkpoints"
    checkpoints = fk.training.Checkpoints(folder, every=1, config=RUNS[kind])
    fk.training.fit_stages(
        [stage],
        eqx.nn.Linear(1, 1, key=jr.key(0)),
        np.ones((2, 1), np.float32),
        batch_size=2,
        checkpoints=checkpoints,
        key=jr.key(0),
    )
    # Without stages the checkpoints are in the folder itself.
    if not staged:
        (folder / "flow" / "1").rename(folder / "1")

    loaders = {
        "point clouds": pipelines.load_set_flow,
        "images": pipelines.load_image_flow,
    }
    for other, load in loaders.items():
        if other != kind:
            message = f"`folder`: {tmp_path} holds a run of {kind}, not of {other}"
            with pytest.raises(ValueError, match=message):
                load(tmp_path)
    config = pipelines.SetFlowConfig()
    if kind != "point clouds":
        with pytest.raises(ValueError, match=f"holds a run of {kind}"):
            pipelines.continued(tmp_path, config, {})
        return
    # A run that has not stored its units goes on.
    options = pipelines.continued(tmp_path, config, {"units": [[0.0], 1.0]})[1]
    assert "units" not in options


@pytest.mark.parametrize(
    "words", ["--grid-size 4", "--num-clouds 3", "--start-from no/run"]
)
def test_programs_report_misuse_in_one_line(monkeypatch, capsys, words):
    """A traceback tells a user nothing; the exit status tells a script."""
    monkeypatch.setattr(sys, "argv", ["point_clouds.py", *words.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / "point_clouds.py"), run_name="__main__")
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert {"grid": "grid_mask", "num": "--num-clouds", "start": "no/run"}[
        words[2:].split("-")[0]
    ] in line


@pytest.mark.parametrize("inside", ["", "below"])
def test_a_file_in_the_place_of_the_output_folder(tmp_path, capsys, inside):
    path = tmp_path / "taken"
    path.write_text("notes")
    with pytest.raises(SystemExit) as ended, pipelines.exit_on_misuse():
        (path / inside).mkdir(parents=True, exist_ok=True)
    assert ended.value.code == 2
    assert str(path) in capsys.readouterr().err


def test_faults_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), pipelines.exit_on_misuse():
        raise ZeroDivisionError
    # Neither the program nor flowkit has raised this one.
    with pytest.raises(ValueError, match="invalid literal"), pipelines.exit_on_misuse():
        int("x")


class Silent:
    """A report that costs nothing."""

    def __init__(self, split, **options):
        pass

    def monitor(self, model, *, key):
        return {"chamfer": 0.0}

    def draw(self, model, folder, *, generated=True, key):
        pass

    def write(self, model, folder, *, generated=True, key):
        return {"generated": generated}


WORDS = """--class-conditional --num-points 12 --num-steps 3 --batch-size 4 --block 2
--checkpoint-every None --optimizer muon --times late --grid-mask --test-samples 4
--model.latent-size 4 --model.encoder-sizes 8 --model.width-size 8 --model.depth 1
--model.prior-width 8 --model.prior-depth 1"""


def arrays_of(model):
    return jax.tree.leaves(eqx.filter((model.encoder, model.flow), eqx.is_array))


def check_units(units, sets, path):
    """Every valid point goes back to one of the file."""
    valid = sets.points[sets.mask]
    given = fk.data.load_npz(path)
    given = given.points[given.mask]
    distances = np.linalg.norm(units.undo(valid)[:, None] - given, axis=-1)
    assert distances.min(axis=1).max() < 1e-5 * np.abs(given).max()


@pytest.mark.slow
def test_stages_by_hand_and_a_run_found_again(examples, monkeypatch, tmp_path):
    """A ragged data set in space: the flow, its prior in the same folder, another prior
    elsewhere."""
    words = [*WORDS.split(), "--data", save_clouds(tmp_path / "clouds.npz")]
    run = tmp_path / "run"
    drawn = {}
    for name in ("reconstructions", "masked_examples"):
        draw = getattr(fk.plotting, name)

        def record(*arguments, name=name, draw=draw, **options):
            drawn[name] = arguments
            return draw(*arguments, **options)

        monkeypatch.setattr(fk.plotting, name, record)

    with monkeypatch.context() as patch:
        patch.setattr(pipelines, "SetFlowReport", Silent)
        examples.main(
            examples.parse([*words, "--output", str(run), "--stages", "flow"])
        )
    flow, _ = pipelines.load_set_flow(run)
    # The prior has random weights still.
    assert not json.loads((run / "metrics.json").read_text())["generated"]
    others = ["--output", str(run), "--stages", "prior", "--prior-steps", "50"]
    # Without `--num-steps` the stage of the flow stays as long as it is.
    examples.main(
        examples.parse([w for w in words if w not in ("--num-steps", "3")] + others)
    )
    final, stored = pipelines.load_set_flow(run)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["steps"] == {"flow": 3, "prior": 50}
    assert metrics["chamfer_floor"] > 0
    assert all(map(np.array_equal, arrays_of(flow), arrays_of(final)))
    config = pipelines.SetFlowConfig.from_json(stored["model"])
    assert (config.in_size, config.num_classes, config.width_size) == (3, 2, 8)
    assert {path.name for path in run.glob("*.png")} == {
        "explained_velocity.png", "loss_trajectory.png", "samples.png",
        "unconditional_samples.png", "masked_training_examples.png",
    }  # fmt: skip

    # What the grid hides is marked; the examples of it are training clouds.
    split = fk.data.cloud_split(tmp_path / "clouds.npz", 12, test_samples=4, seed=42)
    inputs, _, visible = drawn["reconstructions"][:3]
    assert [len(cloud) for cloud in inputs] == [len(mask) for mask in visible]
    assert not all(mask.all() for mask in visible)
    np.testing.assert_array_equal(drawn["masked_examples"][0], split.train.points[:8])
    held_out = fk.data.load_npz(run / "held_out.npz")
    np.testing.assert_array_equal(held_out.points, split.seen.points)
    check_units(stored["units"], held_out, tmp_path / "clouds.npz")

    # The options of the earlier run are the defaults, its networks stay.
    others = ["--start-from", str(run), "--output", str(tmp_path / "other")]
    others += ["--stages", "prior", "--prior-steps", "50"]
    config = examples.parse([*others, "--learning-rate", "0.01"])
    assert config.model == pipelines.SetFlowConfig.from_json(stored["model"])
    assert (config.training.optimizer, config.training.learning_rate) == ("muon", 0.01)
    monkeypatch.setattr(pipelines, "SetFlowReport", Silent)
    examples.main(config)
    other, _ = pipelines.load_set_flow(tmp_path / "other")
    assert all(map(np.array_equal, arrays_of(flow), arrays_of(other)))
    with pytest.raises(ValueError, match="another width_size.*keeps its networks"):
        examples.main(examples.parse([*others, "--model.width-size", "16"]))
