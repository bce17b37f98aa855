"""Steps and the loop: oracles are a plain hand-written loop, closed forms, and runs that
must agree."""

import functools as ft
import itertools
import mmap
import time
from typing import Any

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jaxtyping import TypeCheckError

from flowkit import training as tr
from flowkit.training._loop.history import Recorder, TooManySkipped

from .oracles import compilations


class Line(eqx.Module):
    weight: jax.Array
    bias: np.ndarray | jax.Array
    scale: float

    def __call__(self, x):
        return self.scale * (self.weight @ x) + self.bias


def line():
    return Line(
        jnp.array([[1.0, -2.0], [0.5, 0.25]]), np.array([0.1, 0.2], np.float32), 1.5
    )


def mse(model, batch, key):
    del key
    return jnp.mean((jax.vmap(model)(batch["x"]) - batch["y"]) ** 2)


def noisy(model, batch, key):
    value = mse(model, batch, key) + 0.1 * jnp.sum(jr.normal(key, (2,)) * model.bias)
    return value, {"size": jnp.sum(model.weight**2)}


def make_data(size=64):
    xkey, ykey = jr.split(jr.key(11))
    return {"x": jr.normal(xkey, (size, 2)), "y": jr.normal(ykey, (size, 2))}


def as_grain(data, batch_size=8):
    data = jax.tree.map(np.asarray, data)
    gather = lambda i: jax.tree.map(
        lambda a: a[i * batch_size : (i + 1) * batch_size], data
    )
    return grain.MapDataset.range(len(data["x"]) // batch_size).map(gather)


def arrays(tree):
    return [
        np.asarray(leaf)
        for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    ]


def assert_same(first, second):
    for one, two in zip(arrays(first), arrays(second), strict=True):
        np.testing.assert_array_equal(one, two)


fit = ft.partial(tr.fit, progress=False)
ADAM = optax.adam(1e-2)
ADAMW = optax.adamw(1e-2, weight_decay=0.1)
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "adamw": ADAMW,
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), ADAM),
    "schedule": optax.inject_hyperparams(optax.adam)(
        optax.cosine_decay_schedule(1e-2, 10)
    ),
    "plateau": optax.chain(ADAM, optax.contrib.reduce_on_plateau(patience=1)),
    "masked": optax.multi_transform(
        {"all": ADAM}, lambda p: jax.tree.map(lambda _: "all", p)
    ),
}


# One step


def test_sgd_step_is_the_hand_written_one(key):
    model, data = line(), make_data()
    step = tr.make_step(mse, optax.sgd(0.1))
    state, metrics = step(tr.init_state(model, optax.sgd(0.1), key=key), data)
    value, grads = jax.value_and_grad(
        lambda w: mse(eqx.tree_at(lambda m: m.weight, model, w), data, key)
    )(model.weight)
    np.testing.assert_allclose(
        state.model.weight, model.weight - 0.1 * grads, rtol=1e-6
    )
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    assert state.model.scale == 1.5
    assert int(state.step) == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_runs_and_traces_once(optimizer, key):
    traces = []

    def counted(model, batch, key):
        traces.append(None)
        return mse(model, batch, key)

    step = tr.make_step(counted, optimizer, ema_decay=0.9)
    state = tr.init_state(line(), optimizer, ema_decay=0.9, key=key)
    losses = []
    for _ in range(20):
        state, metrics = step(state, make_data())
        losses.append(float(metrics["loss"]))
    assert len(traces) == 1
    assert losses[-1] < losses[0]


def test_grad_norm_is_before_clipping(key):
    optimizer = OPTIMIZERS["clipped"]
    _, metrics = tr.make_step(mse, optimizer)(
        tr.init_state(line(), optimizer, key=key), make_data()
    )
    grads = eqx.filter_grad(lambda m: mse(m, make_data(), key))(line())
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-6)


def test_the_key_differs_from_step_to_step_and_the_metrics_are_returned(key):
    seen = lambda model, batch, key: (jnp.sum(model) * 0.0, {"draw": jr.uniform(key)})
    state = tr.init_state(jnp.ones(2), ADAM, key=key)
    _, metrics = tr.make_step(seen, ADAM, steps_per_call=5)(state, jnp.zeros((5, 1)))
    assert len(np.unique(metrics["draw"])) == 5


@pytest.mark.parametrize("loss", [mse, noisy])
def test_several_steps_per_call_are_single_steps(loss, key):
    batches = list(Passes(make_data()))[:4]
    one = tr.init_state(line(), ADAM, ema_decay=0.9, key=key)
    step = tr.make_step(loss, ADAM, ema_decay=0.9)
    for batch in batches:
        one, _ = step(one, batch)
    four = tr.init_state(line(), ADAM, ema_decay=0.9, key=key)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    four, metrics = tr.make_step(loss, ADAM, ema_decay=0.9, steps_per_call=4)(
        four, stack
    )
    assert metrics["loss"].shape == (4,)
    for first, second in zip(arrays(one), arrays(four), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-7)


def test_the_caller_keeps_model_and_key(key):
    model = line()
    before = arrays(model)
    state = tr.init_state(model, ADAM, ema_decay=0.9, key=key)
    tr.make_step(mse, ADAM, ema_decay=0.9)(state, make_data())
    fit(mse, model, make_data(), num_steps=3, optimizer=ADAM, key=key)
    for one, two in zip(before, arrays(model), strict=True):
        np.testing.assert_array_equal(one, two)
    jr.uniform(key)


def test_a_state_with_shared_buffers_can_be_donated(key):
    shared = jnp.ones(3)
    state = tr.init_state((shared, shared), ADAM, ema_decay=0.0, key=key)
    step = tr.make_step(
        lambda m, b, k: jnp.sum(m[0] ** 2 + m[1] ** 2), ADAM, ema_decay=0.0
    )
    for _ in range(3):
        state, _ = step(state, None)
    assert_same(state.ema, state.model)


# The average of the weights


def test_average_of_a_constant():
    ema, rho = jnp.zeros(3), 0.9
    for _ in range(7):
        ema = tr.update_ema(ema, jnp.ones(3), rho)
    np.testing.assert_allclose(ema, 1 - rho**7, rtol=1e-6)


def test_average_of_infinite_entries():
    """Such as those of an additive mask; the others move on."""
    mask = jnp.array([0.0, -jnp.inf, jnp.inf])
    np.testing.assert_array_equal(tr.update_ema(mask, mask, 0.9), mask)
    moved = tr.update_ema(mask, mask + 1, 0.9)
    np.testing.assert_allclose(moved, [0.1, -np.inf, np.inf], rtol=1e-5)


@pytest.mark.parametrize("decay", [0.5, tr.WarmUpDecay(0.5)])
def test_average_follows_its_recursion(decay, key):
    state = tr.init_state(line(), ADAM, ema_decay=decay, key=key)
    step = tr.make_step(mse, ADAM, ema_decay=decay)
    expected = np.asarray(state.model.weight, np.float64)
    for n in range(20):
        state, _ = step(state, make_data())
        rho = 0.5 if decay == 0.5 else min(0.5, (1 + n) / (10 + n))
        expected = rho * expected + (1 - rho) * np.asarray(
            state.model.weight, np.float64
        )
        np.testing.assert_allclose(state.ema.weight, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_average_of_half_precision_weights_moves(dtype):
    """Weights of 1 at the start and 1.5 ever after: 1.5 - 0.5 decay^n, also in `fit`."""
    step = jax.jit(lambda ema: tr.update_ema(ema, jnp.full(1, 1.5, dtype), 0.999))
    average = jnp.ones(1, dtype)
    for _ in range(2000):
        average = step(average)
    expected = 1.5 - 0.5 * 0.999**2000
    np.testing.assert_allclose(average, [expected], rtol=1e-4)

    # One step of 0.5 along the gradient -1, and none after it.
    model = jnp.ones(1, dtype)
    loss = lambda m, b, k: -jnp.sum(jnp.minimum(m, jnp.asarray(1.25, dtype)))
    result = fit(
        loss,
        model,
        jnp.zeros((4, 1)),
        optimizer=optax.sgd(0.5),
        ema_decay=0.999,
        num_steps=2000,
        steps_per_call=500,
        key=jr.key(0),
    )
    np.testing.assert_allclose(result.state.average, [expected], rtol=1e-4)
    assert result.ema.dtype == result.model.dtype == dtype
    np.testing.assert_array_equal(result.ema, result.state.average.astype(dtype))


def test_average_follows_updates_not_steps(key):
    """Weights of 0, and 1 from the first update on: 1 - decay^n after n updates."""
    optimizer = optax.MultiSteps(optax.sgd(0.5), 4)
    quadratic = lambda model, batch, key: (model - batch.mean()) ** 2
    for decay, after_two in ((0.9, 0.19), (tr.WarmUpDecay(0.999), 1 - 0.1 * 2 / 11)):
        state = tr.init_state(jnp.zeros(()), optimizer, ema_decay=decay, key=key)
        step = tr.make_step(quadratic, optimizer, ema_decay=decay)
        averages = []
        for _ in range(8):
            state, _ = step(state, jnp.ones(3))
            averages.append(float(state.ema))
        after_one = 1 - (0.9 if decay == 0.9 else 0.1)
        expected = [0.0] * 3 + [after_one] * 4 + [after_two]
        np.testing.assert_allclose(averages, expected, rtol=1e-5)
        assert float(state.model) == 1.0


def test_multi_steps_is_one_step_of_the_mean_gradient(key):
    """The object itself, its transformation, and any other pair of `init` and `update`."""

    class Pair:
        init = staticmethod(optax.sgd(0.1).init)
        update = staticmethod(optax.sgd(0.1).update)

    data = make_data(16)
    whole = fit(mse, line(), data, optimizer=Pair(), num_steps=1, key=key)
    halves = lambda: iter(
        [jax.tree.map(lambda a, i=i: a[8 * i : 8 * i + 8], data) for i in range(2)]
    )
    multi = optax.MultiSteps(optax.sgd(0.1), 2)
    for optimizer in (multi, multi.gradient_transformation()):
        parts = fit(mse, line(), halves(), optimizer=optimizer, num_steps=2, key=key)
        np.testing.assert_allclose(parts.model.weight, whole.model.weight, rtol=1e-5)


def test_gradients_of_half_precision_do_not_overflow(key):
    """A gradient of 400 in 9 float16 weights has the norm 1200; its squares overflow."""
    loss = lambda m, b, k: jnp.sum(400 * m)
    model = jnp.ones(9, jnp.float16)
    result = fit(loss, model, jnp.zeros((4, 1)), num_steps=1, key=key)
    np.testing.assert_allclose(result.history["grad_norm"].values, [1200.0])
    assert result.history["skipped"].values == [0]


# Freezing


SPLITS = {
    "part": lambda m: m["a"],
    "parts": lambda m: (m["a"].bias, m["a"].weight),
    "all but": lambda m: eqx.tree_at(lambda m: m["b"], m, None),
    "predicate": lambda m: [leaf for leaf in jax.tree.leaves(m) if leaf.shape[-1] == 3],
}


@pytest.mark.parametrize("trainable", SPLITS.values(), ids=SPLITS)
def test_frozen_leaves_keep_their_bits_under_adamw(trainable, key):
    akey, bkey = jr.split(key)
    model = {
        "a": eqx.nn.Linear(3, 3, key=akey),
        "b": eqx.nn.Linear(3, 2, use_bias=False, key=bkey),
    }
    if trainable is SPLITS["predicate"]:
        model["b"] = eqx.nn.Linear(2, 3, use_bias=False, key=bkey)
        loss = lambda m, b, k: jnp.mean(m["a"](m["b"](jnp.ones(2))) ** 2)
    else:
        loss = lambda m, b, k: jnp.mean(m["b"](m["a"](jnp.ones(3))) ** 2)
    result = fit(
        loss,
        model,
        jnp.zeros((4, 1)),
        optimizer=ADAMW,
        trainable=trainable,
        num_steps=5,
        key=key,
    )
    assert_same(result.model["b"], model["b"])
    assert_same(result.ema["b"], model["b"])
    assert not np.array_equal(result.model["a"].weight, model["a"].weight)
    moments = [leaf for leaf in jax.tree.leaves(result.state.opt_state) if leaf.ndim]
    assert len(moments) == 2 * len(arrays(model["a"]))


def test_frozen_leaves_do_not_count_in_the_gradient_norm(key):
    loss = lambda m, b, k: jnp.sum(3 * m[0]) + jnp.sum(100 * m[1])
    result = fit(
        loss,
        (jnp.ones(1), jnp.ones(1)),
        jnp.zeros((4, 1)),
        trainable=lambda m: m[0],
        num_steps=1,
        key=key,
    )
    np.testing.assert_allclose(result.history["grad_norm"].values, [3.0])


# The loop


def by_hand(data, num_steps):
    model, opt_state = line(), ADAM.init(eqx.filter(line(), eqx.is_inexact_array))
    losses = []

    @eqx.filter_jit
    def step(model, opt_state, batch):
        value, grads = eqx.filter_value_and_grad(mse)(model, batch, jr.key(0))
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = ADAM.update(grads, opt_state)
        return eqx.apply_updates(model, updates), opt_state, value

    for i in range(num_steps):
        batch = jax.tree.map(lambda a, i=i: a[8 * (i % 8) : 8 * (i % 8) + 8], data)
        model, opt_state, value = step(model, opt_state, batch)
        losses.append(float(value))
    return model, losses


class Passes:
    """A loader that can be iterated over again and again."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return (
            jax.tree.map(lambda a, i=i: a[8 * i : 8 * i + 8], self.data)
            for i in range(8)
        )


SOURCES = {
    "map": as_grain,
    "iter": lambda data: as_grain(data).repeat().to_iter_dataset(),
    "iterator": lambda data: iter(as_grain(data).repeat().to_iter_dataset()),
    "iterable": Passes,
}


@pytest.mark.parametrize("steps_per_call", [1, 5])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_fit_is_the_hand_written_loop(source, steps_per_call, key):
    data = make_data()
    model, losses = by_hand(data, 22)
    result = fit(
        mse,
        line(),
        source(data),
        optimizer=ADAM,
        num_steps=22,
        steps_per_call=steps_per_call,
        key=key,
    )
    np.testing.assert_allclose(result.model.weight, model.weight, rtol=1e-5)
    np.testing.assert_allclose(result.history["loss"].values, losses, rtol=1e-5)
    np.testing.assert_array_equal(result.history["loss"].steps, np.arange(1, 23))
    assert int(result.state.step) == 22


def test_data_on_the_device_is_drawn_uniformly_and_again_the_same(key):
    loss = lambda m, b, k: (
        jnp.sum(m) * 0.0,
        {"counts": jnp.zeros(10).at[b.astype(int)].add(1.0)},
    )
    run = lambda calls: fit(
        loss,
        jnp.ones(1),
        np.arange(10.0),
        batch_size=5,
        num_steps=400,
        steps_per_call=calls,
        key=key,
    )
    first, second = run(1).history["counts"].values, run(16).history["counts"].values
    np.testing.assert_array_equal(first, second)
    expected, error = 2000 / 10, np.sqrt(2000 * 0.1 * 0.9)
    assert np.all(np.abs(first.sum(0) - expected) < 4.5 * error)


def test_without_batch_size_the_batch_is_the_whole_array(key):
    loss = lambda m, b, k: (jnp.sum(m) * 0.0, {"sum": jnp.sum(b)})
    result = fit(loss, jnp.ones(1), np.arange(10.0), num_steps=3, key=key)
    np.testing.assert_array_equal(result.history["sum"].values, [45.0, 45.0, 45.0])


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_a_second_fit_compiles_nothing(steps_per_call, key):
    def run():
        callback = tr.Every(5, lambda state, step: {"bias": state.ema.bias})
        options = {
            "callbacks": [callback],
            "steps_per_call": steps_per_call,
            "num_steps": 10,
            "optimizer": ADAM,
        }
        return fit(noisy, line(), make_data(), batch_size=8, key=key, **options)

    with compilations() as of_first:
        first = run()
    with compilations() as of_second:
        second = run()
    assert of_first
    assert not of_second
    assert_same(first.model, second.model)


# Memory of the host


def aligned(shape):
    """An array in pages of its own, as shared memory and rings of buffers have it.

    On a CPU, JAX reads such memory in place.
    """
    size = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(-1, 4 * size), np.float32).reshape(shape)


def refilled(buffer):
    """Batch number i is the one buffer, filled with i."""
    for i in itertools.count():
        buffer[...] = i
        yield {"x": buffer}


def seen_mean(model, batch, key):
    del key
    # Slow enough that the next batch is asked for before this one was used.
    slow = jax.lax.fori_loop(0, 20, lambda _, x: jnp.sin(x @ model), jnp.eye(64))
    return jnp.sum(slow * 1e-9), {"seen": batch["x"].mean()}


@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_a_step_sees_its_batch_whatever_happens_to_the_memory(steps_per_call, key):
    batches = refilled(aligned((256, 64)))
    options = {"steps_per_call": steps_per_call, "num_steps": 40, "key": key}
    seen = fit(seen_mean, jnp.eye(64), batches, **options).history["seen"]
    np.testing.assert_array_equal(seen.values, np.arange(40))


def test_a_loop_of_steps_sees_its_batches(key):
    step = tr.make_step(seen_mean, ADAM)
    state = tr.init_state(jnp.eye(64), ADAM, key=key)
    seen = []
    for batch, _ in zip(refilled(aligned((256, 64))), range(40), strict=False):
        state, metrics = step(state, batch)
        seen.append(metrics["seen"])
    np.testing.assert_array_equal(seen, np.arange(40))


def test_data_and_model_are_those_of_the_call(key):
    """Memory of data on the device and of weights that is filled again in a callback."""
    data = aligned((16, 64))
    weights = aligned((64, 64))
    data[...] = 1.0
    weights[...] = 2.0

    def refill(state, step):
        data[...] = 3.0
        weights[...] = 4.0

    loss = lambda m, b, k: (jnp.sum(m) * 0.0, {"m": m.mean(), "b": b.mean()})
    result = fit(loss, weights, data, num_steps=5, callbacks=[refill], key=key)
    np.testing.assert_array_equal(result.history["b"].values, np.ones(5))
    np.testing.assert_array_equal(result.history["m"].values, np.full(5, 2.0))


def test_a_callback_may_return_the_same_array_again(key):
    buffer = np.zeros(3)

    def report(state, step):
        buffer[...] = step
        return {"buffer": buffer}

    loss = lambda m, b, k: jnp.sum(m)
    result = fit(
        loss, jnp.ones(1), jnp.zeros((4, 1)), num_steps=3, callbacks=[report], key=key
    )
    np.testing.assert_array_equal(result.history["buffer"].values[:, 0], [0, 1, 2, 3])


class Tensor:
    """What a tensor of another library is to NumPy: iterable, but no array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __iter__(self):
        return iter(self.array)


def test_tensors_are_read_as_arrays(key):
    data = jax.tree.map(np.asarray, make_data(32))
    tensors = jax.tree.map(Tensor, data)
    run = ft.partial(fit, mse, line(), num_steps=4, optimizer=ADAM, key=key)
    assert_same(run(tensors, batch_size=8).model, run(data, batch_size=8).model)
    loader = [jax.tree.map(Tensor, batch) for batch in Passes(data)][:4]
    assert_same(run(itertools.cycle(loader)).model, run(Passes(data)).model)


def test_integers_and_numbers_of_numpy(key):
    """Everything that counts, and float64 data and decays, without a warning."""
    data = {name: np.asarray(a, np.float64) for name, a in make_data(32).items()}
    options = {
        "num_steps": np.int64(4),
        "steps_per_call": np.int32(2),
        "batch_size": np.int64(8),
        "ema_decay": np.float32(0.9),
        "callbacks": [tr.Every(np.int64(2), lambda state, step: {"i": step})],
    }
    result = fit(mse, line(), data, key=key, **options)
    np.testing.assert_array_equal(result.history["i"].values, [0, 2, 4])
    batch = jax.tree.map(lambda a: a[:8], data)
    state = tr.init_state(line(), ADAM, key=key)
    tr.make_step(mse, ADAM, steps_per_call=np.int64(1))(state, batch)


def test_progress_bar(key, capsys):
    tr.fit(mse, line(), make_data(), num_steps=5, key=key)
    shown = capsys.readouterr().err
    assert "5/5" in shown
    assert "loss=" in shown


# Callbacks


def test_callbacks_join_the_history(key):
    kept = []

    def keep(state, step):
        kept.append(state)
        return {"weight": state.model.weight, "step": step}

    plain = lambda state, step: None
    callbacks = [tr.Every(4, keep), plain]
    result = fit(
        mse,
        line(),
        make_data(),
        optimizer=ADAM,
        num_steps=10,
        callbacks=callbacks,
        key=key,
    )
    np.testing.assert_array_equal(result.history["step"].steps, [0, 4, 8, 10])
    np.testing.assert_array_equal(result.history["step"].values, [0, 4, 8, 10])
    assert result.history["weight"].values.shape == (4, 2, 2)
    # What a callback keeps stays readable, although the loop goes on to donate its own buffers.
    np.testing.assert_array_equal(kept[0].model.weight, line().weight)
    assert_same(kept[-1].model, result.model)


def test_callbacks_with_several_steps_per_call(key):
    seen = []
    callbacks = [tr.Every(5, lambda state, step: seen.append(step))]
    fit(
        mse,
        line(),
        make_data(),
        num_steps=18,
        steps_per_call=4,
        callbacks=callbacks,
        key=key,
    )
    assert seen == [0, 8, 12, 16, 18]


def test_a_callback_is_given_the_metrics_of_the_last_step(key):
    shown = []

    def show(state, step, metrics):
        shown.append((step, float(metrics["loss"]), float(metrics["size"])))

    for steps_per_call in (1, 4):
        shown.clear()
        result = fit(
            noisy,
            line(),
            make_data(),
            num_steps=8,
            steps_per_call=steps_per_call,
            callbacks=[tr.Every(4, show)],
            key=key,
        )
        history = result.history
        expected = [
            (step, history["loss"].values[step - 1], history["size"].values[step - 1])
            for step in (4, 8)
        ]
        np.testing.assert_allclose(shown, expected, rtol=1e-6)


def raise_stop(state, step):
    if step == 6:
        raise tr.Stop({"why": 1.0})


STOPS = {
    "raised": raise_stop,
    "returned": lambda state, step: tr.Stop({"why": 1.0}) if step == 6 else None,
    "the class": lambda state, step: tr.Stop if step == 6 else None,
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_a_callback_ends_training(stop, key):
    """The result is that of a run of so many steps; all callbacks are called at the end."""
    seen = tr.Every(100, lambda state, step: {"seen": step})
    run = ft.partial(fit, mse, line(), make_data(), optimizer=ADAM, key=key)
    ended = run(num_steps=20, callbacks=[seen, stop])
    assert_same(ended.state, run(num_steps=6).state)
    assert len(ended.history["loss"].values) == 6
    np.testing.assert_array_equal(ended.history["seen"].values, [0, 6])
    if stop is not STOPS["the class"]:
        np.testing.assert_array_equal(ended.history["why"].steps, [6])


def test_a_callback_ends_training_before_the_first_step(key):
    stop = lambda state, step: tr.Stop()
    result = fit(mse, line(), make_data(), num_steps=5, callbacks=[stop], key=key)
    assert int(result.state.step) == 0


def test_early_stopping(key):
    """A minimum, a value that improves too little, and two that do not: stop at 40."""
    losses = {0: 9.0, 10: 5.0, 20: 4.99, 30: np.nan, 40: 6.0, 50: 1.0}
    validation = tr.EarlyStopping(
        lambda state: losses[int(state.step)], patience=3, min_improvement=0.1
    )
    run = ft.partial(fit, mse, line(), make_data(), num_steps=60, key=key)
    for _ in range(2):  # the same object serves another run
        result = run(callbacks=[tr.Every(10, validation)])
        series = result.history["validation_loss"]
        np.testing.assert_array_equal(series.steps, [0, 10, 20, 30, 40])
        np.testing.assert_allclose(series.values, [9.0, 5.0, 4.99, np.nan, 6.0])


def test_seconds(key):
    def wait(state, step):
        time.sleep(0.05)

    result = fit(mse, line(), make_data(), num_steps=2, callbacks=[wait], key=key)
    assert 0.15 <= result.seconds < 60


def test_a_broken_callback_fails_before_training(key):
    def loss(model, batch, key):
        raise AssertionError("training began")

    def broken(state, step):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(
            loss,
            line(),
            make_data(),
            num_steps=5,
            callbacks=[tr.Every(100, broken)],
            key=key,
        )


# Steps that are not finite


def test_a_step_that_is_not_finite_changes_nothing(key):
    optimizer = ADAMW
    step = tr.make_step(mse, optimizer, ema_decay=0.9)
    state, _ = step(
        tr.init_state(line(), optimizer, ema_decay=0.9, key=key), make_data()
    )
    before = [arrays(part) for part in (state.model, state.ema, state.opt_state)]
    bad = make_data() | {"y": jnp.full((64, 2), jnp.nan)}
    state, metrics = step(state, bad)
    assert int(metrics["skipped"]) == 1
    assert int(state.step) == 2
    for one, two in zip(before, (state.model, state.ema, state.opt_state), strict=True):
        for first, second in zip(one, arrays(two), strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_fit_stops_after_many_steps_that_are_not_finite(steps_per_call, key):
    bad = make_data() | {"y": jnp.full((64, 2), jnp.inf)}
    with pytest.raises(FloatingPointError, match="learning rate"):
        fit(mse, line(), bad, num_steps=1000, steps_per_call=steps_per_call, key=key)


def test_fit_survives_a_few_of_them(key):
    loss = lambda m, b, k: jnp.where(jr.uniform(k) < 0.3, jnp.nan, 1.0) * jnp.sum(m**2)
    result = fit(
        loss, jnp.ones(2), jnp.zeros((4, 1)), optimizer=ADAM, num_steps=100, key=key
    )
    skipped = result.history["skipped"].values
    assert 10 < skipped.sum() < 50
    np.testing.assert_array_equal(np.isnan(result.history["loss"].values), skipped == 1)
    assert np.all(np.isfinite(result.model))


def test_processes_stop_at_the_same_step(monkeypatch):
    """Metrics are ready earlier or later, so only a look that waits may raise."""
    recorder = Recorder({}, stacked=False, most_skipped=3)
    for step in range(1, 6):
        metrics = {"loss": jnp.array(jnp.nan), "skipped": jnp.array(1)}
        recorder.add_pending(step, jax.block_until_ready(metrics))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    recorder.drain(wait=False)
    with pytest.raises(TooManySkipped, match="in 3 steps in a row, up to step 3"):
        recorder.drain(wait=True)
    assert len(recorder.history()["loss"].steps) == 5


def test_a_diverged_training_keeps_what_it_reached(key):
    """The loss is the logarithm of a weight that shrinks below zero."""
    loss = lambda m, b, k: jnp.sum(jnp.log(m)) + 0 * jnp.sum(b)
    with pytest.raises(tr.Diverged) as error:
        fit(
            loss,
            jnp.ones(2),
            jnp.zeros((4, 1)),
            optimizer=optax.sgd(0.3),
            skipping=tr.Skipping(most_in_a_row=3),
            num_steps=100,
            key=key,
        )
    result = error.value.result
    # 1, 0.7, 0.27, and then -0.84, whose logarithm is NaN.
    weight = 1.0
    while weight > 0:
        weight -= 0.3 / weight
    np.testing.assert_allclose(result.model, weight, rtol=1e-5)
    skipped = result.history["skipped"].values
    # The device is some steps ahead when the host hears of the third.
    assert len(skipped) >= 6
    assert skipped[:3].tolist() == [0, 0, 0]
    assert np.all(skipped[3:] == 1)


@pytest.mark.parametrize("most", [1, None])
def test_how_many_skipped_steps_end_a_training(most, key):
    loss = lambda m, b, k: jnp.sum(m) * jnp.nan * jnp.sum(b)
    skipping = tr.Skipping(most_in_a_row=most)
    train = ft.partial(fit, loss, jnp.ones(2), jnp.ones((4, 1)), skipping=skipping)
    if most is None:
        result = train(num_steps=30, key=key)
        assert result.history["skipped"].values.sum() == 30
        np.testing.assert_array_equal(result.model, 1)
        return
    with pytest.raises(tr.Diverged, match="in 1 steps in a row, up to step 1"):
        train(num_steps=30, key=key)


def test_long_gradients_are_skipped(key):
    """The gradient is the batch: 1, 5, 2."""
    loss = lambda m, b, k: jnp.sum(m * b)
    batches = iter(np.array([[1.0], [5.0], [2.0]], np.float32))
    result = fit(
        loss,
        jnp.zeros(1),
        batches,
        optimizer=optax.sgd(1.0),
        skipping=tr.Skipping(max_grad_norm=4.0),
        num_steps=3,
        key=key,
    )
    assert result.history["skipped"].values.tolist() == [0, 1, 0]
    np.testing.assert_allclose(result.model, -3.0)


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_batches_that_end_early_end_the_training(steps_per_call, key):
    """Six of ten: what was trained is kept."""
    loss = lambda m, b, k: jnp.sum(m * b)
    ended = []
    every_call = []
    train = ft.partial(
        fit,
        loss,
        jnp.zeros(1),
        optimizer=optax.sgd(1.0),
        steps_per_call=steps_per_call,
        callbacks=[
            tr.Every(100, lambda state, step: ended.append(step)),
            lambda state, step: every_call.append(step),
        ],
        key=key,
    )
    with pytest.warns(UserWarning, match="after 6 of 10 steps"):
        result = train(iter(np.ones((6, 1), np.float32)), num_steps=10)
    np.testing.assert_allclose(result.model, -6.0)
    assert len(result.history["loss"].values) == 6
    assert ended == [0, 6]
    # Once at each step, at the last one too.
    assert every_call == [0, *range(1, 7)][:: 1 if steps_per_call == 1 else 4] + (
        [] if steps_per_call == 1 else [6]
    )


def test_errors_of_callbacks_stay_what_they_are(key):
    def fails(state, step):
        raise FloatingPointError("of the user")

    with pytest.raises(FloatingPointError, match="of the user") as error:
        fit(mse, line(), make_data(), callbacks=[fails], num_steps=3, key=key)
    assert not isinstance(error.value, tr.Diverged)


def test_a_grain_pipeline_that_ends_early_ends_the_training(key):
    with pytest.warns(UserWarning, match="ended after .*dataset.repeat"):
        result = fit(
            mse, line(), as_grain(DATA).to_iter_dataset(), num_steps=20, key=key
        )
    assert len(result.history["loss"].values) < 20


# Wrong use


DATA = make_data()
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "num_steps": ({"num_steps": -1}, "`num_steps`"),
    "steps_per_call": ({"steps_per_call": 0}, "`steps_per_call`"),
    "ema_decay": ({"ema_decay": 1.5}, "`ema_decay`"),
    "batch_size": ({"batch_size": 65}, "`batch_size` must be between 1 and the 64"),
    "batch_size of a stream": (
        {"batches": as_grain(DATA), "batch_size": 4},
        "`batch_size` is for arrays",
    ),
    "lengths": (
        {"batches": {"x": np.ones((3, 2)), "y": np.ones((4, 2))}},
        "first axis",
    ),
    "number": ({"batches": 3}, "`batches` must be"),
    "list": ({"batches": [DATA["x"][:8], DATA["x"][8:16]]}, "`batches` is a list"),
    "names": (
        {"batches": DATA | {"name": np.array(["a"] * 64)}},
        r"`batches`\['name'\] holds <U1",
    ),
    "names in a stream": ({"batches": iter([{"x": "a"}])}, r"`batches`\['x'\] holds"),
    "objects": ({"batches": (DATA["x"], object())}, r"`batches`\[1\] holds object"),
    "odd last batch": (
        {
            "batches": iter([DATA["x"][:8], DATA["x"][8:12]]),
            "steps_per_call": 2,
        },
        r"`batches` gives .*\(8, 2\) and then .*\(4, 2\)",
    ),
    "class of an optimizer": ({"optimizer": optax.MultiSteps}, "`optimizer` is the c"),
    "empty": ({"batches": as_grain(DATA)[:0]}, "empty"),
    "no batch": ({"batches": iter([])}, "`batches` has no batch; repeat"),
    "nothing to train": ({"model": {"a": jnp.arange(3)}}, "`model` has no floating"),
    "nothing selected": ({"trainable": lambda m: m.scale}, "`trainable` selects no"),
    "strange selection": (
        {"trainable": lambda m: m.weight * 2},
        "`trainable` must return parts",
    ),
    "vector loss": ({"loss": lambda m, b, k: jnp.ones(3)}, "`loss` must return"),
    "no metrics": (
        {"loss": lambda m, b, k: (jnp.sum(m.bias), 3)},
        "`loss` must return",
    ),
    "taken metric": (
        {"loss": lambda m, b, k: (jnp.sum(m.bias), {"loss": 1.0})},
        "rename",
    ),
    "loss of two arguments": (
        {"loss": lambda m, b: jnp.sum(m.bias)},
        r"`loss` must take the arguments `\(model, batch, key\)`, but takes `\(m, b\)`",
    ),
    "swapped loss": (
        {"loss": lambda batch, model, key: jnp.sum(model.bias)},
        "their order differs",
    ),
    "callback of one argument": (
        {"callbacks": [lambda state: None]},
        r"`callbacks` must take the arguments `\(state, step\)`, but takes `\(state\)`",
    ),
    "callback result": ({"callbacks": [lambda s, i: 3]}, "must return None or a dict"),
    "callback name": ({"callbacks": [lambda s, i: {"loss": 3}]}, "rename"),
    "callback name of a metric": (
        {"loss": noisy, "callbacks": [lambda s, i: {"size": 3.0}]},
        r"\['size'\] are returned by a callback",
    ),
    "callback name of a metric, later": (
        {"loss": noisy, "callbacks": [lambda s, i: {"size": 3.0} if i else None]},
        r"\['size'\] are returned by a callback",
    ),
    "callbacks with one name": (
        {"callbacks": [lambda s, i: {"a": 1.0}, tr.Every(5, lambda s, i: {"a": 2.0})]},
        "<lambda>.* and .*<lambda>.* both return 'a'.*rename one",
    ),
    "class of a callback": (
        {"callbacks": [tr.EarlyStopping]},
        "`callbacks` is the class EarlyStopping; give an instance",
    ),
    "class of a decay": (
        {"ema_decay": tr.WarmUpDecay},
        "`ema_decay` is the class WarmUpDecay; give an instance",
    ),
    "callback shape": (
        {"callbacks": [lambda s, i: {"a": np.ones(i + 1)}]},
        "`callbacks`: .* one shape",
    ),
    "callback without a number": (
        {"callbacks": [lambda s, i: {"a": None}]},
        r"`callbacks`: .* returns object values of shape \(\) as 'a'",
    ),
    "callback with a name": (
        {"callbacks": [lambda s, i: {"a": "b"}]},
        r"`callbacks`: .* returns <U1 values of shape \(\) as 'a'",
    ),
    "callback with nothing": (
        {"callbacks": [lambda s, i: {"a": []}]},
        r"`callbacks`: .* of shape \(0,\) as 'a'; return numbers",
    ),
    "metric shape": (
        {
            "loss": lambda m, b, k: (jnp.sum(m.weight), {"rows": b[:, 0]}),
            "batches": iter([DATA["x"][:8], DATA["x"][8:13]]),
        },
        r"`loss`: 'rows' was recorded with shape \(8,\) and now has shape \(5,\)",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_wrong_use(change, message, key):
    options: dict[str, Any] = {
        "loss": mse,
        "model": line(),
        "batches": DATA,
        "num_steps": 20,
    } | change
    with pytest.raises(ValueError, match=message):
        fit(
            options.pop("loss"),
            options.pop("model"),
            options.pop("batches"),
            key=key,
            **options,
        )


DIFFERENT = {
    "optimizer": ({}, {"optimizer": optax.sgd(0.1)}, "`optimizer` or `trainable`"),
    "frozen": ({"trainable": lambda m: m.bias}, {}, "`optimizer` or `trainable`"),
    "average": ({"ema_decay": 0.9}, {}, "`ema_decay` was given to `init_state` only"),
    "decay": ({}, {"ema_decay": 0.9}, "`ema_decay` was given to `make_step` only"),
}


@pytest.mark.parametrize(("made", "used", "message"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_state_that_was_made_for_another_step(made, used, message, key):
    state = tr.init_state(line(), ADAM, **made, key=key)
    step = tr.make_step(mse, **{"optimizer": ADAM} | used)
    with pytest.raises(ValueError, match=message):
        step(state, make_data())


def test_wrong_use_of_the_rest(key):
    with pytest.raises(ValueError, match="`n` must be at least 1"):
        tr.Every(0, lambda state, step: None)
    with pytest.raises(ValueError, match="`function` is the class EarlyStopping"):
        tr.Every(1, tr.EarlyStopping)
    with pytest.raises(ValueError, match="`ema_decay`"):
        tr.WarmUpDecay(2.0)
    step = tr.make_step(mse, ADAM, steps_per_call=3)
    with pytest.raises(ValueError, match="stack one batch per step"):
        step(tr.init_state(line(), ADAM, key=key), DATA)
    with pytest.raises(TypeCheckError):
        fit(mse, line(), DATA, num_steps=3, key=jr.PRNGKey(0))
