"""Multistep methods by their order, fitted grids and steps on noise that they did not see."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.polynomial import Polynomial
from scipy.stats import norm

import flowkit as fk
from flowkit._solve.sample import as_batch
from flowkit.solvers import AdamsBashforth, fit_grid, fit_steps, LearnedSteps
from flowkit.solvers._adams_bashforth import lagrange_weights
from flowkit.solvers._fit_steps import _weights
from flowkit.solvers._fitting import Budget, minimize, Task, task_of
from flowkit.solvers._hard_noises import hard_noises, priority_sample

from .oracles import (
    compilations,
    mixture_1d,
    mixture_2d,
    mixture_log_prob,
    mixture_map,
)


def turning(t, x, cond):
    """Its solution is x exp(sin(5 t) / 5)."""
    return x * jnp.cos(5 * t)


def end_of(solver, times):
    grid = dfx.StepTo(times)
    x0 = jnp.ones((2,), times.dtype)
    options = {"t0": times[0], "t1": times[-1], "stepsize_controller": grid}
    return fk.integrate(turning, x0, solver=solver, **options).ys[-1]


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("power", [1, 2], ids=["uniform", "quadratic"])
@pytest.mark.parametrize("sign", [1, -1], ids=["forward", "backward"])
def test_order_of_adams_bashforth(order, power, sign):
    """Twice the steps: a quarter of the error with order 2, an eighth with order 3."""
    with jax.enable_x64(True):
        errors = []
        for number in (160, 320):
            times = np.linspace(0, 1, number + 1)[::sign] ** power
            found = end_of(AdamsBashforth(order), times)
            expected = np.exp(sign * np.sin(5) / 5)
            errors.append(abs(float(found[0]) - expected))
        assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_codes_and_log_probs_of_adams_bashforth():
    flow = fk.exact_flow(mixture_1d())
    options = {"solver": AdamsBashforth(3), "num_steps": 100}
    x1 = jnp.array([0.4])
    code = fk.encode(flow, x1, **options)
    np.testing.assert_allclose(code, [mixture_map(0.4, 1, 0)], atol=1e-3)
    found = fk.log_prob(flow, x1, **options)
    np.testing.assert_allclose(found, mixture_log_prob(0.4), atol=1e-3)


@pytest.mark.parametrize("times", [(0.5, 0.2), (0.5, 0.2, 0.1)])
def test_weights_integrate_polynomials(times):
    weights = lagrange_weights(times, 1.25)
    for degree in range(len(times)):
        integral = Polynomial.basis(degree).integ()
        expected = integral(1.25) - integral(0.5)
        np.testing.assert_allclose(np.dot(weights, np.power(times, degree)), expected)


def test_order_three_is_exact_where_the_velocity_is_linear_in_time():
    velocity = lambda t, x, cond: jnp.full_like(x, 3 * t - 1)
    times = np.array([0, 0.1, 0.4, 1], np.float32)
    solution = fk.integrate(
        velocity,
        jnp.zeros(1),
        solver=AdamsBashforth(3),
        stepsize_controller=dfx.StepTo(times),
    )
    np.testing.assert_allclose(solution.ys[-1], 0.5, rtol=1e-6)


def test_learned_steps_can_be_those_of_adams_bashforth(key):
    times = np.array([0, 0.15, 0.5, 0.7, 1], np.float32)
    same = LearnedSteps(times, jnp.ones(4), _weights(times))
    flow = fk.exact_flow(mixture_2d())
    options = {"num_samples": 20, "key": key}
    found = fk.sample(flow, (2,), solver=same, **options)
    expected = fk.sample(
        flow,
        (2,),
        solver=AdamsBashforth(),
        stepsize_controller=dfx.StepTo(times),
        **options,
    )
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
    assert found.stats.evaluations.tolist() == [4] * 20


def ends_of(x0):
    """Where the exact flow carries each noise, by the quantiles of the mixture."""
    return np.array([[mixture_map(float(x), 0, 1)] for x in x0[:, 0]])


def error_of(flow, x0, ends, **options):
    values = fk.sample(flow, x0.shape[1:], num_samples=len(x0), x0=x0, **options).values
    return float(np.sqrt(np.mean((np.asarray(values) - ends) ** 2)))


def test_fitted_grids_are_better_on_other_noise():
    flow = fk.exact_flow(mixture_1d())
    times = fit_grid(flow, (1,), num_steps=6, key=jr.key(0))
    assert times.shape == (7,)
    assert (times[0], times[-1]) == (0, 1)
    assert np.all(np.diff(times) > 0)

    x0 = np.asarray(jr.normal(jr.key(1), (400, 1)))
    ends = ends_of(x0)
    midpoint = {"solver": dfx.Midpoint()}
    uniform = error_of(flow, x0, ends, num_steps=6, **midpoint)
    fitted = error_of(flow, x0, ends, stepsize_controller=dfx.StepTo(times), **midpoint)
    assert fitted < 0.8 * uniform


def test_fits_begin_with_the_best_grid():
    """That of EDM for data of little spread, whose velocity turns at the very end."""
    std = 0.003
    flow = fk.exact_flow(fk.GaussianMixture(jnp.zeros((1, 1)), jnp.full((1, 1), std)))
    options = {"num_noises": 64, "num_iterations": 1}
    times = fit_grid(flow, (1,), num_steps=8, key=jr.key(0), **options)

    x0 = np.asarray(jr.normal(jr.key(1), (200, 1)))
    on = lambda times: error_of(
        flow,
        x0,
        std * x0,
        solver=dfx.Midpoint(),
        stepsize_controller=dfx.StepTo(times),
    )
    edm = on(fk.solvers.edm_grid(8))
    assert edm < 0.5 * on(fk.solvers.shifted_grid(8, 3.0))
    assert on(times) < 1.01 * edm


@pytest.fixture(scope="module")
def learned():
    flow = fk.exact_flow(mixture_1d())
    return fit_steps(flow, (1,), num_evaluations=6, num_noises=256, key=jr.key(0))


def test_learned_steps_are_better_on_other_noise(learned):
    """Than both methods of two evaluations or values a step, at the same cost."""
    flow = fk.exact_flow(mixture_1d())
    x0 = np.asarray(jr.normal(jr.key(1), (400, 1)))
    ends = ends_of(x0)
    error = error_of(flow, x0, ends, solver=learned)
    assert error < 0.3 * error_of(flow, x0, ends, solver=AdamsBashforth(), num_steps=6)
    assert error < 0.3 * error_of(flow, x0, ends, solver=dfx.Midpoint(), num_steps=3)


def test_learned_steps_have_gradients(learned):
    """With respect to the start, against finite differences."""
    flow = fk.exact_flow(mixture_1d())

    def end(x):
        options = {"num_samples": 1, "solver": learned}
        return fk.sample(flow, (1,), x0=x[None, None], **options).values[0, 0]

    step = 1e-2
    expected = (end(jnp.array(0.3 + step)) - end(jnp.array(0.3 - step))) / (2 * step)
    np.testing.assert_allclose(jax.grad(end)(jnp.array(0.3)), expected, rtol=1e-2)


def test_other_learned_steps_compile_nothing(learned, key):
    flow = fk.exact_flow(mixture_1d())
    draw = lambda solver: fk.sample(flow, (1,), num_samples=3, solver=solver, key=key)
    draw(learned)
    other = eqx.tree_at(lambda solver: solver.scales, learned, 0.5 * learned.scales)
    with compilations() as compiled:
        draw(other)
    assert compiled == []


def test_flows_that_end_early_and_have_conditions():
    """A flow of targets, whose velocity ends before t = 1, to a point that is the condition."""
    network = lambda t, x, cond: jnp.broadcast_to(cond, x.shape)
    flow = fk.Flow(network, prediction=fk.Target())
    cond = jnp.linspace(-1, 1, 8)
    options = {"cond": cond, "num_noises": 8, "num_iterations": 3}
    times = fit_grid(flow, (2,), num_steps=3, key=jr.key(0), **options)
    assert float(times[-1]) == pytest.approx(flow.t_end)
    steps = fit_steps(flow, (2,), num_evaluations=3, key=jr.key(0), **options)
    samples = fk.sample(
        flow, (2,), num_samples=8, solver=steps, cond=cond, key=jr.key(1)
    )
    np.testing.assert_allclose(samples.values, np.stack([cond, cond], 1), atol=1e-6)


def test_misuse(learned, key):
    flow = fk.exact_flow(mixture_1d())
    with pytest.raises(ValueError, match="LearnedSteps brings its own steps"):
        fk.sample(flow, (1,), num_samples=1, solver=learned, num_steps=6, key=key)
    x = jnp.zeros(1)
    for call in (fk.integrate, fk.encode, fk.log_prob):
        with pytest.raises(
            ValueError, match="LearnedSteps was fitted to go from noise"
        ):
            call(flow, x, solver=learned)
    with pytest.raises(ValueError, match="`num_values` must be 2 or 3"):
        AdamsBashforth(4)
    with pytest.raises(ValueError, match="`times` are 2 steps"):
        LearnedSteps(np.linspace(0, 1, 3), np.ones(3), np.eye(3))
    with pytest.raises(ValueError, match="`times` must increase"):
        LearnedSteps(np.array([0.0, 0.5, 0.5, 1.0]), np.ones(3), np.eye(3))
    for times in ([0.0, 0.5, 0.9], [0.1, 0.5, 1.0]):
        with pytest.raises(ValueError, match="`times` must increase from 0 to 1"):
            LearnedSteps(np.array(times), np.ones(2), np.eye(2))
    with pytest.raises(ValueError, match="`solver` Kvaerno3 is implicit"):
        fit_grid(flow, (1,), solver=dfx.Kvaerno3(), key=key)
    for name in ("num_evaluations", "num_iterations", "batch_size"):
        with pytest.raises(ValueError, match=f"`{name}`"):
            fit_steps(flow, (1,), key=key, **{name: 0})


@pytest.mark.parametrize(
    "mixture", [mixture_1d, mixture_2d], ids=["reverse", "forward"]
)
def test_a_linear_fit_is_that_of_numpy(mixture):
    """Factors of the start and of the first velocity that lead nearest to the end.

    Ten noises are in memory at a time. The derivative is taken in the cheaper mode.
    """
    flow = fk.exact_flow(mixture())
    shape = mixture().means.shape[1:]
    options = {"cond": None, "cond_axes": None, "source": fk.Normal()}
    task = task_of(flow, shape, 64, dfx.Euler(), 4, **options, key=jr.key(0))

    def walk_of(factors):
        return lambda v, x, cond: factors[0] * x + factors[1] * v(0.0, x, cond)

    found = minimize(task, walk_of, jnp.eye(2), Budget(20, 10))
    start = np.asarray(task.starts)
    velocity = np.asarray(jax.vmap(lambda x: flow(0.0, x, None))(start))
    ends = np.asarray(task.ends)
    unit = np.sqrt(task.weights)[:, None]
    assert np.ptp(unit) > 0

    def scales_of(first):
        """What both kinds of weights make of the errors of a start."""
        squares = np.mean((first - ends) ** 2, axis=1, keepdims=True)
        limit = 0.1**2 * np.mean(np.var(ends, axis=0))
        return unit / np.sqrt(1 + squares / limit)

    firsts = (start, velocity)
    norms = [np.linalg.norm(scales_of(first) * (first - ends)) for first in firsts]
    scales = scales_of(firsts[np.argmin(norms)])
    columns = np.stack([(scales * first).ravel() for first in firsts], axis=1)
    expected = np.linalg.lstsq(columns, (scales * ends).ravel())[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_sums_over_a_priority_sample_are_unbiased():
    values = np.exp(np.random.default_rng(0).normal(size=200)).astype(np.float32)
    scores = jnp.asarray(values**2)

    def estimate(key):
        chosen, weights = priority_sample(scores, 40, key=key)
        return jnp.sum(weights * jnp.asarray(values)[chosen])

    found = np.asarray(jax.vmap(estimate)(jr.split(jr.key(0), 4000)))
    standard_error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(np.sum(values), abs=4 * standard_error)


def test_a_priority_sample_has_no_element_twice():
    """Nor does it leave out one that has nearly all of the score."""
    scores = jnp.zeros(50).at[7].set(1e6)
    keys = jr.split(jr.key(0), 100)
    chosen, _ = jax.vmap(lambda key: priority_sample(scores, 5, key=key))(keys)
    assert all(len(set(row)) == 5 for row in np.asarray(chosen).tolist())
    assert np.mean(np.any(chosen == 7, axis=1)) > 0.9


def test_a_noise_at_another_mode_does_not_bend_the_fit():
    """Ninety-nine ends are three times the start; one is at the other end of the data."""
    start = np.linspace(-1, 1, 100, dtype=np.float32)[:, None]
    ends = 3 * start
    ends[0] = 3
    still = lambda t, x, cond: x
    weights = jnp.ones(100)
    task = Task(still, jnp.asarray(start), jnp.asarray(ends), weights, None, 1.0, None)
    walk_of = lambda factor: lambda v, x, cond: factor * x

    found = minimize(task, walk_of, jnp.array([2.9]), Budget(20, 100))
    plain = np.vdot(start, ends) / np.vdot(start, start)
    assert abs(found - 3) < 0.02 * abs(plain - 3)


def kept(velocity, cond, key):
    batch = as_batch((1,), 100, cond=cond, cond_axes=0, source=fk.Normal(), mask=None)
    return hard_noises(velocity, batch, dfx.Midpoint(), 4, key)


def test_noises_that_turn_sharply_are_kept(key):
    """Between two narrow modes."""
    modes = fk.GaussianMixture(jnp.array([[-1.0], [1.0]]), jnp.full((2, 1), 0.05))
    noises = kept(fk.exact_flow(modes), None, key)
    near = np.abs(noises.starts[:, 0]) < 0.2
    plain = 2 * norm.cdf(0.2) - 1
    assert np.mean(near) > plain + 4 * np.sqrt(plain * (1 - plain) / 100)
    # And their weights make up for it.
    share = np.average(near, weights=noises.weights)
    assert share == pytest.approx(plain, abs=4 * np.sqrt(plain * (1 - plain) / 100))


def test_noises_keep_their_conditions(key):
    """One in ten conditions turns the paths; these come more often."""
    turns = lambda t, x, cond: cond * jnp.cos(10 * t) * x
    cond = jnp.zeros(100).at[::10].set(1)
    noises = kept(turns, cond, key)
    standard_error = np.sqrt(0.1 * 0.9 / 100)
    assert np.mean(noises.cond) > 0.1 + 4 * standard_error
    share = np.average(noises.cond, weights=noises.weights)
    assert share == pytest.approx(0.1, abs=4 * standard_error)
