"""Every placement makes the steps of one device, and moves as few bytes as it must."""

import functools as ft
import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import flowkit as fk
from flowkit import training as tr


ADAM = optax.adam(1e-2)
DATA = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
fit = ft.partial(tr.fit, optimizer=ADAM, progress=False, num_steps=6)
PLACEMENTS = {
    "replicated": tr.Replicated,
    "sharded": tr.FullySharded,
    "pmapped": tr.Pmapped,
}
EVERY = [tr.OneDevice, *PLACEMENTS.values()]
each_placement = pytest.mark.parametrize("make", PLACEMENTS.values(), ids=PLACEMENTS)


def flow():
    network = fk.nn.MLP(2, hidden_sizes=(32, 32), key=jr.key(0))
    return fk.Flow(network)


def loss(flow, batch, key):
    return fk.flow_matching_loss(flow, batch, key=key)


def coupled_loss(flow, batch, key):
    """Pairs the whole batch, and spreads its times evenly over the interval."""
    return fk.flow_matching_loss(
        flow,
        batch,
        coupling=fk.assignment,
        times=fk.stratified,
        block=2,
        key=key,
    )


class Noisy(eqx.Module):
    """A network that draws a number of its own for each example."""

    layer: eqx.nn.Linear

    def __call__(self, t, x, cond=None, *, key=None):
        noise = 0.0 if key is None else jr.normal(key)
        return self.layer(x) * (1 + noise)


def own_loss(flow, batch, key):
    del key
    return jnp.mean(jax.vmap(lambda x: jnp.sum((flow(0.5, x) - x) ** 2))(batch))


def shared_loss(flow, batch, key):
    del key

    def error(flow, x):
        return jnp.sum((flow(0.5, x) - x) ** 2), x

    value, aux = tr.mean_over_batch(error, flow, batch)
    return value, {"mean": jnp.mean(aux)}


def weights(model):
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def stream():
    while True:
        yield from DATA.reshape(4, 16, 2)


CASES = {
    "drawn": (loss, lambda: DATA, {"batch_size": 16}),
    "whole": (loss, lambda: DATA, {}),
    "stream": (loss, stream, {}),
    "stream, several per call": (loss, stream, {"steps": 3}),
    "coupled": (coupled_loss, stream, {}),
    "mean over batch": (shared_loss, stream, {}),
}


@ft.cache
def run(case, make, repetition=0):
    loss, batches, options = CASES[case]
    options = {"steps_per_call": options.get("steps", 1)} | options
    options.pop("steps", None)
    parallel = make()
    return fit(loss, flow(), batches(), parallel=parallel, key=jr.key(1), **options)


@pytest.mark.parametrize("case", CASES)
@each_placement
def test_every_placement_makes_the_steps_of_one_device(case, make):
    one = run(case, tr.OneDevice)
    several = run(case, make)
    for name in ("model", "ema"):
        ours, theirs = (weights(getattr(result, name)) for result in (several, one))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6)
    for name, series in one.history.items():
        found = several.history[name].values
        np.testing.assert_allclose(found, series.values, rtol=1e-4, atol=1e-6)


@each_placement
def test_repeated_runs_have_the_same_bits(make):
    first, second = (run("coupled", make, repetition) for repetition in range(2))
    np.testing.assert_array_equal(weights(first.model), weights(second.model))


@each_placement
@pytest.mark.filterwarnings("default")
def test_losses_that_average_by_themselves(make, recwarn):
    one = fit(own_loss, flow(), DATA, batch_size=16, key=jr.key(1))
    several = fit(own_loss, flow(), DATA, batch_size=16, parallel=make(), key=jr.key(1))
    np.testing.assert_allclose(
        weights(several.model), weights(one.model), rtol=1e-4, atol=2e-6
    )
    messages = [str(warning.message) for warning in recwarn]
    does_all = make is tr.Pmapped
    assert any("mean_over_batch" in message for message in messages) == does_all


@each_placement
def test_networks_that_draw_numbers_draw_those_of_one_device(make):
    noisy = fk.Flow(Noisy(eqx.nn.Linear(2, 2, key=jr.key(0))))
    train = ft.partial(fit, loss, noisy, DATA, batch_size=16, key=jr.key(1))
    one, several = (train(parallel=placement()) for placement in (tr.OneDevice, make))
    np.testing.assert_allclose(
        weights(several.model), weights(one.model), rtol=1e-4, atol=2e-6
    )


@each_placement
def test_a_model_is_used_where_it_was_trained(make):
    """Sampling from it takes no copy to one device."""
    samples = [
        fk.sample(run("stream", placement).ema, (2,), num_samples=8, key=jr.key(2))
        for placement in (tr.OneDevice, make)
    ]
    np.testing.assert_allclose(samples[1].values, samples[0].values, atol=1e-3)


OPTIMIZERS = {
    "accumulated": optax.MultiSteps(optax.adam(1e-2), every_k_schedule=2),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2)),
    "muon": optax.contrib.muon(1e-2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_of_a_split_state(optimizer):
    options = {"batch_size": 16, "optimizer": optimizer, "key": jr.key(1)}
    train = ft.partial(fit, loss, flow(), DATA, **options)
    one, several = (train(parallel=make()) for make in (tr.OneDevice, tr.FullySharded))
    np.testing.assert_allclose(
        weights(several.model), weights(one.model), rtol=1e-3, atol=1e-5
    )


def test_large_arrays_stay_split():
    """Weights, moments and averages; the small ones are whole on every device."""
    state = run("stream", tr.FullySharded).state
    leaves = jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))
    large = [leaf for leaf in leaves if leaf.size >= 256]
    assert len(large) >= 4
    for leaf in leaves:
        share = leaf.addressable_shards[0].data.size
        assert share == (leaf.size // 2 if leaf.size >= 256 else leaf.size)


@each_placement
def test_replicas_are_equal_and_whole(make):
    if make is tr.FullySharded:
        return
    state = run("stream", make).state
    for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_array)):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.devices()) == 2


MOVES = [
    (tr.OneDevice, tr.FullySharded),
    (tr.FullySharded, tr.Pmapped),
    (tr.Pmapped, tr.OneDevice),
    (tr.Replicated, tr.FullySharded),
]


@pytest.mark.parametrize(("first", "second"), MOVES)
def test_checkpoints_move_between_placements(first, second, tmp_path):
    checkpoints = tr.Checkpoints(tmp_path, every=100)
    train = ft.partial(fit, loss, flow(), DATA, batch_size=16, key=jr.key(1))
    train(num_steps=3, parallel=first(), checkpoints=checkpoints)
    result = train(num_steps=6, parallel=second(), checkpoints=checkpoints)
    straight = run("drawn", tr.OneDevice)
    np.testing.assert_allclose(
        weights(result.model), weights(straight.model), rtol=1e-4, atol=2e-6
    )


def test_one_step_at_a_time(key):
    for make in EVERY:
        step = tr.make_step(loss, ADAM, ema_decay=0.9, parallel=make())
        state = tr.init_state(flow(), ADAM, ema_decay=0.9, key=key)
        for _ in range(3):
            state, _ = step(state, DATA[:8])
        if make is tr.OneDevice:
            expected = weights(state.model)
        np.testing.assert_allclose(weights(state.model), expected, rtol=1e-4, atol=2e-6)


def test_collectives():
    """Read from the compiled programs, in bytes of the weights.

    With n devices every placement moves 2 (n - 1) / n of them, whatever loops the network
    or the loss has inside, and a sharded state takes 1 / n of the memory.
    """
    script = Path(__file__).parent / "collectives.py"
    command = [sys.executable, str(script), "8", "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found) == 14
    for name, result in found.items():
        placement, case, num = name.split()
        least = 2 * (int(num) - 1) / int(num)
        # The weights come and go once more: 3 (n - 1) / n.
        most = 1.5 * least if case == "own" and placement == "sharded" else least
        # Above that come the batch, which pmap gathers, and scalars.
        assert 0.95 * least < result["bytes"] < 1.05 * most, name
        if placement == "replicated":
            assert result["count"] == {"all-reduce": 1}, name
        # Weights and the two moments of Adam.
        share = 1 / int(num) if placement == "sharded" else 1
        assert result["arguments"] < 1.1 * 3 * share, name


def other_mesh():
    return jax.sharding.Mesh(np.array(jax.devices()), ("model",))


BAD = {
    "no axis": (lambda: tr.FullySharded(other_mesh()), {}, 'axis "data"'),
    "no mesh": (lambda: tr.Replicated(jax.devices()), {}, "`mesh` must be a mesh"),
    "no devices": (lambda: tr.Pmapped([]), {}, "`devices` is empty"),
    "batch": (tr.Pmapped, {"batch_size": 7}, "multiple of 2"),
    "mesh too": (tr.Replicated, {"mesh": tr.data_mesh()}, "pass one of them"),
}


@pytest.mark.parametrize(("make", "options", "message"), BAD.values(), ids=BAD)
def test_misuse(make, options, message, key):
    with pytest.raises(ValueError, match=message):
        fit(loss, flow(), DATA, parallel=make(), key=key, **options)


@each_placement
def test_streams_whose_batches_cannot_be_shared(make, key):
    batches = iter([np.ones((3, 2), np.float32)])
    with pytest.raises(ValueError, match="multiple of 2"):
        fit(loss, flow(), batches, parallel=make(), key=key)


@pytest.mark.parametrize("block", [None, 4])
def test_a_share_has_blocks_that_divide_it(block):
    """A batch of 12 on two devices: 6 for each, in blocks of 6 or 2."""

    def blocked(flow, batch, key):
        return fk.flow_matching_loss(flow, batch, block=block, key=key)

    data = DATA[:12]
    results = [
        fit(blocked, flow(), data, parallel=parallel, key=jr.key(1))
        for parallel in (tr.OneDevice(), tr.Replicated(), tr.Pmapped())
    ]
    for several in results[1:]:
        np.testing.assert_allclose(
            weights(several.model), weights(results[0].model), rtol=1e-4, atol=2e-6
        )
