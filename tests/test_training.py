"""Steps and the loop: oracles are a plain hand-written loop, closed forms, and runs that must agree."""

import functools as ft
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


COMPILED = []


def count_compilation(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(event)


jax.monitoring.register_event_duration_secs_listener(count_compilation)


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

    first = run()
    assert COMPILED
    COMPILED.clear()
    second = run()
    assert not COMPILED
    assert_same(first.model, second.model)


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
    "empty": ({"batches": as_grain(DATA)[:0]}, "empty"),
    "exhausted": ({"batches": iter([DATA])}, "`batches` ended"),
    "exhausted grain": ({"batches": as_grain(DATA).to_iter_dataset()}, "repeat"),
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
    "callback result": ({"callbacks": [lambda s, i: 3]}, "must return None or a dict"),
    "callback name": ({"callbacks": [lambda s, i: {"loss": 3}]}, "rename"),
    "callback shape": ({"callbacks": [lambda s, i: {"a": np.ones(i)}]}, "one shape"),
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


def test_wrong_use_of_the_rest(key):
    with pytest.raises(ValueError, match="`n` must be at least 1"):
        tr.Every(0, lambda state, step: None)
    with pytest.raises(ValueError, match="`ema_decay`"):
        tr.WarmUpDecay(2.0)
    step = tr.make_step(mse, ADAM, steps_per_call=3)
    with pytest.raises(ValueError, match="stack one batch per step"):
        step(tr.init_state(line(), ADAM, key=key), DATA)
    with pytest.raises(TypeCheckError):
        fit(mse, line(), DATA, num_steps=3, key=jr.PRNGKey(0))
