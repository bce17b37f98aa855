"""Couplings of whole examples against scipy, closed forms and brute force, and plans made ahead."""

import itertools
import math
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from scipy.optimize import linear_sum_assignment, minimize
from scipy.spatial.distance import cdist

import flowkit as fk
from flowkit import _transport

from .oracles import compilations


INF = math.inf
COUPLINGS = {
    "exact": fk.assignment,
    "entropic": fk.EntropicCoupling(),
    "unbalanced": fk.UnbalancedCoupling(),
    "conditional": fk.ConditionalAssignment(),
}
every_coupling = pytest.mark.parametrize("coupling", COUPLINGS.values(), ids=COUPLINGS)


def batch(seed, num=32, size=2):
    rng = np.random.default_rng(seed)
    x0 = rng.normal(size=(num, size)).astype(np.float32)
    x1 = rng.normal(size=(num, size)) ** 2 - np.arange(size)
    return x0, x1.astype(np.float32)


def costs(x0, x1):
    """Rows are data, columns the source."""
    return cdist(np.asarray(x1, float), np.asarray(x0, float), "sqeuclidean")


# The exact plan.


@pytest.mark.parametrize("traced", [False, True])
def test_large_assignments_cost_the_least(traced):
    """Those that are reduced before the host solves them, with a mask and with forbidden pairs."""
    x0, x1 = batch(0, 150)
    cost, num = costs(x0, x1).astype(np.float32), 150
    solve = (
        jax.jit(_transport.solve_assignment) if traced else _transport.solve_assignment
    )
    columns = np.asarray(solve(jnp.asarray(cost)))
    best = cost[linear_sum_assignment(cost)].sum()
    assert sorted(columns) == list(range(num))
    assert cost[np.arange(num), columns].sum() == pytest.approx(best, rel=1e-6)

    kind = np.arange(num) % 3
    forbidden = np.where(kind[:, None] == kind, cost, np.inf).astype(np.float32)
    columns = np.asarray(solve(jnp.asarray(forbidden)))
    best = forbidden[linear_sum_assignment(forbidden)].sum()
    assert forbidden[np.arange(num), columns].sum() == pytest.approx(best, rel=1e-6)

    mask = np.arange(num) < 140
    spoilt = np.where(mask[:, None] & mask, cost, np.nan)
    columns = np.asarray(
        solve(jnp.asarray(spoilt), jnp.asarray(mask), jnp.asarray(mask))
    )
    best = cost[:140, :140][linear_sum_assignment(cost[:140, :140])].sum()
    assert np.all(columns[~mask] == -1)
    assert cost[:140][np.arange(140), columns[mask]].sum() == pytest.approx(
        best, rel=1e-6
    )


def test_large_assignments_of_degenerate_costs():
    flat = jnp.zeros((130, 130))
    assert sorted(np.asarray(_transport.solve_assignment(flat))) == list(range(130))
    assert np.all(
        np.asarray(_transport.solve_assignment(flat.at[3, 4].set(jnp.nan))) == -1
    )
    assert np.all(
        np.asarray(_transport.solve_assignment(flat.at[3].set(jnp.inf))) == -1
    )
    with pytest.raises(ValueError, match="as said"):
        _transport.solve_assignment(flat.at[3].set(jnp.inf), failure="as said")


def test_one_dimension_is_sorted_without_the_host(key):
    x0, x1 = batch(1, 50, 1)
    source = np.asarray(fk.assignment(x0, x1, key=key).source)
    np.testing.assert_array_equal(source, linear_sum_assignment(costs(x0, x1))[1])
    program = str(
        jax.make_jaxpr(lambda x0, x1: fk.assignment(x0, x1, key=key).source)(x0, x1)
    )
    assert "callback" not in program


# Entropic and unbalanced plans.


def test_entropic_plan_of_two_points():
    """Cost [[0, 1], [1, 0]], of mean 1/2: the plan has 1 / 2 / (1 + exp(-1 / epsilon))
    on its diagonal."""
    x = np.array([[0.0], [1.0]], np.float32)
    plan = fk.EntropicCoupling(epsilon=0.6).plan(x, x)  # 0.3 of the unit of the cost
    diagonal = 0.5 / (1 + np.exp(-1 / 0.3))
    np.testing.assert_allclose(np.exp(np.diag(plan.log_probs)), diagonal, rtol=1e-5)
    entropy = -2 * (
        diagonal * np.log(2 * diagonal) + (0.5 - diagonal) * np.log(1 - 2 * diagonal)
    )
    assert plan.num_partners == pytest.approx(np.exp(entropy), rel=1e-5)
    assert plan.mass == pytest.approx(1, rel=1e-5)


def test_plan_of_a_schroedinger_bridge():
    """Of noise 0.8 between two batches, whose kernel is that of a Brownian motion: plain
    scalings in float64."""
    x0, x1 = batch(17)
    kernel = np.exp(-costs(x0, x1) / (2 * 0.8**2))
    columns = np.ones(32)
    for _ in range(2000):
        rows = 1 / (kernel @ columns) / 32
        columns = 1 / (rows @ kernel) / 32
    expected = rows[:, None] * kernel * columns

    plan = fk.EntropicCoupling(2 * 0.8**2, relative=False).plan(x0, x1)
    np.testing.assert_allclose(np.exp(plan.log_probs), expected, atol=3e-3 / 32)


def test_absolute_prices_are_in_the_unit_of_the_cost():
    x0, x1 = batch(18)
    spread = costs(x0 - x0.mean(0), x1 - x1.mean(0)).mean()
    relative = fk.UnbalancedCoupling(0.5, 2.0, 0.1).plan(x0, x1)
    absolute = fk.UnbalancedCoupling(
        0.5 * spread, 2.0 * spread, 0.1 * spread, relative=False
    ).plan(x0, x1)
    np.testing.assert_allclose(
        np.exp(absolute.log_probs), np.exp(relative.log_probs), atol=1e-6
    )


def test_entropic_plan_lies_between_assignment_and_independence():
    x1 = np.stack(np.divmod(np.arange(32.0, dtype=np.float32), 8), 1)
    order = np.random.default_rng(2).permutation(32)
    x0 = x1[order]
    sharp = fk.EntropicCoupling(1e-3).plan(x0, x1)
    np.testing.assert_array_equal(
        order[np.argmax(sharp.log_probs, axis=1)], np.arange(32)
    )
    assert sharp.num_partners == pytest.approx(1, abs=1e-3)
    flat = fk.EntropicCoupling(1e4).plan(x0, x1)
    np.testing.assert_allclose(flat.log_probs, -2 * np.log(32), atol=1e-2)
    assert flat.num_partners == pytest.approx(32, rel=1e-4)


def test_entropic_plan_keeps_both_marginals_wherever_the_batches_are():
    x0, x1 = batch(3)
    plan = fk.EntropicCoupling().plan(x0, x1)
    probs = np.exp(np.asarray(plan.log_probs))
    np.testing.assert_allclose(probs.sum(1), 1 / 32, rtol=2e-3)
    np.testing.assert_allclose(probs.sum(0), 1 / 32, rtol=2e-3)
    moved = fk.EntropicCoupling().plan(x0, x1 + np.float32(100))
    np.testing.assert_allclose(np.exp(moved.log_probs), probs, atol=1e-4)
    balanced = fk.UnbalancedCoupling(INF, INF).plan(x0, x1)
    np.testing.assert_allclose(np.exp(balanced.log_probs), probs, atol=1e-5)


@pytest.mark.parametrize(("rho0", "rho1"), [(INF, 2.0), (0.5, 3.0), (1.0, INF)])
def test_unbalanced_plan_minimises_its_objective(rho0, rho1):
    """Against a general minimiser over the logarithms of a plan of 4 x 4."""
    x0, x1 = batch(4, 4)
    coupling = fk.UnbalancedCoupling(rho0, rho1, 0.2, tolerance=1e-6)
    plan = coupling.plan(x0, x1)
    cost = costs(x0, x1) / costs(x0 - x0.mean(0), x1 - x1.mean(0)).mean()
    kl = lambda p, q: np.sum(p * np.log(p / q) - p + q)

    def objective(log_plan):
        p = np.exp(log_plan.reshape(4, 4))
        if math.isinf(rho0):
            p = p / p.sum(0) / 4
        if math.isinf(rho1):
            p = p / p.sum(1, keepdims=True) / 4
        value = np.sum(p * cost) + 0.2 * kl(p, 1 / 16)
        for rho, axis in ((rho0, 0), (rho1, 1)):
            value += 0 if math.isinf(rho) else rho * kl(p.sum(axis), 1 / 4)
        return value, p

    start = np.full(16, np.log(1 / 16))
    best = minimize(
        lambda z: objective(z)[0], start, method="BFGS", options={"gtol": 1e-7}
    )
    expected = objective(best.x)[1]
    np.testing.assert_allclose(plan.mass, expected.sum(), rtol=1e-3)
    np.testing.assert_allclose(
        np.exp(plan.log_probs), expected / expected.sum(), atol=3e-4
    )


def test_unbalanced_plan_is_found_in_few_iterations():
    """Without the shift between the potentials the constant part would need some `rho /
    epsilon` log(1 / tolerance)."""
    x0, x1 = batch(5, 64)
    balanced = fk.EntropicCoupling().plan(x0, x1)
    unbalanced = fk.UnbalancedCoupling(rho1=50.0).plan(x0, x1)
    assert unbalanced.error < 1e-3
    assert unbalanced.iterations < 2 * balanced.iterations


def test_outliers_lose_mass():
    x0, x1 = batch(6)
    x1[0] = 30.0
    probs = jnp.exp(fk.UnbalancedCoupling(rho1=0.5).plan(x0, x1).log_probs).sum(1)
    assert 32 * probs[0] < 1e-3
    assert np.all(32 * probs[1:] > 0.1)


@eqx.filter_jit
def draws(coupling, x0, x1, keys):
    return jax.vmap(lambda key: coupling(x0, x1, key=key))(keys)


@pytest.mark.parametrize(
    "coupling", [fk.EntropicCoupling(0.2), fk.UnbalancedCoupling(1.0, 0.5, 0.1)]
)
def test_pairs_are_drawn_from_the_plan(coupling, key):
    """Frequencies of all pairs over 2000 draws, in standard errors, of which 5 are allowed."""
    x0, x1 = batch(7, 6)
    probs = np.exp(np.asarray(coupling.plan(x0, x1).log_probs))
    pairing = draws(coupling, x0, x1, jr.split(key, 2000))
    data = (
        np.broadcast_to(np.arange(6), (2000, 6))
        if pairing.data is None
        else np.asarray(pairing.data)
    )
    counts = np.zeros((6, 6))
    np.add.at(counts, (data.ravel(), np.asarray(pairing.source).ravel()), 1)
    expected = 12_000 * (
        probs if pairing.data is not None else probs / probs.sum(1, keepdims=True) / 6
    )
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected) + 1)
    taken = np.stack([np.sum(data == i, axis=1) for i in range(6)], 1)
    mean = 6 * probs.sum(1) if pairing.data is not None else np.ones(6)
    assert np.all((taken >= np.floor(mean - 1e-4)) & (taken <= np.ceil(mean + 1e-4)))


def test_weights_restore_the_data(key):
    """With power 1 every example has the same weight on average, however often it is taken."""
    x0, x1 = batch(8, 8)
    coupling = fk.UnbalancedCoupling(rho1=0.5, weight_power=1.0)
    pairing = draws(coupling, x0, x1, jr.split(key, 4000))
    rows, weights = np.asarray(pairing.data), np.asarray(pairing.weights)
    assert weights.max() > 1.5 * weights.min()
    sums = np.stack([np.sum(np.where(rows == i, weights, 0), 1) for i in range(8)], 1)
    error = sums.std(0) / np.sqrt(4000)
    assert np.all(np.abs(sums.mean(0) - 1) < 4 * error + 1e-3)
    limited = fk.UnbalancedCoupling(rho1=0.5, weight_power=10.0, max_weight=3.0)
    assert np.max(limited(x0, x1, key=key).weights) <= 3


# Conditions.


def test_labels_are_matched_and_each_class_is_optimal(key):
    x0, x1 = batch(9, 40)
    labels = np.arange(40) % 3
    cond = {"label": jnp.asarray(labels), "flag": jnp.asarray(labels == 1)}
    source = np.asarray(fk.ConditionalAssignment()(x0, x1, cond, key=key).source)
    np.testing.assert_array_equal(labels[source], labels)
    for label in range(3):
        rows = np.flatnonzero(labels == label)
        cost = costs(x0[rows], x1[rows])
        np.testing.assert_array_equal(
            source[rows], rows[linear_sum_assignment(cost)[1]]
        )


def test_weight_leaves_the_given_part_of_candidates(key):
    """The definition of the weight, by counting, and the assignment with it by scipy."""
    x0, x1 = batch(10)
    cond = np.stack([x1[:, 0], x1[:, 1] ** 2], 1)
    cost, difference = costs(x0, x1), costs(cond, cond)

    def part(weight):
        return np.mean(
            cost + weight * difference <= np.diag(cost)[:, None] * (1 + 1e-6) + 1e-6
        )

    for candidates in (0.05, 0.2):
        coupling = fk.ConditionalAssignment(candidates)
        weight = float(
            coupling._weight(
                x0, x1, jnp.asarray(difference, jnp.float32), jnp.ones((32, 32), bool)
            )
        )
        num = round(candidates * 32**2)
        assert round(part(weight * (1 - 1e-5)) * 32**2) == num
        assert round(part(weight * (1 + 1e-5)) * 32**2) == num - 1
        expected = linear_sum_assignment(cost + weight * difference)[1]
        np.testing.assert_array_equal(
            coupling(x0, x1, (cond[:, :1], cond[:, 1]), key=key).source, expected
        )


def test_weight_has_plain_and_no_transport_as_limits(key):
    x0, x1 = batch(11)
    cond = np.arange(32, dtype=np.float32)
    source = lambda coupling, cond: np.asarray(coupling(x0, x1, cond, key=key).source)
    plain = linear_sum_assignment(costs(x0, x1))[1]
    np.testing.assert_array_equal(
        source(fk.ConditionalAssignment(weight=0.0), cond), plain
    )
    np.testing.assert_array_equal(source(fk.ConditionalAssignment(0.9), cond), plain)
    np.testing.assert_array_equal(
        source(fk.ConditionalAssignment(weight=1e3), cond), np.arange(32)
    )
    np.testing.assert_array_equal(
        source(fk.ConditionalAssignment(), np.zeros((32, 1), np.float32)), plain
    )


def test_noise_is_independent_of_the_condition(key):
    """Data at +-2 by their label: plain assignments give each label its half of the
    noise, this one all of it."""
    x0 = np.asarray(jr.normal(key, (600, 2)))
    labels = np.arange(600) % 2
    x1 = np.stack([4.0 * labels - 2, 0 * labels], 1).astype(np.float32)
    mean = lambda pairing: x0[np.asarray(pairing.source)][labels == 1, 0].mean()
    assert mean(fk.assignment(x0, x1, key=key)) > 0.7
    assert abs(mean(fk.ConditionalAssignment()(x0, x1, labels, key=key))) < 4 / np.sqrt(
        300
    )


# In the loss, and ahead of it.


@every_coupling
def test_couplings_serve_the_loss(coupling, key):
    """At the velocity zero the loss is the cost of the pairs, and less than that of
    independent ones."""
    x0, x1 = batch(12)
    cond = jnp.arange(32) % 2
    network = lambda t, x, cond: jnp.zeros_like(x)
    loss = lambda coupling: fk.flow_matching_loss(
        fk.Flow(network), x1, cond, key=key, coupling=coupling
    )
    assert 0 < loss(coupling) < loss(fk.independent)


def test_diffuse_plans_are_refused(key):
    x0, x1 = batch(13)
    for coupling in (fk.EntropicCoupling(100.0), fk.UnbalancedCoupling(epsilon=100.0)):
        with pytest.raises(ValueError, match="diffuse.*lower `epsilon`"):
            coupling(x0, x1, key=key)
    with pytest.raises(Exception, match="diffuse"):
        eqx.filter_jit(fk.EntropicCoupling(100.0))(
            x0, x1, key=key
        ).source.block_until_ready()


@pytest.mark.parametrize("name", ["entropic", "unbalanced"])
def test_a_batch_with_nan_has_no_plan(name, key):
    """Rows drawn from such a plan would all be the first, without the NaN."""
    x0, x1 = batch(13)
    x1[5, 0] = np.nan
    with pytest.raises(ValueError, match="`x0` or `x1` holds NaN"):
        COUPLINGS[name](x0, x1, key=key)
    with pytest.raises(Exception, match="`x0` or `x1` holds NaN"):
        jax.block_until_ready(eqx.filter_jit(COUPLINGS[name])(x0, x1, key=key))


@every_coupling
def test_a_batch_of_one_has_no_plan(coupling, key):
    x = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="too small a batch"):
        coupling(x, x, jnp.zeros(1, int), key=key)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: fk.EntropicCoupling(0.0), "`epsilon`"),
        (lambda: fk.EntropicCoupling(-1.0, relative=False), "`epsilon`"),
        (lambda: fk.EntropicCoupling(max_iterations=0), "`max_iterations`"),
        (lambda: fk.EntropicCoupling(tolerance=0.0), "`tolerance`"),
        (lambda: fk.UnbalancedCoupling(rho1=0.0), "`rho0` and `rho1`"),
        (lambda: fk.UnbalancedCoupling(weight_power=-1.0), "`weight_power`"),
        (lambda: fk.UnbalancedCoupling(max_weight=0.5), "`max_weight`|at least 1"),
        (lambda: fk.ConditionalAssignment(0.0), "`candidates`"),
        (lambda: fk.ConditionalAssignment(weight=-1.0), "`weight`"),
        (lambda: fk.planned_pairs([], 0, key=jr.key(0)), "`batch_size`"),
        (
            lambda: fk.planned_pairs([], 8, num_workers=0, key=jr.key(0)),
            "`num_workers`",
        ),
        (
            lambda: next(fk.planned_pairs([np.zeros((9, 2))], 4, key=jr.key(0))),
            "divide the 9 examples",
        ),
        (lambda: next(fk.planned_pairs([{"x": 1}], 4, key=jr.key(0))), "`batches`"),
        (
            lambda: next(
                fk.planned_pairs([(np.zeros((8, 2)), np.zeros(7))], 4, key=jr.key(0))
            ),
            "`cond`",
        ),
        (lambda: fk.ConditionalAssignment()(*batch(0), key=jr.key(0)), "`cond`"),
        (
            lambda: fk.ConditionalAssignment()(*batch(0), np.zeros(31), key=jr.key(0)),
            "`cond`",
        ),
        (
            lambda: fk.ConditionalAssignment(0.01)(
                *batch(0), np.zeros(32), key=jr.key(0)
            ),
            "`candidates`",
        ),
        (
            lambda: fk.ConditionalAssignment()(
                *batch(0), np.full(32, np.nan), key=jr.key(0)
            ),
            "NaN",
        ),
    ],
)
def test_wrong_use(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_planned_pairs_are_optimal_complete_and_reproducible(key):
    _, x1 = batch(14, 96)
    labels = np.arange(96) % 2
    large = [(x1[i : i + 32], labels[i : i + 32]) for i in (0, 32, 64)]
    served = list(fk.planned_pairs(iter(large), 8, key=key, num_workers=3))
    assert [pairs.x0.shape for pairs in served] == [(8, 2)] * 12
    np.testing.assert_array_equal(np.concatenate([pairs.x1 for pairs in served]), x1)
    np.testing.assert_array_equal(
        np.concatenate([pairs.cond for pairs in served]), labels
    )
    for k in range(3):
        x0 = np.concatenate([pairs.x0 for pairs in served[4 * k : 4 * k + 4]])
        cost = costs(x0, x1[32 * k : 32 * k + 32])
        assert np.trace(cost) == pytest.approx(
            cost[linear_sum_assignment(cost)].sum(), rel=1e-5
        )
    again = list(fk.planned_pairs(iter(large), 8, key=key, num_workers=1))
    for one, other in zip(served, again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert (
        len(np.unique(np.concatenate([pairs.x0 for pairs in served])[:, 0])) == 96
    )  # another draw for each plan


def test_planned_pairs_take_any_coupling_without_weights(key):
    x1 = batch(15, 32)[1]
    source = fk.Normal(jnp.full(2, 3.0), jnp.full(2, 0.1))
    pairs = next(
        fk.planned_pairs(
            [x1], 32, source=source, coupling=fk.UnbalancedCoupling(), key=key
        )
    )
    assert np.all(np.abs(pairs.x0 - 3) < 0.5)
    assert {tuple(row) for row in pairs.x1.tolist()} <= {
        tuple(row) for row in x1.tolist()
    }
    weighted = fk.UnbalancedCoupling(weight_power=1.0)
    with pytest.raises(ValueError, match="weights"):
        next(fk.planned_pairs([x1], 32, coupling=weighted, key=key))


def test_planned_pairs_train(key):
    """Several steps per call, from plans over more than a batch; an iterator that is
    left early stops its threads."""
    x1 = batch(16, 64)[1]
    pairs = fk.planned_pairs(itertools.repeat(x1), 16, key=key)

    def loss(flow, batch, key):
        return fk.flow_matching_loss(
            flow, batch.x1, key=key, coupling=fk.Paired(batch.x0)
        )

    flow = fk.Flow(fk.nn.MLP(2, hidden_sizes=(8,), key=key))
    options = {
        "optimizer": optax.adam(1e-2),
        "steps_per_call": 5,
        "progress": False,
        "key": key,
    }
    result = fk.training.fit(loss, flow, pairs, num_steps=10, **options)
    assert np.all(np.isfinite(result.history["loss"].values))
    pairs.close()


def test_planned_pairs_own_their_batches(key):
    """Loaders that refill one array between batches."""
    buffer = np.empty((33, 3), np.float32)

    def batches():
        for number in range(6):
            buffer[...] = number
            yield buffer[:32]

    pairs = fk.planned_pairs(
        batches(), 32, coupling=fk.independent, num_workers=2, key=key
    )
    assert [pair.x1.mean() for pair in pairs] == list(range(6))


def test_planned_pairs_end_quietly_with_the_program():
    """A generator that is still alive when the interpreter ends."""
    program = """
import flowkit as fk, jax.random as jr, numpy as np
data = np.zeros((64, 2), np.float32)
def batches():
    while True: yield data
pairs = fk.planned_pairs(batches(), 32, coupling=fk.independent, key=jr.key(0))
next(pairs)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")


# Couplings of one's own, and the limits of number types.


def returns(pairing):
    return lambda x0, x1, cond, *, key: pairing


@pytest.mark.parametrize(
    ("pairing", "match"),
    [
        (fk.Pairing(source=np.full(32, 32)), "`source` row outside 0 ... 31"),
        (fk.Pairing(data=np.full(32, -1)), "`data` row outside 0 ... 31"),
        (fk.Pairing(source=np.arange(5)), "`source` of shape"),
        (fk.Pairing(weights=np.ones((32, 1))), "`weights` of shape"),
        ((np.arange(32), None), "must return a `fk.Pairing`"),
    ],
)
def test_what_a_coupling_returns_is_checked(pairing, match, key):
    _, x1 = batch(0)
    flow = fk.Flow(fk.nn.MLP(2, hidden_sizes=(4,), key=key))
    with pytest.raises(ValueError, match=match):
        fk.flow_matching_loss(flow, x1, key=key, coupling=returns(pairing))


def test_traced_rows_out_of_range_are_an_error(key):
    _, x1 = batch(0)
    flow = fk.Flow(lambda t, x, cond: x)

    def beyond(x0, x1, cond, *, key):
        return fk.Pairing(source=jr.randint(key, (32,), 32, 40))

    with pytest.raises(Exception, match="`source` row outside 0 ... 31"):
        fk.flow_matching_loss(flow, x1, key=key, coupling=beyond)


def test_a_class_is_not_a_coupling(key):
    _, x1 = batch(0)
    with pytest.raises(ValueError, match="is the class ConditionalAssignment"):
        fk.flow_matching_loss(
            fk.Flow(lambda t, x, cond: x),
            x1,
            x1,
            key=key,
            coupling=fk.ConditionalAssignment,
        )


def test_the_signature_of_a_coupling(key):
    _, x1 = batch(0)
    flow = fk.Flow(lambda t, x, cond: x)
    without_key = lambda x0, x1, cond: fk.Pairing()
    with pytest.raises(
        ValueError, match=r"`coupling` must take .*cond, \*, key\)`, but"
    ):
        fk.flow_matching_loss(flow, x1, key=key, coupling=without_key)


def test_half_precision_is_assigned_exactly(key):
    """Squares of these entries sum to more than the largest float16, 65504."""
    rng = np.random.default_rng(0)
    x0, x1 = (10 * rng.normal(size=(2, 16, 1024))).astype(np.float16)
    columns = fk.assignment(x0, x1, key=key).source
    _, right = linear_sum_assignment(costs(x0, x1))
    assert np.array_equal(columns, right)


@pytest.mark.parametrize(
    "make",
    [fk.EntropicCoupling, lambda e: fk.UnbalancedCoupling(epsilon=e)]
    + [fk.EntropicPointAssignment],
)
def test_epsilon_below_the_resolution_of_float32_is_refused(make):
    make(1e-6)
    with pytest.raises(ValueError, match="less than float32 can resolve"):
        make(1e-8)


@pytest.mark.parametrize(
    "make",
    [
        lambda number: fk.EntropicCoupling(number, tolerance=number),
        lambda number: fk.UnbalancedCoupling(rho1=number, epsilon=number),
    ],
)
def test_another_number_compiles_nothing(make, key):
    x0, x1 = batch(0)
    make(0.1)(x0, x1, key=key)
    with compilations() as events:
        make(0.2)(x0, x1, key=key)
    assert events == []


@pytest.mark.parametrize("epsilon", [1e-2, 1e-4, 1e-6])
def test_the_error_of_a_plan_is_that_of_its_marginals(epsilon):
    plan = fk.EntropicCoupling(epsilon, max_iterations=50).plan(*batch(0))
    rows = np.exp(np.asarray(plan.log_probs, float)).sum(axis=1)
    assert float(plan.error) == pytest.approx(np.abs(32 * rows - 1).max(), rel=1e-2)


def test_small_epsilon_converges_within_the_iterations():
    plan = fk.EntropicCoupling(1e-4).plan(*batch(0, 128))
    assert plan.error < 0.03  # 0.2 if the regularization falls in a few iterations


@pytest.mark.parametrize("make", [fk.EntropicCoupling, fk.UnbalancedCoupling])
def test_an_iteration_that_ends_too_early_is_an_error(make, key):
    coupling = make(epsilon=1e-3, max_iterations=20)
    assert coupling.plan(*batch(0)).error > 0.2
    with pytest.raises(ValueError, match="`max_iterations`=20 are too few"):
        coupling(*batch(0), key=key)
    make(epsilon=1e-3, max_iterations=20, tolerance=0.6)(*batch(0), key=key)


@every_coupling
def test_couplings_promote_no_ranks(coupling, key):
    x0, x1 = batch(0)
    with jax.numpy_rank_promotion("raise"):
        coupling(x0, x1, x1, key=key)
