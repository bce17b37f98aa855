"""Two virtual devices give one device's parameters, and the compiled program moves
gradients, not batches."""

import functools as ft

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from flowkit import training as tr
from flowkit.training._step import Pace


ADAM = optax.adam(1e-2)
fit = ft.partial(tr.fit, optimizer=ADAM, progress=False)
DATA = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
BATCHES = {"axis 0": ((), 0), "axis 1": ((3,), 1)}


def model():
    return eqx.nn.MLP(2, 2, 16, 2, key=jr.key(3))


def loss(model, batch, key):
    noise = jr.normal(key, batch.shape)
    return jnp.mean((jax.vmap(model)(batch + noise) - batch) ** 2)


def as_grain(batch_size=8):
    gather = lambda i: DATA[i * batch_size : (i + 1) * batch_size]
    return grain.MapDataset.range(64 // batch_size).map(gather)


SOURCES = {
    "resident": (DATA, 8, 1),
    "resident, several per call": (DATA, 8, 4),
    "whole": (DATA, None, 1),
    "grain": (as_grain(), None, 1),
    "grain, several per call": (as_grain(), None, 4),
}


def test_mesh():
    mesh = tr.data_mesh()
    assert mesh.axis_names == ("data",)
    assert mesh.shape["data"] == jax.device_count() == 2
    assert tr.data_mesh(jax.devices()[:1]).shape["data"] == 1


@pytest.mark.parametrize(
    ("batches", "batch_size", "steps_per_call"), SOURCES.values(), ids=SOURCES
)
def test_two_devices_are_one(batches, batch_size, steps_per_call, key):
    run = ft.partial(
        fit,
        loss,
        model(),
        batches,
        batch_size=batch_size,
        steps_per_call=steps_per_call,
    )
    one, two = run(num_steps=6, key=key), run(num_steps=6, mesh=tr.data_mesh(), key=key)
    np.testing.assert_allclose(
        one.history["loss"].values, two.history["loss"].values, rtol=1e-5
    )
    for name in ("model", "ema"):
        first, second = (
            jax.tree.leaves(eqx.filter(getattr(run, name), eqx.is_array))
            for run in (one, two)
        )
        for single, double in zip(first, second, strict=True):
            assert double.sharding.is_fully_replicated
            assert len(double.devices()) == 2
            np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_compiled_program_reduces_gradients_and_gathers_nothing(steps_per_call, key):
    step = tr.make_step(
        loss, ADAM, ema_decay=0.9, mesh=tr.data_mesh(), steps_per_call=steps_per_call
    )
    batch = DATA[:8] if steps_per_call == 1 else DATA[:32].reshape(4, 8, 2)
    program = (
        step.lower(tr.init_state(model(), ADAM, ema_decay=0.9, key=key), batch)
        .compile()
        .as_text()
    )
    assert program is not None
    assert "all-reduce" in program
    assert "all-gather" not in program
    assert "all-to-all" not in program


def test_each_device_does_half_of_the_work(key):
    state = tr.init_state(model(), optax.sgd(0.1), key=key)
    wide = np.tile(DATA, (64, 1))

    def flops(mesh):
        cost = (
            tr.make_step(loss, optax.sgd(0.1), mesh=mesh)
            .lower(state, wide)
            .compile()
            .cost_analysis()
        )
        return (
            cost["flops"]
            if cost
            else pytest.skip("this backend does not count operations")
        )

    assert flops(tr.data_mesh()) < 0.6 * flops(None)


def test_step_on_a_mesh_takes_its_own_state_and_traces_once(key):
    traces = []

    def counted(model, batch, key):
        traces.append(None)
        return loss(model, batch, key)

    step = tr.make_step(counted, ADAM, mesh=tr.data_mesh())
    state = tr.init_state(model(), ADAM, key=key)
    for _ in range(3):
        state, _ = step(state, DATA[:8])
    assert len(traces) == 1


def slow_loss(model, batch, key):
    """Takes some milliseconds, far more than its dispatch."""
    matrix = jax.lax.fori_loop(0, 40, lambda _, x: jnp.sin(x @ x), jnp.ones((128, 128)))
    return jnp.sum(model) * jnp.mean(batch) + 1e-9 * jnp.sum(matrix)


def test_a_loop_of_steps_waits_for_several_cpu_devices(key):
    """Otherwise devices of different steps wait for each other until XLA gives up."""
    step = tr.make_step(slow_loss, ADAM, mesh=tr.data_mesh())
    state = tr.init_state(jnp.ones(2), ADAM, key=key)
    ready = []
    for count in range(1, 25):
        state, metrics = step(state, DATA[:8])
        if count % 8 == 0:
            ready.append(metrics["loss"].is_ready())  # pyright: ignore
    assert ready == [True, True, True]


def test_fit_waits_for_several_cpu_devices(key, monkeypatch):
    ready = []

    class Watched(Pace):
        def __call__(self, loss):
            super().__call__(loss)
            ready.append(loss.is_ready())  # pyright: ignore

    monkeypatch.setattr("flowkit.training._loop.loop.Pace", Watched)
    fit(slow_loss, jnp.ones(2), DATA, num_steps=24, mesh=tr.data_mesh(), key=key)
    assert len(ready) == 24
    assert ready[7::8] == [True, True, True]
    assert not all(ready)


@pytest.mark.parametrize(("lead", "axis"), BATCHES.values(), ids=BATCHES)
def test_shard_batch(lead, axis):
    batch = {
        "x": np.zeros((*lead, 6, 2)),
        "y": np.arange(np.prod(lead, dtype=int) * 6).reshape(*lead, 6),
    }
    sharded = tr.shard_batch(batch, tr.data_mesh(), axis=axis)
    np.testing.assert_array_equal(sharded["y"], batch["y"])
    for leaf in sharded.values():
        assert all(shard.data.shape[axis] == 3 for shard in leaf.addressable_shards)


def test_checkpoints_move_between_one_and_two_devices(tmp_path, key):
    checkpoints = tr.Checkpoints(tmp_path, every=5)
    run = ft.partial(fit, loss, model(), as_grain(), key=key)
    straight = run(num_steps=15)
    run(num_steps=5, mesh=tr.data_mesh(), checkpoints=checkpoints)
    run(num_steps=10, checkpoints=checkpoints)
    moved = run(num_steps=15, mesh=tr.data_mesh(), checkpoints=checkpoints)
    np.testing.assert_allclose(
        moved.model.layers[0].weight,
        straight.model.layers[0].weight,
        rtol=1e-4,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        moved.history["loss"].values, straight.history["loss"].values, rtol=1e-4
    )


BAD = {
    "resident": {"batches": DATA, "batch_size": 7},
    "whole": {"batches": DATA[:63]},
    "grain": {"batches": as_grain(7)},
    "scalar": {"batches": iter([np.float32(3)])},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_batches_that_cannot_be_split(change, key):
    options = dict(change)
    with pytest.raises(ValueError, match="multiple of 2"):
        fit(
            loss,
            model(),
            options.pop("batches"),
            num_steps=3,
            mesh=tr.data_mesh(),
            key=key,
            **options,
        )


@pytest.mark.parametrize("placement", [tr.Replicated, tr.FullySharded])
def test_meshes_with_explicit_axes(placement, key):
    """The axes of `jax.make_mesh` are explicit by default."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    assert mesh != tr.data_mesh()
    assert placement(mesh).mesh == tr.data_mesh()

    batches = iter([tr.shard_batch(DATA[:8], mesh)])
    result = fit(loss, model(), batches, num_steps=1, parallel=placement(mesh), key=key)
    assert result.history["loss"].values > 0


def test_wrong_meshes(key):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("model",))
    with pytest.raises(ValueError, match='axis "data"'):
        fit(loss, model(), DATA, num_steps=3, mesh=mesh, key=key)
    with pytest.raises(ValueError, match="`devices` is empty"):
        tr.data_mesh([])
    with pytest.raises(ValueError, match="`axis` must not be negative"):
        tr.shard_batch(DATA, tr.data_mesh(), axis=-1)
