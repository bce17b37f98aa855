"""Checkpoints: a run that was stopped in any way goes on as if nothing had happened, and
nothing is ever lost."""

import errno
import functools as ft
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import flowkit as fk
from flowkit import training as tr
from flowkit.training._checkpoints.describe import describe_static
from flowkit.training._checkpoints.positions import own_position


ADAM = optax.adam(1e-2)
FIXTURES = Path(__file__).parent / "fixtures"
fit = ft.partial(tr.fit, progress=False)
DATA = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)


def build(config):
    return eqx.nn.MLP(2, 2, config["width"], 1, key=jr.key(3))


def loss(model, batch, key):
    noise = jr.normal(key, batch.shape)
    return jnp.mean((jax.vmap(model)(batch + noise) - batch) ** 2), {
        "noise": jnp.mean(noise)
    }


def shuffled():
    return grain.MapDataset.source(list(DATA)).shuffle(seed=4).repeat().batch(8)


def run(
    directory=None,
    *,
    batches=None,
    num_steps=60,
    stop=None,
    config=None,
    every=20,
    keep=2,
    **options,
):
    """One training run; `stop(step)` is called every 10 steps and may end it."""
    config = {"width": 8} | (config or {})

    def callback(state, step):
        if stop is not None:
            stop(step)
        return {"bias": state.ema.layers[-1].bias}

    options = {
        "optimizer": ADAM,
        "callbacks": [tr.Every(10, callback)],
        "key": jr.key(7),
    } | options
    if directory is not None:
        options["checkpoints"] = tr.Checkpoints(
            directory, every=every, keep=keep, config=config
        )
    batches = shuffled() if batches is None else batches
    width = {"width": int(config["width"])}
    return fit(loss, build(width), batches, num_steps=num_steps, **options)


def stop_at(number, action):
    return lambda step: action() if step == number else None


def assert_equal_runs(first, second):
    for one, two in zip(
        jax.tree.leaves(first.state), jax.tree.leaves(second.state), strict=True
    ):
        if eqx.is_array(one) and not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(one, two)
    assert list(first.history) == list(second.history)
    for name, series in first.history.items():
        np.testing.assert_array_equal(series.steps, second.history[name].steps)
        np.testing.assert_array_equal(series.values, second.history[name].values)


def assert_same_leaves(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert not eqx.is_array(one) or np.array_equal(one, two)


def steps_in(directory):
    return sorted(
        int(path.name) for path in Path(directory).iterdir() if path.name.isdigit()
    )


def truncate_arrays(directory, step):
    """Cut every data file of the checkpoint's model in half."""
    for path in (Path(directory) / str(step) / "model").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Stopping and going on


SOURCES: dict[str, dict[str, Any]] = {
    "grain": {},
    "grain iterable": {"batches": shuffled().to_iter_dataset()},
    "grain iterator": {"batches": lambda: iter(shuffled().to_iter_dataset())},
    "resident": {"batches": DATA, "batch_size": 8},
    "several per call": {"steps_per_call": 8},
    "no average": {"ema_decay": None, "callbacks": ()},
    "frozen": {"trainable": lambda m: m.layers[0]},
    "schedule": {
        "optimizer": optax.inject_hyperparams(optax.adamw)(
            optax.cosine_decay_schedule(1e-2, 60)
        )
    },
}


@pytest.mark.parametrize("options", SOURCES.values(), ids=SOURCES)
def test_two_halves_are_a_whole(options, tmp_path):
    def half_or_whole(**kwargs: Any):
        batches = options.get("batches")
        return run(
            **{**options, "batches": batches() if callable(batches) else batches},
            **kwargs,
        )

    straight = half_or_whole()
    half_or_whole(directory=tmp_path, num_steps=40)
    assert_equal_runs(half_or_whole(directory=tmp_path), straight)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import conftest
import test_training_checkpoints as tests
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
tests.run({directory!r}, every=10, stop=tests.stop_at(50, kill))
"""


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    # When it is killed the save of step 50 has not begun, and that of step 40 may be under way.
    script = SCRIPT.format(tests=str(Path(__file__).parent), directory=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert steps_in(tmp_path)
    assert max(steps_in(tmp_path)) <= 40
    (tmp_path / "50.orbax-checkpoint-tmp").mkdir(exist_ok=True)
    assert_equal_runs(run(tmp_path, every=10), run())


def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=stop_at(30, lambda: signal.raise_signal(signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is handler
    assert max(steps_in(tmp_path)) == 30
    assert_equal_runs(run(tmp_path), run())


def test_sigterm_finishes_the_step_and_saves(tmp_path):
    """What a scheduler sends before it kills; the status is that of a process ended by it."""
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, stop=stop_at(30, lambda: signal.raise_signal(signal.SIGTERM)))
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert max(steps_in(tmp_path)) == 30
    assert_equal_runs(run(tmp_path), run())


def test_a_second_sigterm_saves_what_was_reached(tmp_path):
    """It does not wait for the rest of the callback."""

    def twice():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        run(tmp_path, stop=stop_at(30, twice))
    assert ended.value.code == 143
    assert max(steps_in(tmp_path)) == 30
    assert_same_leaves(run(tmp_path).ema, run().ema)


def test_nothing_is_saved_before_the_first_step(tmp_path):
    run(tmp_path, num_steps=0, callbacks=())
    with pytest.raises(SystemExit):
        run(tmp_path, stop=stop_at(0, lambda: signal.raise_signal(signal.SIGTERM)))
    assert not steps_in(tmp_path)
    assert_equal_runs(run(tmp_path), run())


def test_a_handler_of_somebody_else_stays(tmp_path):
    caught = []
    handler = lambda number, frame: caught.append(number)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        run(tmp_path, stop=stop_at(30, lambda: signal.raise_signal(signal.SIGTERM)))
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught == [signal.SIGTERM]


class Failing:
    """Batches of which one cannot be read at first."""

    def __init__(self, error):
        self.error = error

    def __call__(self, i):
        if i == 33 and self.error is not None:
            error, self.error = self.error, None
            raise error
        return DATA[8 * (i % 8) : 8 * (i % 8) + 8]


@pytest.mark.parametrize(
    ("error", "steps_per_call", "step"), [(KeyboardInterrupt, 1, 33), (OSError, 8, 32)]
)
def test_an_error_in_the_data_saves_what_was_reached(
    error, steps_per_call, step, tmp_path
):
    """And how far it was read: batches that were taken in vain come again."""

    def read(directory=None, error=None):
        batches = grain.MapDataset.range(100).map(Failing(error))
        return run(directory, batches=batches, steps_per_call=steps_per_call)

    with pytest.raises(error):
        read(tmp_path, error)
    assert max(steps_in(tmp_path)) == step
    assert_equal_runs(read(tmp_path), read())


def test_an_error_while_a_step_is_traced_saves_what_was_reached(tmp_path):
    """A batch of another size is traced in the middle of a run."""

    def by_fours(model, batch, key):
        if len(batch) % 4:
            raise ZeroDivisionError
        return loss(model, batch, key)

    def read(loss, directory=None):
        batches = grain.MapDataset.range(60).map(lambda i: DATA[: 6 if i == 33 else 8])
        checkpoints = directory and tr.Checkpoints(directory, every=20)
        model = build({"width": 8})
        options: dict[str, Any] = {"num_steps": 40, "checkpoints": checkpoints}
        return fit(loss, model, batches, key=jr.key(7), **options)

    with pytest.raises(ZeroDivisionError):
        read(by_fours, tmp_path)
    assert steps_in(tmp_path) == [20, 33]
    assert_equal_runs(read(loss, tmp_path), read(loss))


def test_an_error_in_a_callback_saves_what_was_reached(tmp_path):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "first", stop=stop_at(0, fail))
    assert not steps_in(tmp_path / "first")
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "later", stop=stop_at(30, fail))
    assert max(steps_in(tmp_path / "later")) == 30
    resumed = run(tmp_path / "later")
    assert_same_leaves(resumed.ema, run().ema)


def test_the_first_error_is_the_one_to_be_seen(tmp_path, monkeypatch):
    """Even if the checkpoint cannot be written."""

    def full(manager):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail():
        monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", full)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as error:
        run(tmp_path, stop=stop_at(30, fail))
    (note,) = error.value.__notes__
    assert "What was reached is lost" in note
    assert str(tmp_path) in note


# What is kept


def test_keep_and_the_final_state(tmp_path):
    run(tmp_path, num_steps=50, every=15, keep=3)
    assert steps_in(tmp_path) == [30, 45, 50]


# By step; the lowest value is that of a checkpoint that `keep` alone would retire.
MEASURED = {0: 0.1, 10: 3.0, 20: 1.0, 30: np.nan, 40: 2.0, 50: 1.5, 55: 1.2}


def measured_run(directory, *, best="judged", num_steps=55):
    def callback(state, step):
        return {"judged": MEASURED[step], "vector": np.zeros(2)}

    checkpoints = tr.Checkpoints(directory, every=10, keep=1, best=best)
    return run(
        batches=DATA,
        batch_size=8,
        num_steps=num_steps,
        callbacks=[tr.Every(10, callback)],
        checkpoints=checkpoints,
    )


def test_the_best_checkpoint_is_kept(tmp_path):
    result = measured_run(tmp_path)
    assert steps_in(tmp_path) == [20, 55]
    assert tr.best_step(tmp_path) == 20

    expected = measured_run(tmp_path / "short", num_steps=20)
    model = tr.restore_model(tmp_path, lambda config: build({"width": 8}), step=20)
    assert_same_leaves(model, expected.ema)
    assert not np.array_equal(model.layers[0].weight, result.ema.layers[0].weight)


def test_the_best_checkpoint_outlives_an_interruption(tmp_path):
    """The one at which it stopped, after 33 steps, has no value, and is not the best."""

    def interrupt(state, step):
        if step == 33:
            raise KeyboardInterrupt

    def judge(state, step):
        return {"judged": MEASURED.get(step, 0.0)} if step % 10 == 0 else None

    def stopped(callbacks, num_steps):
        checkpoints = tr.Checkpoints(tmp_path, every=10, keep=1, best="judged")
        options = {"batches": DATA, "batch_size": 8, "checkpoints": checkpoints}
        run(num_steps=num_steps, callbacks=callbacks, **options)

    with pytest.raises(KeyboardInterrupt):
        stopped([tr.Every(10, judge), interrupt], 50)
    assert steps_in(tmp_path) == [20, 33]
    stopped([tr.Every(10, judge)], 50)
    assert steps_in(tmp_path) == [20, 50]
    assert tr.best_step(tmp_path) == 20


def test_misuse_of_the_best(tmp_path):
    """It is found at the first checkpoint, which is written all the same."""
    with pytest.raises(ValueError, match=r"`best` is 'loos', .* 'judged'"):
        measured_run(tmp_path / "name", best="loos")
    with pytest.raises(ValueError, match=r"`best` is 'vector', .* shape \(2,\)"):
        measured_run(tmp_path / "shape", best="vector")
    assert steps_in(tmp_path / "name") == steps_in(tmp_path / "shape") == [10]
    measured_run(tmp_path / "name", num_steps=30)
    assert tr.best_step(tmp_path / "name") == 20
    measured_run(tmp_path / "none", best=None, num_steps=20)
    with pytest.raises(ValueError, match=r"has a value to compare; train with"):
        tr.best_step(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"there is no folder"):
        tr.best_step(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint"):
        tr.best_step(tmp_path / "empty")


def test_a_longer_run_goes_on_and_a_shorter_one_is_refused(tmp_path):
    run(tmp_path, num_steps=40)
    assert_equal_runs(run(tmp_path, num_steps=60), run())
    assert_equal_runs(run(tmp_path, num_steps=60), run())  # nothing is left to do
    with pytest.raises(ValueError, match="already at step 60"):
        run(tmp_path, num_steps=40)
    assert steps_in(tmp_path) == [40, 60]


def test_nothing_is_printed(tmp_path, capfd):
    run(tmp_path)
    run(tmp_path, num_steps=80)
    tr.restore_model(tmp_path, build)
    out = capfd.readouterr()
    assert out.out == ""
    assert out.err == ""


# Damage


def truncate_history(directory, step):
    path = Path(directory) / str(step) / "history" / "_METADATA"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [truncate_arrays, truncate_history])
def test_a_damaged_checkpoint_is_set_aside(damage, tmp_path):
    straight = run()
    run(tmp_path, num_steps=60)
    damage(tmp_path, 60)
    with pytest.warns(UserWarning, match="60 is damaged"):
        resumed = run(tmp_path)
    assert_equal_runs(resumed, straight)
    assert steps_in(tmp_path) == [40, 60]
    assert (tmp_path / "damaged-60").is_dir()
    assert_equal_runs(run(tmp_path), straight)


def test_a_checkpoint_without_its_metadata_is_damaged(tmp_path):
    run(tmp_path, num_steps=60)
    for path in (tmp_path / "60" / "meta").iterdir():
        path.write_text(path.read_text()[:20])
    with pytest.warns(UserWarning, match="60 is damaged"):
        model = tr.restore_model(tmp_path, build)
    np.testing.assert_array_equal(
        model.layers[0].weight, run(num_steps=40).ema.layers[0].weight
    )
    with pytest.warns(UserWarning, match="60 is damaged"):
        run(tmp_path)


def test_if_all_are_damaged_nothing_is_overwritten(tmp_path):
    run(tmp_path, num_steps=60)
    truncate_arrays(tmp_path, 40)
    truncate_arrays(tmp_path, 60)
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match="No checkpoint in .* can be read"),
    ):
        run(tmp_path)
    assert steps_in(tmp_path) == [40, 60]


# Another run's folder


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"config": {"width": 9}}, r"config\['width'\] is 8 there and 9 here"),
    "extra": ({"config": {"depth": 1}}, r"config\['depth'\] is None there and 1 here"),
    "optimizer": ({"optimizer": optax.sgd(1e-2, momentum=0.9)}, "absent"),
    "average": ({"ema_decay": None, "callbacks": ()}, "ema` is only in the folder"),
    "trainable": ({"trainable": lambda m: m.layers[0]}, "absent here"),
    "key": (
        {"key": jr.key(7, impl="rbg")},
        r"key<fry>\[\] there and key<rbg>\[\] here",
    ),
}


@pytest.mark.parametrize(("options", "message"), OTHERS.values(), ids=OTHERS)
def test_another_run_is_refused(options, message, tmp_path):
    run(tmp_path, num_steps=40)
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path, **options)
    assert str(tmp_path) in str(error.value)
    assert "Nothing was deleted" in str(error.value)
    assert steps_in(tmp_path) == [20, 40]


def test_an_optimizer_with_the_same_arrays_goes_on(tmp_path):
    run(tmp_path, num_steps=20)
    resumed = run(tmp_path, num_steps=20, optimizer=optax.adamw(1e-1))
    assert int(resumed.state.step) == 20


def test_batches_of_another_kind_are_refused(tmp_path):
    kinds: dict[str, dict[str, Any]] = {
        "arrays": {"batches": DATA, "batch_size": 8},
        "a grain dataset": {"batches": shuffled()},
    }
    for name, options in kinds.items():
        run(tmp_path / name, num_steps=20, **options)
    for name, other in zip(kinds, reversed(kinds.values()), strict=True):
        with pytest.raises(ValueError, match=f"`batches` were {name} when"):
            run(tmp_path / name, **other)
        assert steps_in(tmp_path / name) == [20]


def test_a_model_of_another_shape_without_config(tmp_path):
    fit(
        loss,
        build({"width": 8}),
        DATA,
        num_steps=2,
        key=jr.key(0),
        checkpoints=tr.Checkpoints(tmp_path, every=5),
    )
    with pytest.raises(
        ValueError, match=r"weight is float32\[8, 2\] there and float32\[9, 2\] here"
    ):
        fit(
            loss,
            build({"width": 9}),
            DATA,
            num_steps=4,
            key=jr.key(0),
            checkpoints=tr.Checkpoints(tmp_path, every=5),
        )


# The static part of a model: what is no array


def flow(prediction=fk.Velocity(), path=fk.LinearPath(), activation=jax.nn.silu):
    network = fk.nn.MLP(2, hidden_sizes=(8,), activation=activation, key=jr.key(3))
    return fk.Flow(network, path, prediction)


def flow_run(directory, model, num_steps=2):
    return fit(
        lambda model, batch, key: fk.flow_matching_loss(model, batch, key=key),
        model,
        DATA,
        num_steps=num_steps,
        batch_size=8,
        key=jr.key(0),
        checkpoints=tr.Checkpoints(directory, every=100),
    )


STATIC = {
    "prediction": ({"prediction": fk.Target()}, "model.prediction is Velocity there"),
    "path": ({"path": fk.CosinePath()}, "model.path is LinearPath there and CosineP"),
    "option": ({"path": fk.LinearPath(sigma_min=0.1)}, "model.path.sigma_min is 0 the"),
    "activation": ({"activation": jax.nn.relu}, "is silu there and relu here"),
}


@pytest.fixture(scope="module")
def velocity_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("velocity")
    return directory, flow_run(directory, flow())


@pytest.mark.parametrize(("change", "message"), STATIC.values(), ids=STATIC)
def test_a_model_that_means_something_else_is_refused(change, message, velocity_run):
    directory, result = velocity_run
    with pytest.raises(ValueError, match=message) as error:
        flow_run(directory, flow(**change), num_steps=3)
    assert "Nothing was deleted" in str(error.value)
    with pytest.raises(ValueError, match=message):
        tr.restore_model(directory, lambda config: flow(**change))
    restored = tr.restore_model(directory, lambda config: flow())
    assert_same_leaves(restored, result.ema)


class Leafless(eqx.Module):
    """Whatever a static part may hold."""

    weight: jax.Array
    function: Any
    things: Any = eqx.field(static=True, default=None)

    def __call__(self, x):
        return self.function(self.weight * x)


def scaled(x, factor):
    return factor * x


@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")
def test_a_description_is_the_same_in_every_process():
    """Functions by their names, wherever they were made; numbers by their values."""

    def made_here(x):
        return x

    def describe(function, things=None):
        return describe_static(Leafless(jnp.ones(2), function, things))

    def elsewhere():
        def made_here(x):
            return x

        return describe(made_here)

    assert describe(made_here) == elsewhere()
    assert describe(made_here)[".function"] == "made_here"
    assert describe(lambda x: x)[".function"] == "<lambda>"
    assert describe(jnp.tanh)[".function"] == describe(jax.nn.tanh)[".function"]
    half = ft.partial(scaled, factor=0.5)
    assert describe(half)[".function"] == "partial(scaled, factor=0.5)"
    assert describe(jax.tree_util.Partial(scaled, 2.0)) != describe(scaled)

    assert describe(scaled, 1) == describe(scaled, 1.0)
    assert describe(scaled, np.float32(1)) == describe(scaled, np.int64(1))
    assert describe(scaled, (1, None)) != describe(scaled, (1,))
    assert describe(scaled, object()) == describe(scaled, object())
    things = [object(), made_here, {"a": threading.Lock()}, range(3)]
    assert "0x" not in str(describe(scaled, things))
    assert describe(scaled, np.arange(3)) == describe(scaled, np.arange(3))
    assert describe(scaled, np.arange(3)) != describe(scaled, np.ones(3, int))
    # Neither the values of arrays nor their presence.
    assert ".weight" not in describe(scaled)


def test_an_option_that_a_later_release_adds_is_no_difference(velocity_run):
    directory, result = velocity_run
    meta = next((directory / "2" / "meta").glob("metadata"))
    stored = json.loads(meta.read_text())
    assert stored["static"].pop(".prediction") == "Velocity"
    stored["static"][".gone"] = "1"
    copy = directory.parent / "earlier"
    shutil.copytree(directory, copy)
    (copy / "2" / "meta" / "metadata").write_text(json.dumps(stored))
    restored = tr.restore_model(copy, lambda config: flow())
    assert_same_leaves(restored, result.ema)


def test_libraries_that_have_changed_are_named(velocity_run):
    """In errors about differences, and about damage."""
    directory, _ = velocity_run
    copy = directory.parent / "older"
    shutil.copytree(directory, copy)
    meta = copy / "2" / "meta" / "metadata"
    stored = json.loads(meta.read_text())
    assert stored["versions"]["flowkit"] == fk.__version__
    stored["versions"] |= {"optax": "0.1.2"}
    meta.write_text(json.dumps(stored))

    there = re.escape(f"; written with optax 0.1.2 (here {optax.__version__})")
    other = flow(fk.Target())
    with pytest.raises(ValueError, match=f"{there}. Nothing was deleted"):
        flow_run(copy, other, num_steps=3)
    with pytest.raises(ValueError, match=f"{there}; build it"):
        tr.restore_model(copy, lambda config: other)
    truncate_arrays(copy, 2)
    with pytest.raises(ValueError, match=f"{there}$"):
        tr.restore_model(copy, lambda config: flow(), ema=False, step=2)


# What 0.2.0 wrote


@pytest.fixture(scope="module")
def of_0_2_0(tmp_path_factory):
    """A run of 20 steps, and what its models gave then.

    `outputs.npz` holds the velocities of the averaged and of the last weights at
    `times` and `data[0]`, those of the last weights 4 steps later, and all losses.
    """
    directory = tmp_path_factory.mktemp("0.2.0")
    with tarfile.open(FIXTURES / "checkpoint-0.2.0.tar.xz") as archive:
        archive.extractall(directory, filter="data")
    return directory / "run", np.load(directory / "outputs.npz")


def adaln_flow(config, **options):
    network = fk.nn.AdaLNMLP(
        2, 0, width_size=config["width"], depth=1, cond_size=4, key=jr.key(9), **options
    )
    return fk.Flow(network)


def velocities(model, outputs):
    at = jax.jit(jax.vmap(model, in_axes=(0, None)))
    return at(jnp.asarray(outputs["times"]), jnp.asarray(outputs["data"][0]))


@pytest.mark.parametrize("name", ["ema", "model"])
def test_a_model_of_0_2_0_is_restored(name, of_0_2_0):
    """Also its embedding of the time, whose default has changed since."""
    directory, outputs = of_0_2_0
    model = tr.restore_model(directory, adaln_flow, ema=name == "ema")
    found = velocities(model, outputs)
    np.testing.assert_allclose(found, outputs[name], rtol=1e-4, atol=1e-5)


def test_a_run_of_0_2_0_is_resumed(of_0_2_0):
    directory, outputs = of_0_2_0
    config = {"width": 8}
    embedding = fk.nn.SinusoidalTime(32, scale=1000.0)
    with pytest.warns(UserWarning, match="0.2.0 or older, which recorded arrays only"):
        result = fit(
            lambda model, batch, key: fk.flow_matching_loss(model, batch, key=key),
            adaln_flow(config, time_embedding=embedding),
            outputs["data"],
            batch_size=8,
            num_steps=24,
            optimizer=optax.adam(1e-1),
            checkpoints=tr.Checkpoints(directory, config=config),
            key=jr.key(1),
        )
    losses = result.history["loss"].values
    np.testing.assert_allclose(losses, outputs["loss"], rtol=1e-3)
    found = velocities(result.model, outputs)
    np.testing.assert_allclose(found, outputs["resumed"], rtol=1e-3, atol=1e-3)


# What else a checkpoint keeps


def test_a_run_that_a_callback_ended_is_complete(tmp_path):
    """The same command changes nothing; another `num_steps` goes on."""
    callback = tr.Every(10, lambda state, step: tr.Stop() if step == 30 else None)
    ended = run(tmp_path, callbacks=[callback])
    assert steps_in(tmp_path) == [20, 30]
    assert_equal_runs(run(tmp_path, callbacks=()), ended)
    longer = run(tmp_path, callbacks=(), num_steps=70)
    assert_equal_runs(longer, run(callbacks=(), num_steps=70))


def test_early_stopping_begins_again_with_each_resumption(tmp_path):
    """Ended after three calls without a new minimum, and then after three more."""
    patient = tr.EarlyStopping(lambda state: 1.0, patience=3)
    for num_steps, end in ((90, 30), (100, 70)):
        result = run(tmp_path, callbacks=[tr.Every(10, patient)], num_steps=num_steps)
        assert int(result.state.step) == end


def test_a_run_whose_batches_ended_is_complete(tmp_path):
    """The same command says so again, but calls and records nothing."""
    seen = []

    def last(state, step, metrics):
        seen.append(step)
        return {"last": metrics["loss"]}

    options: dict[str, Any] = {
        "batches": grain.MapDataset.range(15).map(Failing(None)).to_iter_dataset(),
        "callbacks": [tr.Every(10, last)],
    }
    with pytest.warns(UserWarning, match="ended after 15 of 60"):
        ended = run(tmp_path, **options)
    with pytest.warns(UserWarning, match="ended after 15 of 60"):
        assert_equal_runs(run(tmp_path, **options), ended)
    assert seen == [10, 15]


def test_positions_of_several_processes(tmp_path, monkeypatch):
    """Each goes on from its own; one for all serves any number of processes."""
    run(tmp_path, num_steps=20)
    meta = tmp_path / "20" / "meta" / "metadata"
    stored = json.loads(meta.read_text())
    assert "positions" not in stored
    positions = {"positions": [stored["position"], {"next_index": 7}]}
    meta.write_text(json.dumps(stored | positions))
    with pytest.raises(ValueError, match="by 2 processes.* cannot go on with 1"):
        run(tmp_path)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert own_position(stored | positions, tmp_path) == {"next_index": 7}
    assert own_position(stored, tmp_path) == stored["position"]


def test_half_precision_averages_are_kept_and_restored(tmp_path):
    def half(config):
        cast = lambda leaf: leaf.astype(jnp.bfloat16)
        return jax.tree.map(lambda a: cast(a) if eqx.is_array(a) else a, build(config))

    def half_loss(model, batch, key):
        del key
        batch = batch.astype(jnp.bfloat16)
        return jnp.mean((jax.vmap(model)(batch) - batch) ** 2)

    halves = ft.partial(
        fit, half_loss, half({"width": 8}), DATA, batch_size=8, key=jr.key(0)
    )
    checkpoints = tr.Checkpoints(tmp_path, every=5, config={"width": 8})
    halves(num_steps=5, checkpoints=checkpoints)
    resumed = halves(num_steps=10, checkpoints=checkpoints)
    assert_same_leaves(resumed.state.average, halves(num_steps=10).state.average)
    restored = tr.restore_model(tmp_path, half)
    assert restored.layers[0].weight.dtype == jnp.bfloat16
    assert_same_leaves(restored, resumed.ema)


def test_numbers_of_numpy(tmp_path):
    config = {"width": np.int64(8), "rates": np.array([0.5, 1.0])}
    every, keep = np.int64(20), np.int32(1)
    run(tmp_path, every=every, keep=keep, config=config, num_steps=np.int64(40))
    assert tr.stored_config(tmp_path) == {"width": 8, "rates": [0.5, 1.0]}
    step = np.int64(40)
    assert tr.restore_model(tmp_path, build, step=step).layers[0].weight.shape[0] == 8


def test_seconds_count_from_the_beginning(tmp_path):
    first = run(tmp_path, stop=stop_at(40, lambda: time.sleep(0.3)))
    again = run(tmp_path)
    assert 0.3 <= first.seconds
    # Those of the last checkpoint, a moment before the end of the run.
    assert 0.3 <= again.seconds
    assert run(tmp_path, num_steps=70).seconds > 0.3


def test_a_resumed_run_says_so(tmp_path, capsys, caplog):
    plain = {"callbacks": (), "num_steps": 20}
    run(tmp_path, progress=True, **plain)
    assert "Resuming" not in capsys.readouterr().err
    run(tmp_path, progress=True, **plain | {"num_steps": 40})
    line = f"Resuming {tmp_path} at step 20 of 40."
    assert line in capsys.readouterr().err
    # Without a progress bar nothing is printed: the line goes to the log.
    with caplog.at_level(logging.INFO, logger="flowkit.training"):
        run(tmp_path, **plain | {"num_steps": 60})
    assert f"Resuming {tmp_path} at step 40 of 60." in caplog.messages
    assert capsys.readouterr().err == ""


# Folders


def test_a_folder_that_cannot_be_written_fails_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    began = []
    with pytest.raises(ValueError, match="cannot be written to .*`directory`"):
        run(tmp_path / "file" / "folder", stop=began.append)
    assert not began


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written to"):
        run(tmp_path)


def blocked(folder, monkeypatch):
    """A file stands where the folder was: errors come from the thread that writes."""
    del monkeypatch
    folder.rename(folder.with_name("kept"))
    folder.write_text("")


def full(folder, monkeypatch):
    def save(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    shutil.copytree(folder, folder.with_name("kept"))


@pytest.mark.parametrize("disaster", [blocked, full])
def test_a_checkpoint_that_cannot_be_written(disaster, tmp_path, monkeypatch):
    """The error names the folder and has the result; the run goes on from what was there."""
    folder = tmp_path / "run"
    run(folder, num_steps=20)
    action = stop_at(30, ft.partial(disaster, folder, monkeypatch))
    with pytest.raises(tr.NotSaved, match=f"written to {folder}") as error:
        run(folder, stop=action)
    assert error.value.result.state.step in (40, 60)
    monkeypatch.undo()
    assert steps_in(tmp_path / "kept") == [20]
    assert_equal_runs(run(tmp_path / "kept"), run())


def test_a_last_checkpoint_that_cannot_be_written(tmp_path, monkeypatch):
    """The signal would end the process as if it were there."""
    save = ocp.CheckpointManager.save

    def fail(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save_and_fail(*args, **options):
        monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", fail)
        return save(*args, **options)

    def action():
        monkeypatch.setattr(ocp.CheckpointManager, "save", save_and_fail)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(tr.NotSaved) as error:
        run(tmp_path, stop=stop_at(30, action))
    assert error.value.result.state.step == 30


def test_a_folder_that_vanishes_is_made_again(tmp_path):
    run(tmp_path / "run", num_steps=20)
    action = stop_at(30, ft.partial(shutil.rmtree, tmp_path / "run"))
    with pytest.warns(UserWarning, match="was removed during the training"):
        run(tmp_path / "run", stop=action)
    assert steps_in(tmp_path / "run") == [40, 60]


def test_an_iterator_has_no_position(tmp_path):
    with pytest.raises(ValueError, match="`checkpoints` cannot hold the position"):
        run(tmp_path, batches=iter([DATA]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "`every`"),
        ({"keep": 0}, "`keep`"),
        ({"config": {"a": object()}}, "`config` must be what JSON"),
    ],
)
def test_wrong_checkpoints(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tr.Checkpoints(tmp_path, **options)


# Loading a model


@pytest.mark.parametrize("ema", [True, False])
def test_restore_model(ema, tmp_path):
    result = run(tmp_path)
    built = []

    def traced(config):
        built.append(config)
        model = build(config)
        with pytest.raises(jax.errors.ConcretizationTypeError):
            float(model.layers[0].weight[0, 0])
        return model

    model = tr.restore_model(str(tmp_path), traced, ema=ema)
    assert built == [{"width": 8}]
    expected = result.ema if ema else result.model
    assert jax.tree.structure(model) == jax.tree.structure(expected)
    for one, two in zip(jax.tree.leaves(model), jax.tree.leaves(expected), strict=True):
        assert not eqx.is_array(one) or np.array_equal(one, two)
    earlier = tr.restore_model(tmp_path, build, step=40, ema=ema)
    expected = run(num_steps=40).ema if ema else run(num_steps=40).model
    np.testing.assert_array_equal(earlier.layers[0].weight, expected.layers[0].weight)


def test_restore_model_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        tr.restore_model(tmp_path / "none", build)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        tr.restore_model(tmp_path, build)
    run(tmp_path, ema_decay=None, callbacks=())
    with pytest.raises(ValueError, match="pass `ema=False`"):
        tr.restore_model(tmp_path, build)
    with pytest.raises(ValueError, match=r"no checkpoint 50, only \[40, 60\]"):
        tr.restore_model(tmp_path, build, step=50, ema=False)
    with pytest.raises(ValueError, match="`build` makes another model"):
        tr.restore_model(tmp_path, lambda config: build({"width": 5}), ema=False)


def test_checkpoints_hold_no_pickles(tmp_path):
    run(tmp_path)
    meta = json.loads(next((tmp_path / "60" / "meta").glob("metadata")).read_text())
    assert meta["config"] == {"width": 8}
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and path.read_bytes()[:1] == b"\x80"
    ]
