"""Checkpoints: a run that was stopped in any way goes on as if nothing had happened, and nothing is ever lost."""

import functools as ft
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from flowkit import training as tr


ADAM = optax.adam(1e-2)
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
    return fit(loss, build(config), batches, num_steps=num_steps, **options)


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
tests.run({directory!r}, every=10, stop=tests.stop_at(50, lambda: os.kill(os.getpid(), signal.SIGKILL)))
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


def test_an_interrupt_from_inside_the_data_keeps_the_last_checkpoint(tmp_path):
    class Interrupting:
        def __call__(self, i):
            if i == 33:
                raise KeyboardInterrupt
            return DATA[8 * (i % 8) : 8 * (i % 8) + 8]

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, batches=grain.MapDataset.range(100).map(Interrupting()))
    assert max(steps_in(tmp_path)) == 20


# What is kept


def test_keep_and_the_final_state(tmp_path):
    run(tmp_path, num_steps=50, every=15, keep=3)
    assert steps_in(tmp_path) == [30, 45, 50]


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
