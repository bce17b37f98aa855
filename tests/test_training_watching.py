"""What is written down during a training, held-out losses, and learning rates."""

import functools as ft
import json
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import flowkit as fk
from flowkit import training as tr


DATA = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
fit = ft.partial(tr.fit, optimizer=optax.sgd(0.1), progress=False)


def loss(weights, batch, key):
    del key
    value = jnp.mean(jnp.sum((batch - weights) ** 2, axis=-1))
    return value, {"size": jnp.sum(weights**2), "weights": weights}


def train(callbacks, num_steps=6, **options):
    options = {"callbacks": callbacks, "key": jr.key(0)} | options
    return fit(loss, jnp.zeros(2), DATA, num_steps=num_steps, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_hold_the_history(tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    judge = lambda state, step: {"judged": 10.0 * step}
    result = train([tr.Every(2, judge), tr.Every(2, tr.JsonLines(path))])
    found = lines(path)
    assert [line["step"] for line in found] == [2, 4, 6]
    for name in ("loss", "grad_norm", "skipped", "size", "weights"):
        values = result.history[name].values[1::2]
        written = np.array([line[name] for line in found])
        np.testing.assert_allclose(written, values, rtol=1e-6)
    assert [line["judged"] for line in found] == [20.0, 40.0, 60.0]


class Killed(BaseException):
    """Before an `Exception` the step would be saved."""


def test_lines_of_a_resumed_run_follow_one_another(tmp_path):
    """The first run gets to step 6, but its last checkpoint is that of step 4."""
    path = tmp_path / "log.jsonl"
    checkpoints = tr.Checkpoints(tmp_path / "run", every=4)

    def killed(state, step):
        if step == 6:
            raise Killed

    log = lambda: [tr.Every(1, tr.JsonLines(path))]
    with pytest.raises(Killed):
        train([*log(), tr.Every(1, killed)], num_steps=8, checkpoints=checkpoints)
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4, 5, 6]
    with path.open("a") as file:
        file.write('{"step": 7, "lo')
    train(log(), num_steps=8, checkpoints=checkpoints)
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_lines_of_a_repeated_run_are_written_once(tmp_path):
    """By the same object, as in a notebook."""
    path = tmp_path / "log.jsonl"
    log = tr.JsonLines(path)
    for num_steps in (6, 4):
        train([log], num_steps=num_steps)
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4]


def test_lines_of_an_earlier_stage_stay(tmp_path):
    """Those of a stage that is resumed do not, from the step on where it goes on."""
    path = tmp_path / "log.jsonl"

    def log(seed, *steps):
        state = tr.init_state(jnp.zeros(2), optax.sgd(0.1), key=jr.key(seed))
        write = tr.JsonLines(path)
        for step in steps:
            write(state, step, {"loss": np.array(1.0)})

    log(0, 100, 200, 300)
    log(1, 100, 200)
    log(1, 200)
    assert [line["step"] for line in lines(path)] == [100, 200, 300, 100, 200]
    first, *_, last = lines(path)
    assert last == {"run": last["run"], "step": 200, "loss": 1.0}
    assert first["run"] != last["run"]


def test_lines_of_repeated_stages_are_written_once(tmp_path):
    """Those of the first one, too, behind which the second one has written."""
    path = tmp_path / "log.jsonl"
    stages = [tr.Stage(name, loss, 2) for name in ("first", "second")]
    options: dict[str, Any] = {"callbacks": [tr.JsonLines(path)], "progress": False}
    for _ in range(2):
        tr.fit_stages(stages, jnp.zeros(2), DATA, key=jr.key(0), **options)
    assert [line["step"] for line in lines(path)] == [1, 2, 1, 2]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    path = tmp_path / "log.jsonl"
    judge = lambda state, step: {"judged": np.array([np.nan, 1.0])}
    train([judge, tr.JsonLines(path)], num_steps=1)
    assert lines(path)[0]["judged"] == [None, 1.0]


class Recorded:
    """Stands for a writer of TensorBoard, and for a run of Weights & Biases."""

    def __init__(self):
        self.found = {}

    def add_scalar(self, name, value, step):
        self.found.setdefault(step, {})[name] = value

    def log(self, values, *, step):
        self.found[step] = values

    def flush(self):
        pass


@pytest.mark.parametrize("logger", [tr.TensorBoard, tr.WeightsAndBiases])
def test_loggers_are_given_single_numbers(logger):
    recorded = Recorded()
    result = train([tr.Every(3, logger(recorded))])
    assert list(recorded.found) == [3, 6]
    for step, values in recorded.found.items():
        assert set(values) == {"loss", "grad_norm", "skipped", "size"}
        expected = result.history["loss"].values[step - 1]
        np.testing.assert_allclose(values["loss"], expected, rtol=1e-6)


def test_tensorboard_writes_a_file(tmp_path):
    pytest.importorskip("tensorboardX")
    train([tr.TensorBoard(tmp_path)])
    assert any("tfevents" in path.name for path in tmp_path.iterdir())


def test_wrong_runs():
    with pytest.raises(ValueError, match="`run` must have a method"):
        tr.WeightsAndBiases("project")


@pytest.mark.parametrize("batch_size", [None, 50, 20])
def test_held_out_loss(batch_size):
    """The mean over all, whatever the batches: 20, 20 and 10 examples."""
    held_out = tr.held_out_loss(loss, DATA, batch_size=batch_size, key=jr.key(1))
    state = train([], ema_decay=0.5).state
    expected = np.mean(np.sum((DATA - state.ema) ** 2, axis=-1))
    np.testing.assert_allclose(held_out(state), expected, rtol=1e-5)
    plain = eqx.tree_at(lambda s: s.average, state, None)
    expected = np.mean(np.sum((DATA - state.model) ** 2, axis=-1))
    np.testing.assert_allclose(held_out(plain), expected, rtol=1e-5)


def test_held_out_losses_of_a_run_are_of_the_same_draws():
    flow = fk.Flow(fk.nn.MLP(2, hidden_sizes=(8,), key=jr.key(0)))
    random = lambda flow, batch, key: fk.flow_matching_loss(flow, batch, key=key)
    held_out = tr.held_out_loss(random, DATA, key=jr.key(1))
    state = tr.init_state(flow, optax.sgd(0.1), key=jr.key(0))
    assert held_out(state) == held_out(state)


def test_held_out_data_of_different_lengths():
    with pytest.raises(ValueError, match="`data` is a pytree of arrays"):
        tr.held_out_loss(loss, (DATA, DATA[:3]), key=jr.key(1))


def test_learning_rate_of_a_loss_that_is_not_finite():
    broken = lambda weights, batch, key: jnp.nan * jnp.sum(weights)
    with pytest.raises(ValueError, match="`loss` is not finite at the first step"):
        tr.find_learning_rate(broken, jnp.ones(2), DATA, key=jr.key(0))


def test_learning_rate_of_noisy_parabolas():
    """Gradient descent on |w - x|^2 diverges beyond a rate of 1, and has the scatter of
    its examples in it well before that. It starts far from all of them."""
    found = tr.find_learning_rate(
        loss,
        jnp.full(2, 100.0),
        DATA,
        batch_size=4,
        optimizer=optax.sgd,
        least=1e-4,
        most=100.0,
        key=jr.key(0),
    )
    lowest = 10 * found.suggestion
    assert 0.1 < lowest < 1.2
    assert len(found.rates) == len(found.losses) < 300
    # It ended after the loss had grown.
    assert found.rates[-1] > 1
    ratio = 1e6 ** (1 / 299)
    np.testing.assert_allclose(found.rates[:2], [1e-4, 1e-4 * ratio], rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least": 1.0}, "`least` must be positive and below"),
        ({"least": 0.0}, "`least` must be positive and below"),
        ({"num_steps": 5}, "`num_steps` must be at least 10"),
    ],
)
def test_wrong_searches(options, message):
    with pytest.raises(ValueError, match=message):
        tr.find_learning_rate(loss, jnp.zeros(2), DATA, key=jr.key(0), **options)
