import functools as ft

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import flowkit as fk

from .oracles import (
    compilations,
    mixture_1d,
    mixture_2d,
    mixture_map,
    one_of,
    PATHS,
    PREDICTIONS,
)


# Absolute errors at 20 and 40 steps on the field of N(1.3, 0.5^2), from 0.7, in float64, from
# a plain loop over the textbook formulas; and the order that they show at least.
SOLVERS = {
    "euler": (dfx.Euler(), [2.50e-2, 1.27e-2], 0.95),
    "heun": (dfx.Heun(), [3.56e-4, 9.58e-5], 1.85),
    "midpoint": (dfx.Midpoint(), [1.02e-5, 1.28e-6], 1.9),
    "rk4": (fk.RK4(), [3.10e-8, 2.62e-9], 3.5),
}


@pytest.mark.parametrize(("solver", "errors", "order"), SOLVERS.values(), ids=SOLVERS)
def test_orders_of_convergence(solver, errors, order):
    with jax.enable_x64(True):
        flow, x0 = fk.exact_flow(fk.Normal(1.3, 0.5)), jnp.array([0.7])
        exact = 1.3 + 0.5 * 0.7
        end = lambda n: fk.integrate(flow, x0, solver=solver, num_steps=n).ys[0, 0]
        got = [abs(float(end(n)) - exact) for n in (20, 40)]
        np.testing.assert_allclose(got, errors, rtol=5e-3)
        assert np.log2(got[0] / got[1]) > order


def test_rk4_by_hand():
    with jax.enable_x64(True):
        f = lambda t, x, cond: jnp.sin(3 * t) * x + cond
        x, h, t = 0.8, 0.25, 0.0
        for _ in range(4):
            k1 = f(t, x, 0.1)
            k2 = f(t + h / 2, x + h / 2 * k1, 0.1)
            k3 = f(t + h / 2, x + h / 2 * k2, 0.1)
            k4 = f(t + h, x + h * k3, 0.1)
            x, t = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), t + h
        got = fk.integrate(f, jnp.array(0.8), 0.1, solver=fk.RK4(), num_steps=4)
        np.testing.assert_allclose(got.ys[0], x, rtol=1e-14)


@pytest.mark.parametrize("solver", [dfx.Euler(), fk.RK4(), dfx.Tsit5()])
def test_a_constant_velocity_needs_one_step(solver):
    moved = fk.integrate(
        lambda t, x, cond: cond,
        jnp.zeros(2),
        jnp.array([1.0, -2.0]),
        solver=solver,
        num_steps=1,
    )
    np.testing.assert_allclose(moved.ys[0], [1.0, -2.0], rtol=1e-6)


def test_the_maps_of_the_mixture():
    """One-dimensional flows preserve order, so every path ends in the same map; the
    source of the variance-preserving
    path is approximate, and the narrow noise of `sigma_min` blurs the data a little."""
    with jax.enable_x64(True):
        mixture = mixture_1d(jnp.float64)
        flows = [fk.exact_flow(mixture, path) for path in PATHS.values()]
        velocity = one_of(flows)
        z = np.array([-3, -2, -1, -0.5, 0, 0.25, 0.5, 0.6, 1, 2, 3])
        expected = [mixture_map(value, 0, 1) for value in z]
        controller = dfx.PIDController(rtol=1e-9, atol=1e-9)
        solve = lambda z, number, t1: fk.integrate(
            velocity, z, number, t1=t1, stepsize_controller=controller
        ).ys[0]
        tolerances = {"linear-sigma-min": 1e-3, "variance-preserving": 0.2}
        for number, (name, flow) in enumerate(zip(PATHS, flows, strict=True)):
            got = jax.vmap(solve, (0, None, None))(z[:, None], number, flow.t_end)
            if name == "variance-preserving":
                end = ft.partial(flow.predict, fk.Target(), flow.t_end)
                got = jax.vmap(end)(got)
            tolerance = tolerances.get(name, 1e-6)
            np.testing.assert_allclose(
                got[:, 0], expected, atol=tolerance, err_msg=name
            )


def test_jumps_and_encodings_of_the_mixture():
    """Other pairs of times, also backwards: F_t^-1(F_s(x)), by root finding."""
    with jax.enable_x64(True):
        flow = fk.exact_flow(mixture_1d(jnp.float64))
        controller = dfx.PIDController(rtol=1e-9, atol=1e-9)
        for x, s, t in [
            (0.0, 0.0, 0.5),
            (0.5, 0.5, 1.0),
            (-1.0, 0.25, 0.75),
            (0.3, 0.9, 0.1),
        ]:
            moved = fk.integrate(
                flow, jnp.array([x]), t0=s, t1=t, stepsize_controller=controller
            )
            np.testing.assert_allclose(moved.ys[0], [mixture_map(x, s, t)], atol=1e-6)
        for x in (-2.0, 0.0, 1.5):
            code = fk.encode(flow, jnp.array([x]), stepsize_controller=controller)
            np.testing.assert_allclose(code, [mixture_map(x, 1, 0)], atol=1e-6)


def test_there_and_back(key):
    paths = ("linear", "cosine", "polynomial")
    velocity = one_of([fk.exact_flow(mixture_2d(), PATHS[path]) for path in paths])
    x0 = jr.normal(key, (2,))
    for number, path in enumerate(paths):
        x1 = fk.integrate(velocity, x0, number).ys[0]
        back = fk.encode(velocity, x1, number)
        np.testing.assert_allclose(back, x0, atol=2e-3, err_msg=path)


@pytest.mark.parametrize("num_steps", [1, 7, 49])
def test_a_uniform_grid_has_its_steps_and_exact_ends(num_steps):
    saveat = dfx.SaveAt(steps=True, t0=True)
    solution = fk.integrate(
        lambda t, x, cond: x,
        jnp.ones(1),
        solver=dfx.Euler(),
        num_steps=num_steps,
        saveat=saveat,
    )
    ts = np.asarray(solution.ts)
    ts = ts[np.isfinite(ts)]
    assert ts[0] == 0
    assert ts[-1] == 1
    np.testing.assert_allclose(ts, np.linspace(0, 1, num_steps + 1), atol=1e-6)
    assert int(solution.stats["num_steps"]) == num_steps


def test_other_grids_are_diffrax_own():
    with jax.enable_x64(True):
        grid = np.array([0.0, 0.1, 0.5, 1.0])
        got = fk.integrate(
            lambda t, x, cond: -x,
            jnp.ones(()),
            solver=dfx.Euler(),
            stepsize_controller=dfx.StepTo(grid),
        )
        np.testing.assert_allclose(got.ys[0], np.prod(1 - np.diff(grid)))


def test_trajectories_are_saved():
    ts = jnp.linspace(0, 1, 5)
    solution = fk.integrate(
        lambda t, x, cond: jnp.ones_like(x), jnp.zeros(2), saveat=dfx.SaveAt(ts=ts)
    )
    np.testing.assert_allclose(
        solution.ys, np.broadcast_to(ts[:, None], (5, 2)), atol=1e-6
    )


def test_gradients_of_a_solve_match_finite_differences():
    with jax.enable_x64(True):
        flow = fk.exact_flow(mixture_1d(jnp.float64))
        end = lambda x: fk.integrate(flow, x, solver=fk.RK4(), num_steps=20).ys[0, 0]
        h = 1e-6
        expected = (end(jnp.array([0.3 + h])) - end(jnp.array([0.3 - h]))) / (2 * h)
        np.testing.assert_allclose(
            jax.grad(end)(jnp.array([0.3])), [expected], rtol=1e-6
        )


@pytest.mark.parametrize("num_steps", [25, 400])
def test_memory_of_a_gradient_grows_with_the_root_of_the_steps(num_steps):
    """Checkpoints of n steps are at most sqrt(2n), each with two arrays of a state's size."""
    x = jnp.ones(4096)

    def loss(x):
        field = lambda t, x, cond: jnp.tanh(x)
        options = {"solver": dfx.Euler(), "num_steps": num_steps}
        return jnp.sum(fk.integrate(field, x, **options).ys)

    # Temporary arrays, as the compiler reports them.
    memory = jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= np.sqrt(2 * num_steps) * 2 * x.nbytes


EVALUATIONS = {
    "tsit5": (dfx.Tsit5(), lambda n: 6 * n + 1),
    "dopri5": (dfx.Dopri5(), lambda n: 6 * n + 1),
    "dopri8": (dfx.Dopri8(), lambda n: 13 * n + 1),
    "bosh3": (dfx.Bosh3(), lambda n: 3 * n + 1),
    "heun": (dfx.Heun(), lambda n: 2 * n),
    "midpoint": (dfx.Midpoint(), lambda n: 2 * n),
    "rk4": (fk.RK4(), lambda n: 4 * n),
    "euler": (dfx.Euler(), lambda n: n),
    "adams-bashforth-2": (fk.solvers.AdamsBashforth(2), lambda n: n),
    "adams-bashforth-3": (fk.solvers.AdamsBashforth(3), lambda n: n + 2),
}


@pytest.mark.parametrize(("solver", "count"), EVALUATIONS.values(), ids=EVALUATIONS)
def test_evaluations_are_those_that_happen(solver, count, key):
    """Against the number of times that the field is really called."""
    calls = []

    def velocity(t, x, cond):
        jax.debug.callback(lambda _: calls.append(1), t)
        return -x * jnp.cos(9 * t)

    samples = fk.sample(
        velocity, (1,), num_samples=1, key=key, solver=solver, num_steps=5
    )
    jax.effects_barrier()
    assert samples.stats.evaluations.tolist() == [count(5)] == [len(calls)]
    assert (samples.stats.accepted.tolist(), samples.stats.rejected.tolist()) == (
        [5],
        [0],
    )


def test_statistics_are_per_example(key):
    """The jump between the modes takes more steps than the tails; every sample has its own."""
    samples = fk.sample(fk.exact_flow(mixture_1d()), (1,), num_samples=200, key=key)
    stats = samples.stats
    assert stats.evaluations.shape == stats.accepted.shape == (200,)
    assert len(np.unique(stats.evaluations)) > 3
    np.testing.assert_array_equal(
        stats.evaluations, 6 * (stats.accepted + stats.rejected) + 1
    )
    assert np.all(
        np.asarray(jax.vmap(lambda r: r == dfx.RESULTS.successful)(stats.result))
    )


def test_a_solver_that_gives_up_says_so(key):
    field = fk.exact_flow(mixture_1d())
    samples = fk.sample(field, (1,), num_samples=4, key=key, max_steps=2, throw=False)
    assert np.all(
        np.asarray(
            jax.vmap(lambda r: r == dfx.RESULTS.max_steps_reached)(samples.stats.result)
        )
    )


def test_out_of_steps_says_which_sample_and_where():
    """From t = 0.3 on the field is stiff where x > 1.5."""

    def field(t, x, cond):
        fast = 200 * jnp.cos(200 * x * (1 + t))
        return jnp.where((t > 0.3) & (x > 1.5), fast, jnp.zeros_like(x))

    x0 = jnp.array([[0.0], [1.0], [2.0], [3.0]])
    draw = lambda x0: fk.sample(field, (1,), num_samples=4, x0=x0, max_steps=20).values
    wanted = (
        r"`values\[2\]` took all `max_steps=20` and came to t = 0\.3\d*\. Give a larger"
    )
    # The second is a program of the user's own.
    for call in (draw, jax.jit(draw)):
        with pytest.raises(Exception, match=wanted):
            jax.block_until_ready(call(x0))
    # Backwards it is stiff at once.
    with pytest.raises(Exception, match=r"a solve took .* came to t = (1|0\.9\d*)\. "):
        jax.block_until_ready(fk.encode(field, x0[3], max_steps=20))


@pytest.mark.parametrize("prediction", ["velocity", "noise", "target"])
@pytest.mark.parametrize("path", ["linear", "cosine", "variance-preserving"])
def test_samples_have_the_law_of_the_data(path, prediction, key):
    """Mean, variance and mass left of zero of the mixture, in standard errors."""
    num = 4000
    flow = fk.exact_flow(mixture_1d(), PATHS[path], prediction=PREDICTIONS[prediction])
    x = np.asarray(fk.sample(flow, (1,), num_samples=num, key=key).values)[:, 0]
    assert abs(x.mean() + 0.8) < 4 * np.sqrt(3.916 / num)
    assert abs(x.var() - 3.916) < 4 * np.sqrt(np.mean((x - x.mean()) ** 4) / num)
    assert abs(np.mean(x < 0) - 0.6958) < 4 * np.sqrt(0.6958 * 0.3042 / num)


def test_the_jump_ends_on_finite_data(key):
    """With a target prediction every sample ends on a datum."""
    data = jnp.array([[0.0, 1.0], [2.0, 3.0], [-1.0, 0.5]])
    flow = fk.exact_flow(fk.Empirical(data), prediction=fk.Target())
    values = np.asarray(fk.sample(flow, (2,), num_samples=50, key=key).values)
    distances = np.linalg.norm(values[:, None] - np.asarray(data), axis=-1).min(axis=1)
    assert np.all(distances < 1e-5)


def test_conditions_per_sample_and_shared(key):
    velocity = lambda t, x, cond: cond - 0 * x
    each = fk.sample(
        velocity, (2,), num_samples=3, key=key, cond=jnp.arange(6.0).reshape(3, 2)
    ).values
    shared = fk.sample(
        velocity,
        (2,),
        num_samples=3,
        key=key,
        cond=jnp.array([0.0, 1.0]),
        cond_axes=None,
    ).values
    x0 = fk.sample(lambda t, x, cond: 0 * x, (2,), num_samples=3, key=key).values
    np.testing.assert_allclose(each - x0, np.arange(6.0).reshape(3, 2), atol=1e-6)
    np.testing.assert_allclose(
        shared - x0, np.broadcast_to([0.0, 1.0], (3, 2)), atol=1e-6
    )


def test_masked_points_stay_at_zero(key):
    flow = fk.Flow(lambda t, x, cond, mask=None: x * 0 + 1)
    mask = np.array([[True, False, True], [True, True, False]])
    values = np.asarray(
        fk.sample(flow, (3, 2), num_samples=2, key=key, mask=mask).values
    )
    assert np.all(values[~mask] == 0)
    assert np.all(values[mask] != 0)
    x = np.array([[np.inf, np.nan], [0.0, 0.0], [np.nan, 1.0]], np.float32)
    moved = fk.integrate(flow, x, mask=np.array([False, True, False])).ys[0]
    np.testing.assert_allclose(moved, [[0, 0], [1, 1], [0, 0]], rtol=1e-6)


def test_inference_mode(key):
    """Everything that solves does so without dropout, and so without a key for it."""

    class Dropped(eqx.Module):
        dropout: eqx.nn.Dropout

        def __call__(self, t, x, cond, key=None):
            return self.dropout(jnp.ones_like(x), key=key)

    flow = fk.Flow(Dropped(eqx.nn.Dropout(0.5)))
    x = jnp.zeros(3)
    np.testing.assert_allclose(fk.integrate(flow, x).ys[0], np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(fk.encode(flow, x), -np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(
        fk.log_prob(flow, x), fk.Normal().log_prob(-jnp.ones(3)), rtol=1e-6
    )
    assert np.all(np.isfinite(fk.sample(flow, (3,), num_samples=2, key=key).values))
    assert np.all(
        np.isfinite(fk.sample_and_log_prob(flow, (3,), num_samples=2, key=key)[1])
    )


def test_the_second_call_compiles_nothing(key):
    """Also with another tolerance, end or start."""
    flow = fk.exact_flow(mixture_1d())
    x = np.zeros(1, np.float32)
    controller = lambda tol: dfx.PIDController(rtol=tol, atol=tol)
    calls = [
        lambda key, tol: (
            fk.integrate(flow, x, t0=tol, stepsize_controller=controller(tol)).ys
        ),
        lambda key, tol: (
            fk.integrate(flow, x, num_steps=4, solver=fk.RK4(), t1=1 - tol).ys
        ),
        lambda key, tol: fk.encode(flow, x, stepsize_controller=controller(tol)),
        lambda key, tol: (
            fk.sample(
                flow, (1,), num_samples=4, key=key, stepsize_controller=controller(tol)
            ).values
        ),
    ]
    for call in calls:
        jax.block_until_ready(call(key, 1e-3))
        other = jr.key(2)
        with compilations() as events:
            jax.block_until_ready(call(other, 1e-4))
        assert events == []


def test_under_jit_vmap_and_a_loop_of_its_own_length(key):
    """No Python loop over solver steps: the field is traced as often for 400 steps as for 4."""
    calls = []

    def velocity(t, x, cond):
        calls.append(1)
        return -x

    counts = []
    for num_steps in (4, 400):
        options = {"solver": fk.RK4(), "num_steps": num_steps}
        jax.eval_shape(
            lambda x, o=options: fk.integrate(velocity, x, **o), jnp.zeros(1)
        )
        counts.append(len(calls))
    assert counts[1] == 2 * counts[0]
    with jax.enable_x64(True):
        flow = fk.exact_flow(mixture_1d(jnp.float64))
        xs = jr.normal(key, (3, 1))
        batched = jax.jit(jax.vmap(lambda x: fk.integrate(flow, x).ys[0]))(xs)
        single = jnp.stack([fk.integrate(flow, x).ys[0] for x in xs])
        np.testing.assert_allclose(batched, single, rtol=1e-10)


def test_single_precision_stays_so_in_a_double_precision_session(key):
    with jax.enable_x64(True):
        flow = fk.exact_flow(fk.Normal(1.3, 0.5))
        calls = [
            lambda x: fk.integrate(flow, x).ys,
            lambda x: fk.integrate(flow, x, num_steps=3, solver=fk.RK4()).ys,
            lambda x: fk.encode(flow, x),
            lambda x: fk.log_prob(flow, x),
            lambda x: fk.log_prob(flow, x, key=key),
        ]
        for call in calls:
            # Traced only, which needs no compilation.
            found = jax.eval_shape(call, jnp.zeros(2, jnp.float32))
            assert found.dtype == jnp.float32


def test_every_step_is_saved_without_padding():
    solution = fk.integrate(
        lambda t, x, cond: x, jnp.ones(2), num_steps=3, saveat=dfx.SaveAt(steps=True)
    )
    assert solution.ys.shape == (3, 2)
    assert np.all(np.isfinite(solution.ys))


def on_grid(times, call, *args, **options):
    grid = dfx.StepTo(np.array(times, np.float32))
    return call(*args, solver=dfx.Euler(), stepsize_controller=grid, **options)


GRIDS = {
    "backwards": ([0, 0.6, 0.4, 1], "increase from 0 to 1"),
    "short": ([0, 0.5, 0.9], "increase from 0 to 1"),
    "late": ([0.1, 0.5, 1], "increase from 0 to 1"),
    "beyond": ([0, 0.5, 1.2], "increase from 0 to 1"),
    "nan": ([0, np.nan, 1], "increase from 0 to 1"),
}


@pytest.mark.parametrize(("times", "fragment"), GRIDS.values(), ids=GRIDS)
def test_grids_that_do_not_fit(times, fragment, key):
    field, x = lambda t, x, cond: x, jnp.ones(2)
    drawn = {"num_samples": 2, "key": key}
    with pytest.raises(ValueError, match=f"`stepsize_controller` .* {fragment}"):
        on_grid(times, fk.integrate, field, x)
    for draw in (fk.sample, fk.sample_and_log_prob):
        with pytest.raises(ValueError, match=fragment):
            on_grid(times, draw, field, (2,), **drawn)
    for back in (fk.encode, fk.log_prob):
        with pytest.raises(ValueError, match="decrease from 1 to 0"):
            on_grid(times, back, field, x)


@pytest.mark.parametrize("back", [fk.encode, fk.log_prob])
def test_a_grid_for_samples_is_turned_around_by_the_user(back):
    field, x = lambda t, x, cond: x, jnp.ones(2)
    with pytest.raises(ValueError, match=r"give `times\[::-1\]`"):
        on_grid([0, 0.2, 1], back, field, x)
    assert np.all(np.isfinite(on_grid([1, 0.2, 0], back, field, x)))


def test_grids_that_end_elsewhere(key):
    drawn = {"num_samples": 2, "key": key}
    target = fk.Flow(lambda t, x, cond: x, prediction=fk.Target())
    with pytest.raises(ValueError, match=r"from 0 to 0\.999"):
        on_grid([0, 0.5, 1], fk.sample, target, (2,), **drawn)
    with pytest.raises(ValueError, match="`max_steps` is 2, and the grid .* has 3"):
        on_grid([0, 0.2, 0.4, 1], fk.sample, target, (2,), max_steps=2, **drawn)


def test_grids_that_a_program_computes():
    """Their times are not known before it runs. Euler's steps multiply by 0.7 and by 0.8."""

    @jax.jit
    def end(middle):
        grid = dfx.StepTo(jnp.array([1, middle, 0.5]))
        options = {"solver": dfx.Euler(), "stepsize_controller": grid}
        field = lambda t, x, cond: x
        return fk.integrate(field, jnp.ones(1), t0=1.0, t1=0.5, **options).ys[0]

    np.testing.assert_allclose(end(0.7), [0.7 * 0.8], rtol=1e-6)


@pytest.mark.parametrize("wrong", [lambda x: x[:1], lambda x: 0.0, lambda x: None])
def test_velocities_of_another_shape(wrong, key):
    """They would broadcast."""
    field = lambda t, x, cond: wrong(x)
    fragment = r"the velocity must have the shape of `x`, \(2,\), got "
    with pytest.raises(ValueError, match=fragment):
        fk.sample(field, (2,), num_samples=2, key=key)
    for call in (fk.integrate, fk.encode, fk.log_prob):
        with pytest.raises(ValueError, match=fragment):
            call(field, jnp.ones(2))


def test_the_signature_of_a_velocity(key):
    for call in (fk.integrate, fk.encode, fk.log_prob):
        with pytest.raises(
            ValueError, match=r"`velocity` must take .*takes `\(t, x\)`"
        ):
            call(lambda t, x: x, jnp.ones(2))
    with pytest.raises(ValueError, match=r"`velocity` must take .*order differs"):
        fk.sample(lambda x, t, cond: x, (2,), num_samples=2, key=key)


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda f, key: fk.integrate(f, jnp.zeros(1), t0=0.5, t1=0.5), "must differ"),
        (lambda f, key: fk.integrate(f, jnp.full(1, jnp.nan)), "`x0` holds NaN"),
        (lambda f, key: fk.integrate(f, jnp.zeros((0, 2))), "`x0` must not be empty"),
        (
            lambda f, key: fk.integrate(f, jnp.zeros((2, 2)), mask=np.zeros(2, bool)),
            "without any valid point",
        ),
        (
            lambda f, key: fk.integrate(f, jnp.zeros((2, 2)), mask=np.ones(2, bool)),
            "does not take one",
        ),
        (
            lambda f, key: fk.integrate(
                f, jnp.zeros(1), stepsize_controller=dfx.ConstantStepSize()
            ),
            "`num_steps`",
        ),
        (
            lambda f, key: fk.sample(
                f, (2, 1), num_samples=1, key=key, mask=np.zeros((1, 2), bool)
            ),
            "valid point",
        ),
        (
            lambda f, key: fk.sample(f, (1,), num_samples=2, key=key, cond=3.0),
            "`cond` must hold arrays",
        ),
        (lambda f, key: fk.log_prob(f, jnp.full(1, jnp.inf)), "`x1` holds NaN"),
        (lambda f, key: fk.log_prob(f, jnp.zeros(1), num_probes=2), "needs a `key`"),
        (
            lambda f, key: fk.log_prob(
                f,
                jnp.zeros((2, 2)),
                mask=np.ones(2, bool),
                source=fk.Normal(jnp.zeros((2, 2)), 1.0),
            ),
            "`source` must be the same for all points",
        ),
        (lambda f, key: fk.integrate(f, jnp.zeros(1), t0=-0.1), "`t0` must be in"),
        (lambda f, key: fk.integrate(f, jnp.zeros(1), t1=1.1), "`t1` must be in"),
        (
            lambda f, key: fk.integrate(f, jnp.zeros(1), solver=fk.RK4()),
            "no error estimate",
        ),
        (
            lambda f, key: fk.integrate(f, jnp.zeros(1), solver=dfx.Euler()),
            "no error estimate",
        ),
        (lambda f, key: fk.integrate(f, jnp.zeros(1), num_steps=0), "`num_steps`"),
        (
            lambda f, key: fk.integrate(
                f, jnp.zeros(1), num_steps=4, stepsize_controller=dfx.ConstantStepSize()
            ),
            "not both",
        ),
        (lambda f, key: fk.sample(f, (1,), num_samples=0, key=key), "`num_samples`"),
        (lambda f, key: fk.sample(f, (0, 2), num_samples=1, key=key), "`shape`"),
        (
            lambda f, key: fk.sample(
                f, (1,), num_samples=2, key=key, cond=jnp.zeros(3)
            ),
            "`cond` must have 2 rows",
        ),
        (
            lambda f, key: fk.sample(f, (1,), num_samples=2, key=key, cond_axes=1),
            "`cond_axes`",
        ),
        (
            lambda f, key: fk.sample(
                f, (3, 1), num_samples=2, key=key, mask=np.ones((2, 2), bool)
            ),
            "`mask`",
        ),
        (lambda f, key: fk.log_prob(f, jnp.zeros(1), num_probes=0), "`num_probes`"),
        (
            lambda f, key: fk.sample_and_log_prob(
                f, (1,), num_samples=2, num_probes=0, key=key
            ),
            "`num_probes`",
        ),
    ],
)
def test_wrong_use(call, fragment, key):
    with pytest.raises(ValueError, match=fragment):
        call(lambda t, x, cond: x, key)


def test_tolerances_out_of_reach_warn():
    """While tracing; the suite makes errors of all other warnings."""

    def trace(rtol, atol):
        controller = dfx.PIDController(rtol=rtol, atol=atol)
        options = {"stepsize_controller": controller}
        end = lambda x: fk.integrate(lambda t, x, cond: x, x, **options).ys
        jax.eval_shape(end, jnp.ones(2))

    with pytest.warns(UserWarning, match="`stepsize_controller` .* float32 .* 1e-06"):
        trace(1e-9, 1e-9)
    # One of both is enough, and float64 reaches it.
    trace(1e-6, 1e-9)
    trace(0, 1e-6)
    with jax.enable_x64(True):
        trace(1e-9, 1e-9)


@pytest.mark.parametrize("grid", [{}, {"num_steps": 5}], ids=["adaptive", "grid"])
def test_velocities_that_are_not_finite_have_an_error_of_their_own(grid, key):
    velocity = lambda t, x, cond: jnp.where(t > 0.3, cond, x)
    options = {"num_samples": 2, "cond_axes": None, "key": key} | grid
    sample = ft.partial(fk.sample, velocity, (2,), **options)
    for value in (np.nan, np.inf):
        with pytest.raises(Exception, match="the velocity is NaN or infinite"):
            jax.block_until_ready(sample(cond=value).values)
    quiet = sample(cond=np.nan, throw=False)
    if grid:
        assert np.all(np.isnan(quiet.values))
    else:
        failed = jax.vmap(lambda r: r == dfx.RESULTS.dt_min_reached)(quiet.stats.result)
        assert np.all(np.asarray(failed))
        # It gives up at once, not after `max_steps`.
        assert np.all(quiet.stats.rejected < 100)


def test_a_long_step_out_of_the_domain_is_only_shortened():
    """dx/dt = -1 / (2 sqrt(x)), NaN for x < 0: x(t) = (1 - 3/4 t)^(2/3)."""
    velocity = lambda t, x, cond: -0.5 / jnp.sqrt(x)
    end = fk.integrate(velocity, jnp.ones(1), t1=1.0).ys[0]
    np.testing.assert_allclose(end, 0.25 ** (2 / 3), rtol=1e-3)


def test_limits_reach_the_encoder():
    stiff = fk.Flow(lambda t, x, cond: 1e3 * jnp.sin(1e3 * x))
    with pytest.raises(Exception, match="maximum number of solver steps"):
        jax.block_until_ready(fk.encode(stiff, np.ones(2, np.float32), max_steps=3))
    quiet = fk.encode(stiff, np.ones(2, np.float32), max_steps=3, throw=False)
    np.testing.assert_array_equal(quiet, np.full(2, np.nan))


def test_numbers_in_conditions_compile_once(key):
    velocity = fk.Flow(lambda t, x, cond: cond["shift"] - x)
    flow_map = lambda s, t, x, cond: cond["shift"] - x
    x = jnp.ones(2)
    grid = {"num_steps": 2}
    shared = {"cond_axes": None, "num_samples": 2, "key": key, **grid}
    calls = [
        lambda cond: fk.integrate(velocity, x, cond, **grid).ys,
        lambda cond: fk.encode(velocity, x, cond, **grid),
        lambda cond: fk.log_prob(velocity, x, cond, **grid),
        lambda cond: fk.sample(velocity, (2,), cond=cond, **shared).values,
        lambda cond: fk.sample_and_log_prob(velocity, (2,), cond=cond, **shared).values,
        lambda cond: fk.few_step.sample(
            flow_map, (2,), num_samples=2, key=key, cond=cond, cond_axes=None
        ),
    ]
    for call in calls:
        # Whole numbers are of another type, once more for one of the calls.
        pairs = [(0.5, 0.7), (1, 2)] if call is calls[0] else [(0.5, 0.7)]
        for first, second in pairs:
            jax.block_until_ready(call({"shift": first}))
            with compilations() as events:
                jax.block_until_ready(call({"shift": second}))
            assert events == []


def test_given_starts_end_with_the_jump():
    """From the start that `fk.integrate` takes, and on to the data with a target network."""
    flow = fk.exact_flow(fk.Normal(1.0, 0.5), prediction=fk.Target())
    x0 = np.array([[0.3], [-1.0], [0.8]], np.float32)
    got = fk.sample(flow, (1,), num_samples=3, x0=x0).values
    np.testing.assert_allclose(got, 1.0 + 0.5 * x0, atol=1e-3)
    with pytest.raises(ValueError, match=r"`x0` must have shape \(2, 1\)"):
        fk.sample(flow, (1,), num_samples=2, x0=x0)
    with pytest.raises(ValueError, match="`key` is missing"):
        fk.sample(flow, (1,), num_samples=2)


def test_sizes_as_users_have_them(key):
    field = lambda t, x, cond: x
    expected = fk.sample(field, (2,), num_samples=3, key=key, num_steps=2).values
    three = np.int64(3)
    for shape in ([2], (np.int64(2),), np.zeros((5, 2)).shape[1:]):
        got = fk.sample(field, shape, num_samples=three, key=key, num_steps=np.int32(2))
        np.testing.assert_array_equal(got.values, expected)
    values, log_probs = fk.sample_and_log_prob(
        field, [2], num_samples=three, key=key, num_steps=np.int64(2), num_probes=three
    )
    assert (values.shape, log_probs.shape) == ((3, 2), (3,))


def test_the_backward_solve_of_an_adjoint_needs_steps():
    field, x = lambda t, x, cond: -x, jnp.ones(1)
    grid = {"num_steps": 8, "solver": dfx.Tsit5()}
    with pytest.raises(ValueError, match="`adjoint=BacksolveAdjoint"):
        fk.integrate(field, x, adjoint=dfx.BacksolveAdjoint(), **grid)
    steps = dfx.PIDController(rtol=1e-5, atol=1e-5)
    adjoint = dfx.BacksolveAdjoint(stepsize_controller=steps)
    end = lambda x: fk.integrate(field, x, adjoint=adjoint, **grid).ys[0, 0]
    np.testing.assert_allclose(jax.grad(end)(x), [np.exp(-1)], rtol=1e-4)


def test_options_that_a_model_stores_survive_its_training(key):
    """Training, restoring and `jax.tree.map` make other objects of them."""
    flow = fk.Flow(lambda t, x, cond: -x)
    options = ({"solver": fk.RK4(), "num_steps": 2}, {})
    for given in options:
        prior = fk.latent.FlowPrior(flow, 2, **given)
        after = jax.tree.map(lambda leaf: leaf, prior)
        draw = lambda prior: prior.sample((3, 1, 2), key=key)
        np.testing.assert_array_equal(draw(after), draw(prior))
        assert np.isfinite(after.log_prob(jnp.ones((1, 2))))
    with pytest.raises(ValueError, match="no error estimate"):
        fk.latent.FlowPrior(flow, 2, solver=fk.RK4())


def test_strict_ranks(key):
    with jax.numpy_rank_promotion("raise"):
        flow = fk.Standardized(fk.Flow(lambda t, x, cond: -x), np.ones(2), np.ones(2))
        values, log_probs = fk.sample_and_log_prob(
            flow, (2,), num_samples=2, key=key, num_steps=2
        )
        assert np.all(np.isfinite(log_probs))


def test_old_style_keys_are_named():
    with pytest.raises(TypeCheckError, match="key"):
        fk.sample(lambda t, x, cond: x, (1,), num_samples=1, key=jr.PRNGKey(0))
