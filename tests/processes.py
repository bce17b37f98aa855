"""One of several processes that train one model together.

    python tests/processes.py PROCESS NUM_PROCESSES PORT PLACEMENT FOLDER [PAUSE]

It prints the loss of every step and the sum of its weights. With `PAUSE` it makes two steps in
a call, and waits for so many seconds after it, so that there is time to send a signal.
"""

import os
import sys
import time


sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROCESS, NUM, PORT = (int(value) for value in sys.argv[1:4])
PLACEMENT, FOLDER = sys.argv[4:6]
PAUSE = float(sys.argv[6]) if len(sys.argv) > 6 else 0.0
STEPS_PER_CALL = 2 if PAUSE else 1

import jax


if NUM > 1:
    jax.distributed.initialize(
        f"localhost:{PORT}", num_processes=NUM, process_id=PROCESS
    )

import equinox as eqx
import grain
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import flowkit as fk
import flowkit.training._loop.loop
from flowkit import training as tr


RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(64, 2)).astype(np.float32)


def flow():
    return fk.Flow(fk.nn.MLP(2, hidden_sizes=(32, 32), key=jr.key(0)))


def loss(flow, batch, key):
    return fk.flow_matching_loss(flow, batch, key=key), {"rows": batch}


def watch(state, step):
    time.sleep(PAUSE)
    if PROCESS == 0:
        print("step", step, flush=True)


def fit(num_steps=20, seed=1, placement=PLACEMENT, loss=loss, batches=None, **options):
    defaults = {"checkpoints": tr.Checkpoints(FOLDER, every=8), "callbacks": [watch]}
    return tr.fit(
        loss,
        flow(),
        fk.data.batches(DATA, 16) if batches is None else batches,
        optimizer=optax.adam(1e-2),
        num_steps=num_steps,
        steps_per_call=STEPS_PER_CALL,
        parallel=getattr(tr, placement)(),
        progress=False,
        key=jr.key(seed),
        **defaults | options,
    )


def check_that_none_trains_alone():
    with pytest.raises(ValueError, match=r"`parallel=fk.training.Replicated\(\)`"):
        fit(placement="OneDevice")


def check_that_all_must_agree():
    """All processes are told which of them ask for something else."""
    with pytest.raises(ValueError, match="process 1 has another `num_steps`") as error:
        fit(num_steps=20 + PROCESS, seed=PROCESS // 2)
    assert NUM < 4 or "process 2 has another `num_steps`, `key`;" in str(error.value)


@jax.jit
def sum_of_sizes(leaves):
    return sum(abs(leaf).sum() for leaf in leaves)


def total(model):
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return float(sum_of_sizes(leaves))


def check_that_each_can_restore(model):
    """Every process reads the whole model, also one that was split over all of them."""
    restored = tr.restore_model(FOLDER, lambda config: flow(), ema=False)
    np.testing.assert_allclose(total(restored), total(model), rtol=1e-6)


def check_that_each_has_all_metrics(rows):
    """In four steps every row of the data was seen once, each in some process."""
    seen = rows[:4].reshape(DATA.shape)
    np.testing.assert_array_equal(np.sort(seen, axis=0), np.sort(DATA, axis=0))


def own_batches():
    """Process `i` takes every `i + 1`-th of the same batches, so each reads at its pace."""
    numbers = grain.MapDataset.range(100).to_iter_dataset()
    own = numbers.filter(lambda i: i % (PROCESS + 1) == 0)
    return own.map(lambda i: DATA[i % 32 : i % 32 + 4])


def check_that_each_goes_on_in_its_own_data():
    checkpoints = tr.Checkpoints(f"{FOLDER}/own", every=10)
    straight = fit(6, batches=own_batches(), checkpoints=None)
    fit(3, batches=own_batches(), checkpoints=checkpoints)
    resumed = fit(6, batches=own_batches(), checkpoints=checkpoints)
    rows = [result.history["rows"].values for result in (straight, resumed)]
    np.testing.assert_array_equal(*rows)


def check_that_all_diverge_together():
    """One looks at its metrics seldom, the others all the time; all stop at the same step."""
    broken = lambda *inputs: jnp.nan * loss(*inputs)[0]
    flowkit.training._loop.loop._REFRESH_SECONDS = 1e-3 if PROCESS else 1e9
    with pytest.raises(
        tr.Diverged, match="in 10 steps in a row, up to step 10"
    ) as error:
        fit(1000, loss=broken, checkpoints=None, callbacks=())
    assert int(error.value.result.state.step) == 100


def check_that_samples_are_compared():
    """Each process has a part of them, and all have the scores of the whole."""
    clouds = DATA.reshape(NUM, 2, -1, 2)
    reference = RNG.normal(size=(2 * NUM, 8, 2)).astype(np.float32)
    mesh = tr.data_mesh()
    samples = tr.shard_batch(clouds[PROCESS], mesh)
    value = fk.metrics.set_scores(samples, reference, mesh=mesh)
    expected = fk.metrics.set_scores(np.concatenate(clouds), reference)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def main():
    if NUM > 1:
        check_that_none_trains_alone()
        check_that_all_must_agree()
    if NUM == 4:
        check_that_samples_are_compared()
    result = fit()
    check_that_each_can_restore(result.model)
    check_that_each_has_all_metrics(result.history["rows"].values)
    if NUM == 4:
        check_that_each_goes_on_in_its_own_data()
        check_that_all_diverge_together()
    losses = result.history["loss"].values.tolist()
    print("losses", losses, "total", total(result.model), flush=True)


if __name__ == "__main__":
    main()
