import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from flowkit import training as tr


DATA = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)


class Model(eqx.Module):
    first: jax.Array
    second: jax.Array


MODEL = Model(jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5]))


def first_loss(model, batch, key):
    return jnp.mean((model.first + jr.normal(key, batch.shape) - batch) ** 2), {
        "size": jnp.sum(model.second**2)
    }


def second_loss(model, batch, key):
    return jnp.mean((model.second - model.first * batch) ** 2)


ADAMW = optax.adamw(1e-1, weight_decay=0.1)


def stages(first_steps=12, second_steps=8, **callbacks):
    first = tr.Stage(
        "first",
        first_loss,
        first_steps,
        ADAMW,
        lambda m: m.first,
        callbacks=callbacks.get("first", ()),
    )
    own = callbacks.get("second", ())
    return [
        first,
        tr.Stage(
            "second",
            second_loss,
            second_steps,
            ADAMW,
            lambda m: m.second,
            callbacks=own,
        ),
    ]


fit_stages = ft.partial(tr.fit_stages, progress=False)


def run(directory=None, listed=None, **options):
    if directory is not None:
        options["checkpoints"] = tr.Checkpoints(directory, every=5, config={"size": 2})
    listed = stages() if listed is None else listed
    return fit_stages(listed, MODEL, DATA, batch_size=16, key=jr.key(1), **options)


def assert_same_results(one, two):
    assert list(one) == list(two)
    leaves = [
        jax.tree.leaves(eqx.filter(results, eqx.is_array)) for results in (one, two)
    ]
    for first, second in zip(*leaves, strict=True):
        if jnp.issubdtype(first.dtype, jax.dtypes.prng_key):
            first, second = jr.key_data(first), jr.key_data(second)
        np.testing.assert_array_equal(first, second)
    for name, result in one.items():
        for label, series in result.history.items():
            np.testing.assert_array_equal(
                series.values, two[name].history[label].values
            )


@pytest.mark.parametrize("average", [True, False])
def test_frozen_parts_keep_their_bits(average):
    """With weight decay; the second stage goes on from the average of the first one, or
    from its last weights."""
    results = run(start_from_average=average)
    first, second = results["first"], results["second"]
    np.testing.assert_array_equal(first.model.second, MODEL.second)
    np.testing.assert_array_equal(first.ema.second, MODEL.second)
    start = first.ema if average else first.model
    np.testing.assert_array_equal(second.model.first, start.first)
    np.testing.assert_array_equal(second.ema.first, start.first)
    assert np.all(np.asarray(first.ema.first) != first.model.first)
    assert np.all(np.asarray(second.model.second) != MODEL.second)


def test_stages_start_afresh():
    """Each has its own steps, histories and optimizer state, and ends where `fit` ends
    from the same start."""
    results = run()
    assert [len(result.history["loss"].values) for result in results.values()] == [
        12,
        8,
    ]
    assert "size" in results["first"].history
    assert "size" not in results["second"].history
    stage = stages()[1]
    alone = tr.fit(
        stage.loss,
        results["first"].ema,
        DATA,
        optimizer=stage.optimizer,
        trainable=stage.trainable,
        num_steps=8,
        batch_size=16,
        progress=False,
        key=jr.fold_in(jr.key(1), 1),
    )
    np.testing.assert_array_equal(alone.model.second, results["second"].model.second)
    assert int(results["second"].state.step) == 8


class Interrupted(BaseException):
    """Like a process that is killed: before an `Exception` the step would be saved."""


@pytest.mark.parametrize(("name", "step"), [("first", 7), ("second", 6)])
def test_a_stopped_run_goes_on_to_the_same_bits(name, step, tmp_path):
    """Stopped in either stage; run once more it changes nothing."""

    def stop(state, now):
        if now == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tmp_path, stages(**{name: (stop,)}))
    assert (tmp_path / "second").exists() == (name == "second")
    straight = run()
    assert_same_results(run(tmp_path), straight)
    assert_same_results(run(tmp_path), straight)
    restored = tr.restore_model(
        tmp_path / "second",
        lambda config: Model(jnp.zeros(config["size"]), jnp.zeros(2)),
    )
    np.testing.assert_array_equal(restored.second, straight["second"].ema.second)


def test_a_stage_by_hand(tmp_path):
    """The second stage alone, from a checkpoint of the first one."""
    run(tmp_path, stages()[:1])
    restored = tr.restore_model(tmp_path / "first", lambda config: MODEL)
    result = fit_stages(stages()[1:], restored, DATA, batch_size=16, key=jr.key(2))[
        "second"
    ]
    np.testing.assert_array_equal(result.model.first, restored.first)
    assert np.all(np.asarray(result.model.second) != MODEL.second)


def test_other_stages_are_refused(tmp_path):
    run(tmp_path, stages(5, 5))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    third = tr.Stage("third", first_loss, 3)
    others = [
        stages(6, 5),
        stages(5, 5)[:1],
        stages(5, 5)[::-1],
        [third, *stages(5, 5)],
        [stages(5, 5)[0], third],
    ]
    for other in others:
        with pytest.raises(ValueError, match=r"first \(5 steps\), second \(5 steps\)"):
            run(tmp_path, other)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    longer = run(tmp_path, stages(5, 8))
    assert_same_results(longer, run(None, stages(5, 8)))


def test_a_later_stage_alone_goes_on_in_the_same_folder(tmp_path):
    """It starts from the model of the stage before, and ends as both stages in one call."""
    first, second = stages(5, 5)
    run(tmp_path, [first])
    assert tr.last_stage(tmp_path) == tmp_path / "first"
    straight = run(None, [first, second])
    alone = {"second": straight["second"]}
    assert_same_results(run(tmp_path, [second]), alone)
    assert_same_results(run(tmp_path, [second]), alone)
    assert_same_results(run(tmp_path, [first, second]), straight)

    folder = tr.last_stage(tmp_path)
    assert folder == tmp_path / "second"
    assert tr.stored_config(folder) == {"size": 2}
    restored = tr.restore_model(folder, lambda config: MODEL)
    np.testing.assert_array_equal(restored.second, straight["second"].ema.second)


def test_a_later_stage_waits_until_the_one_before_is_complete(tmp_path):
    def stop(state, now):
        if now == 3:
            raise Interrupted

    first, second = stages(5, 5, first=(stop,))
    with pytest.raises(Interrupted):
        run(tmp_path, [first])
    with pytest.raises(ValueError, match=r"'first'.* is at step 0 of 5; finish it"):
        run(tmp_path, [second])
    with pytest.raises(FileNotFoundError, match="no checkpoint of a run"):
        tr.last_stage(tmp_path)

    checkpoints = tr.Checkpoints(tmp_path, every=2, config={"size": 2})
    with pytest.raises(Interrupted):
        run(listed=[first], checkpoints=checkpoints)
    with pytest.raises(ValueError, match=r"'first'.* is at step 2 of 5; finish it"):
        run(tmp_path, [second])


def test_a_stage_that_a_callback_ended_is_complete(tmp_path):
    stop = lambda state, step: tr.Stop() if step == 4 else None
    first, second = stages(10, 5, first=(stop,))
    both = run(tmp_path, [first, second])
    assert int(both["first"].state.step) == 4
    assert_same_results(run(tmp_path, [first, second]), both)
    assert_same_results(run(tmp_path, [second]), {"second": both["second"]})


def test_stages_may_be_added(tmp_path):
    whole = [*stages(5, 5), tr.Stage("third", first_loss, 3, ADAMW)]
    run(tmp_path, stages(5, 5)[:1])
    assert_same_results(run(tmp_path, whole), run(None, whole))


def test_batches_made_from_the_model_of_the_stage_before():
    """The second stage finds the mean of data that the first one's result has moved."""
    loss = lambda model, batch, key: jnp.mean((model.second - batch) ** 2)
    batches = lambda model: DATA[:8] + np.asarray(model.first)
    second = tr.Stage(
        "second",
        loss,
        200,
        optax.adam(1e-1),
        lambda m: m.second,
        batches,
        steps_per_call=40,
    )
    results = run(listed=[stages()[0], second])
    expected = DATA[:8].mean(0) + results["first"].ema.first
    np.testing.assert_allclose(results["second"].model.second, expected, atol=1e-2)
    assert len(results["second"].history["loss"].values) == 200


def test_own_batches_and_callbacks():
    """The mean of its own data is what the second stage finds; callbacks of all stages
    and of one."""
    seen = []
    loss = lambda model, batch, key: jnp.mean((model.second - batch) ** 2)
    common = tr.Every(100, lambda state, step: {"both": np.zeros(())})
    own = tr.Every(100, lambda state, step: seen.append(step))
    second = tr.Stage(
        "second",
        loss,
        200,
        optax.adam(1e-1),
        lambda m: m.second,
        DATA[:8] + 5,
        callbacks=(own,),
    )
    results = run(listed=[stages()[0], second], callbacks=[common])
    np.testing.assert_allclose(
        results["second"].model.second, DATA[:8].mean(0) + 5, atol=1e-2
    )
    assert all("both" in result.history for result in results.values())
    assert seen == [0, 100, 200]


@pytest.mark.parametrize("momentum", [tr.DEFAULT_MOMENTUM, tr.DOUBLED_MOMENTUM])
def test_momentum(momentum):
    """The first step of each average, written out; doubled means averages over twice as
    many steps."""
    for name, decay in tr.DEFAULT_MOMENTUM.items():
        np.testing.assert_allclose(1 / (1 - tr.DOUBLED_MOMENTUM[name]), 2 / (1 - decay))
    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.adam(1e-3, **momentum)
        _, state = optimizer.update(jnp.array(2.0), optimizer.init(jnp.array(0.0)))
    averages = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32]
    np.testing.assert_allclose(
        averages, [2 * (1 - momentum["b1"]), 4 * (1 - momentum["b2"])], rtol=1e-4
    )


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda: fit_stages([], MODEL, DATA, key=jr.key(0)), "`stages`"),
        (lambda: fit_stages([stages()[0]] * 2, MODEL, DATA, key=jr.key(0)), "`stages`"),
        (lambda: fit_stages(stages(), MODEL, key=jr.key(0)), "`batches` is missing"),
        (lambda: tr.Stage("a/b", first_loss, 3), "`name`"),
        (lambda: tr.Stage("a", first_loss, 3, batch_size=4), "`batch_size`"),
        (lambda: tr.Stage("a", first_loss, -1), "`num_steps`"),
        (lambda: tr.Stage("a", first_loss, 3, steps_per_call=0), "`steps_per_call`"),
        (
            lambda: tr.Stage("a", first_loss, 3, batches=DATA, batch_size=0),
            "`batch_size` must be at least 1",
        ),
    ],
)
def test_wrong_use(call, fragment):
    with pytest.raises(ValueError, match=fragment):
        call()
