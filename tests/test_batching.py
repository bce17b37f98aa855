"""Three ways through a batch: same samples, the same costs, and no neighbors."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import flowkit as fk
from flowkit.solvers import Lockstep, OverDevices, RefilledSlots, SharedStep

from .oracles import mixture_1d, mixture_map


COARSE = {"stepsize_controller": dfx.PIDController(rtol=1e-3, atol=1e-3)}
FINE = {"stepsize_controller": dfx.PIDController(rtol=1e-6, atol=1e-6)}
WAYS = [SharedStep(), RefilledSlots(1), RefilledSlots(7), RefilledSlots(24)]
SOLVERS = [dfx.Tsit5(), dfx.Bosh3(), dfx.Heun()]


def turning(t, x, cond):
    """Faster for some than for others. The solution is x exp(cond sin(5 t) / 5)."""
    return cond * x * jnp.cos(5 * t)


def draw(batching, **options):
    cond = jnp.linspace(0.1, 8, 24)
    options = {"cond": cond, "key": jr.key(0)} | options
    return fk.sample(turning, (2,), num_samples=24, batching=batching, **options)


@pytest.mark.parametrize("batching", WAYS, ids=str)
def test_samples_are_those_of_the_flow(batching):
    samples = draw(batching, **FINE)
    starts = jr.normal(jr.key(0), (24, 2))
    expected = starts * np.exp(np.linspace(0.1, 8, 24) * np.sin(5) / 5)[:, None]
    np.testing.assert_allclose(samples.values, expected, rtol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_slots_take_the_steps_of_lockstep(solver):
    """Rejected ones, and the evaluations of first-same-as-last methods, too."""
    lockstep = draw(Lockstep(), solver=solver, **COARSE)
    refilled = draw(RefilledSlots(5), solver=solver, **COARSE)
    np.testing.assert_allclose(refilled.values, lockstep.values, rtol=1e-5)
    assert np.sum(lockstep.stats.rejected) > 0
    for name in ("evaluations", "accepted", "rejected"):
        expected = getattr(lockstep.stats, name)
        np.testing.assert_array_equal(getattr(refilled.stats, name), expected)


@pytest.mark.parametrize("batching", [SharedStep(), RefilledSlots(5)], ids=str)
def test_grids_go_through_all(batching):
    grid = {"solver": dfx.Midpoint(), "num_steps": 6}
    expected = draw(Lockstep(), **grid)
    found = draw(batching, **grid)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)
    np.testing.assert_array_equal(found.stats.evaluations, np.full(24, 12))


def test_a_shared_step_is_that_of_the_batch():
    stats = draw(SharedStep(), **COARSE).stats
    assert len(np.unique(stats.accepted)) == 1
    slowest = np.max(draw(Lockstep(), **COARSE).stats.accepted)
    assert stats.accepted[0] <= slowest


def test_no_sample_depends_on_its_neighbors():
    """Bit by bit, at one number of slots, although the others are started anew at other times."""
    flow = fk.exact_flow(mixture_1d())
    x0 = jr.normal(jr.key(1), (40, 1))
    options = {"num_samples": 40, "batching": RefilledSlots(8)} | COARSE
    found = fk.sample(flow, (1,), x0=x0, **options).values
    others = jnp.where(jnp.arange(40)[:, None] % 3 == 0, x0, 2 * x0)
    again = fk.sample(flow, (1,), x0=others, **options).values
    np.testing.assert_array_equal(found[::3], again[::3])
    assert np.any(found != again)


def test_log_probabilities_and_masks_go_through_slots():
    """Clouds of which some points are missing."""
    flow = fk.exact_flow(mixture_1d())
    velocity = lambda t, x, cond, mask=None: jax.vmap(lambda x: flow(t, x, cond))(x)
    mask = np.arange(4)[None] < np.array([1, 2, 3, 4, 2, 1])[:, None]
    options = {"num_samples": 6, "mask": mask, "key": jr.key(2)} | FINE
    expected = fk.sample_and_log_prob(velocity, (4, 1), **options)
    found = fk.sample_and_log_prob(
        velocity, (4, 1), batching=RefilledSlots(2), **options
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert np.all(np.asarray(found.values)[~mask] == 0)


def test_ends_are_those_of_the_exact_map():
    flow = fk.exact_flow(mixture_1d())
    x0 = jr.normal(jr.key(3), (50, 1))
    options = {"num_samples": 50, "x0": x0, "batching": RefilledSlots(8)} | FINE
    values = fk.sample(flow, (1,), **options).values
    expected = [mixture_map(float(x), 0, 1) for x in x0[:, 0]]
    np.testing.assert_allclose(values[:, 0], expected, atol=1e-4)


def test_failures_are_raised():
    with pytest.raises(
        Exception, match=r"sample `values\[0\]` took all `max_steps=3`\. "
    ):
        jax.block_until_ready(draw(RefilledSlots(4), max_steps=3, **FINE).values)
    stats = draw(RefilledSlots(4), max_steps=3, throw=False, **FINE).stats
    reached = lambda result: result == dfx.RESULTS.max_steps_reached
    assert np.all(jax.vmap(reached)(stats.result))

    lost = lambda t, x, cond: jnp.where(t > 0.5, jnp.nan, 1.0) * x
    options = {"num_samples": 6, "key": jr.key(0), "batching": RefilledSlots(2)}
    with pytest.raises(Exception, match="velocity is NaN or infinite on the way"):
        jax.block_until_ready(fk.sample(lost, (1,), **options).values)


def test_misuse():
    with pytest.raises(ValueError, match="`num_slots` must be positive"):
        RefilledSlots(0)
    with pytest.raises(ValueError, match="`num_slots` is 25, for 24 samples"):
        draw(RefilledSlots(25))
    with pytest.raises(ValueError, match="Kvaerno3 is implicit"):
        draw(RefilledSlots(5), solver=dfx.Kvaerno3())


def test_devices_solve_their_parts_of_a_batch():
    expected = draw(Lockstep(), **COARSE)
    mesh = fk.training.data_mesh()
    found = draw(OverDevices(mesh), **COARSE)
    spread = NamedSharding(mesh, PartitionSpec("data"))
    assert found.values.sharding.is_equivalent_to(spread, 2)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)
    np.testing.assert_array_equal(found.stats.evaluations, expected.stats.evaluations)


def test_slots_of_several_devices():
    """Of a mesh with explicit axes, as JAX makes them."""
    everywhere = OverDevices(jax.make_mesh((2,), ("data",)), RefilledSlots(5))
    grid = {"solver": dfx.Midpoint(), "num_steps": 6}
    expected = draw(Lockstep(), **grid)
    found = draw(everywhere, **grid)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)


def test_masks_over_devices():
    """Each row keeps its own: the solution is x exp(the number of valid points)."""

    def growing(t, x, cond, mask=None):
        return x * jnp.sum(mask, dtype=x.dtype)

    mask = jnp.arange(4) < jnp.array([1, 2, 3, 4])[:, None]
    everywhere = OverDevices(fk.training.data_mesh())
    options = {"num_samples": 4, "x0": jnp.ones((4, 4, 1)), "mask": mask} | FINE
    values = fk.sample(growing, (4, 1), batching=everywhere, **options).values
    expected = np.where(mask, np.exp(np.arange(1, 5))[:, None], 0)
    np.testing.assert_allclose(values[..., 0], expected, rtol=1e-4)


def test_log_probs_over_devices():
    flow = fk.exact_flow(mixture_1d())
    options = {
        "num_samples": 6,
        "key": jr.key(0),
        "num_steps": 8,
        "solver": dfx.Midpoint(),
    }
    expected = fk.sample_and_log_prob(flow, (1,), **options)
    everywhere = OverDevices(fk.training.data_mesh())
    found = fk.sample_and_log_prob(flow, (1,), batching=everywhere, **options)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=1e-5)


def test_derivatives_over_devices():
    """The end is linear in the start, so its derivative along the start is the end."""
    everywhere = OverDevices(fk.training.data_mesh())
    grid = {"solver": dfx.Midpoint(), "num_steps": 6, "adjoint": dfx.DirectAdjoint()}
    end = lambda x0: draw(everywhere, x0=x0, **grid).values
    x0 = jr.normal(jr.key(1), (24, 2))
    values, pull = jax.vjp(end, x0)
    (gradient,) = pull(jnp.ones_like(values))
    np.testing.assert_allclose(gradient * x0, values, rtol=1e-5)


def test_misuse_over_devices():
    everywhere = OverDevices(fk.training.data_mesh())
    options = {"cond": 1.0, "cond_axes": None, "key": jr.key(0), "batching": everywhere}
    with pytest.raises(ValueError, match="2 devices, which do not divide a batch of 3"):
        fk.sample(turning, (2,), num_samples=3, **options)
    with pytest.raises(ValueError, match='`mesh` must have the axis "data" alone'):
        OverDevices(jax.make_mesh((2,), ("model",)))
