"""Couplings within clouds against scipy and brute force, and what they leave unchanged."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import flowkit as fk
from flowkit import _transport

from .oracles import compilations


ENTROPIC = fk.EntropicPointAssignment()
ASSIGNMENTS = {"exact": fk.point_assignment, "entropic": ENTROPIC}
every_assignment = pytest.mark.parametrize(
    "coupling", ASSIGNMENTS.values(), ids=ASSIGNMENTS
)


@eqx.filter_jit
def coupled(coupling, x0, x1, mask=None, key=None):
    return coupling(x0, x1, None, mask=mask, key=jr.key(0) if key is None else key).x0


def clouds(seed, *shape):
    rng = np.random.default_rng(seed)
    x0 = rng.normal(size=shape).astype(np.float32)
    x1 = rng.normal(size=shape) ** 2 + np.arange(shape[-1])
    return x0, x1.astype(np.float32)


def least_cost(x0, x1):
    cost = cdist(x0, x1, "sqeuclidean")
    return cost[linear_sum_assignment(cost)].sum()


def total_cost(x0, x1):
    return float(np.sum((np.asarray(x0, float) - x1) ** 2))


def as_set(points):
    return sorted(map(tuple, np.asarray(points).tolist()))


@pytest.mark.parametrize("size", [1, 2, 3, 12])
@every_assignment
def test_cost_is_least_and_the_noise_stays_the_same_set(coupling, size):
    x0, x1 = clouds(0, 3, 40, size)
    moved = coupled(coupling, x0, x1)
    slack = 1e-5 if coupling is fk.point_assignment else 0.03
    for before, after, data in zip(x0, moved, x1, strict=True):
        assert as_set(before) == as_set(after)
        assert (
            least_cost(before, data) * (1 - 1e-5)
            <= total_cost(after, data)
            <= least_cost(before, data) * (1 + slack)
        )
    assert total_cost(moved, x1) < total_cost(x0, x1)


@pytest.mark.parametrize(
    ("num", "num_points", "size"), [(40, 40, 2), (40, 40, 3), (3, 300, 2), (3, 300, 3)]
)
def test_entropic_is_near_the_exact_cost_on_average(num, num_points, size):
    """As documented: below 1% for curves and for skewed clouds, some per cent for
    clouds that are like the noise."""
    x0, skewed = clouds(1, num, num_points, size)
    rng = np.random.default_rng(20)
    angles = rng.uniform(0, 2 * np.pi, (num, num_points))
    curves = np.stack([np.cos(angles), np.sin(2 * angles), np.sin(angles)], -1)[
        ..., :size
    ].astype(np.float32)
    normal = rng.normal(size=x0.shape).astype(np.float32)
    for x1, slack in ((skewed, 0.01), (curves, 0.01), (normal, 0.05)):
        moved = coupled(ENTROPIC, x0, x1)
        costs = [
            total_cost(after, data) / least_cost(before, data)
            for before, after, data in zip(x0, moved, x1, strict=True)
        ]
        assert np.mean(costs) < 1 + slack


def test_points_on_a_line_are_sorted():
    x0, x1 = clouds(2, 4, 30, 1)
    for coupling in ASSIGNMENTS.values():
        moved = np.asarray(coupled(coupling, x0, x1))
        for after, data in zip(moved[..., 0], x1[..., 0], strict=True):
            np.testing.assert_array_equal(np.argsort(after), np.argsort(data))


@pytest.mark.parametrize(
    ("coupling", "other"),
    [
        (fk.point_assignment, fk.point_assignment),
        (ENTROPIC, fk.EntropicPointAssignment(0.02)),
        (fk.AlignedAssignment(), fk.AlignedAssignment()),
    ],
    ids=["exact", "entropic", "aligned"],
)
def test_second_plans_compile_nothing(coupling, other, key):
    """Also with another number; eager ones are those of a compiled program."""
    x0, x1 = clouds(21, 3, 130, 2)
    eager = coupling(x0, x1, key=key).x0
    np.testing.assert_allclose(eager, coupled(coupling, x0, x1), atol=1e-5)

    batches = np.stack([x1, x1 + 1])
    plans = lambda num, coupling: list(
        fk.planned_pairs(batches[:num], 3, coupling=coupling, key=key)
    )
    plans(1, coupling)
    with compilations() as events:
        other(x0 + 1, x1, key=key)
        plans(2, other)
    assert events == []


def test_known_nan_is_a_value_error(key):
    x0, x1 = clouds(22, 3, 8, 2)
    x1[1, 2] = np.nan
    with pytest.raises(ValueError, match="`x0` or `x1` holds NaN"):
        fk.point_assignment(x0, x1, key=key)


@every_assignment
def test_masked_rows_keep_their_noise_and_have_no_influence(coupling):
    x0, x1 = clouds(3, 3, 24, 2)
    mask = np.arange(24) < np.array([[24], [10], [1]])
    mask[1] = mask[1, ::-1]
    moved = np.asarray(coupled(coupling, x0, x1, mask))
    np.testing.assert_array_equal(moved[~mask], x0[~mask])
    for i in range(3):
        slack = 1e-5 if coupling is fk.point_assignment else 0.03
        best = least_cost(x0[i][mask[i]], x1[i][mask[i]])
        assert as_set(moved[i][mask[i]]) == as_set(x0[i][mask[i]])
        assert (
            total_cost(moved[i][mask[i]], x1[i][mask[i]]) <= best * (1 + slack) + 1e-4
        )
    spoilt = np.where(mask[..., None], x1, np.nan).astype(np.float32)
    np.testing.assert_array_equal(coupled(coupling, x0, spoilt, mask), moved)
    assert np.all(np.isfinite(coupled(coupling, x0, spoilt, np.zeros_like(mask))))


@every_assignment
def test_far_from_the_origin(coupling):
    x0, x1 = clouds(4, 2, 40, 2)
    moved = coupled(coupling, x0, x1 + np.float32(1e3))
    for before, after, data in zip(x0, moved, x1, strict=True):
        assert total_cost(after, data) < 1.03 * least_cost(before, data)


@every_assignment
def test_masked_clouds_far_from_the_origin(coupling):
    """Masked rows lie as far from the valid ones as the origin does."""
    x0, x1 = clouds(16, 3, 40, 2)
    mask = np.arange(40) < np.array([[30], [40], [12]])
    far = x1 + np.float32(1e4)
    near = far.astype(float) - 1e4  # the digits that are left
    moved = np.asarray(coupled(coupling, x0, far, mask))
    slack = 1e-4 if coupling is fk.point_assignment else 0.03
    for before, after, data, valid in zip(x0, moved, near, mask, strict=True):
        least = least_cost(before[valid], data[valid])
        assert total_cost(after[valid], data[valid]) < (1 + slack) * least
    np.testing.assert_array_equal(moved[~mask], x0[~mask])


def test_alignment_turns_about_the_origin():
    """A cloud that was turned about the origin, away from it and with masked rows, is
    turned back; masked rows stay where they are."""
    x1 = clouds(17, 2, 20, 2)[1] + np.float32(5)
    x0 = x1 @ rotation_2d(0.7)
    mask = np.arange(20) < np.array([[20], [13]])
    moved = np.asarray(coupled(fk.AlignedAssignment(num_rounds=4), x0, x1, mask))
    np.testing.assert_allclose(moved[mask], x1[mask], atol=1e-4)
    np.testing.assert_array_equal(moved[~mask], x0[~mask])


def test_equal_points_and_equal_clouds():
    x0 = np.zeros((2, 8, 2), np.float32)
    np.testing.assert_array_equal(coupled(ENTROPIC, x0, x0), x0)
    x1 = clouds(5, 2, 30, 3)[1]
    shuffled = x1[:, np.random.default_rng(0).permutation(30)]
    np.testing.assert_array_equal(coupled(ENTROPIC, shuffled, x1), x1)


def test_rounding_is_greedy():
    """Against a loop over all pairs in the order of their scores."""
    rng = np.random.default_rng(6)
    scores = rng.normal(size=(20, 20)).astype(np.float32)
    mask = rng.random(20) < 0.7
    columns = np.asarray(jax.jit(_transport.round_to_permutation)(scores, mask))
    expected = np.where(mask, -1, np.arange(20))
    for i, j in zip(
        *np.unravel_index(np.argsort(-scores, axis=None), scores.shape), strict=True
    ):
        if mask[i] and mask[j] and expected[i] < 0 and j not in expected[mask]:
            expected[i] = j
    np.testing.assert_array_equal(columns, expected)
    hopeless = np.where(rng.random((20, 20)) < 0.5, np.nan, -np.inf).astype(np.float32)
    columns = np.asarray(jax.jit(_transport.round_to_permutation)(hopeless, mask))
    np.testing.assert_array_equal(np.sort(columns), np.arange(20))


def test_sinkhorn_of_two_points():
    """Cost [[0, 1], [1, 0]]: the plan has 1 / 2 / (1 + exp(-1 / epsilon)) on its diagonal."""
    cost, epsilon, full = (
        jnp.asarray([[0.0, 1.0], [1.0, 0.0]]),
        jnp.asarray(0.3),
        jnp.ones(2, bool),
    )
    solve = lambda cost: _transport.sinkhorn(
        _transport.soft_minima(cost, full, full),
        (2, 2),
        epsilon,
        epsilon,
        tolerance=1e-4,
        max_iterations=500,
    )
    f, g, error, iterations = jax.jit(solve)(cost)
    plan = jnp.exp((f[:, None] + g - cost) / epsilon) / 4
    np.testing.assert_allclose(np.diag(plan), 0.5 / (1 + np.exp(-1 / 0.3)), rtol=1e-5)
    assert error < 1e-4
    assert iterations < 10


def test_sinkhorn_keeps_its_marginals_with_masks_and_under_vmap():
    rng = np.random.default_rng(7)
    cost = rng.random((3, 12, 9)).astype(np.float32)
    rows, columns = (
        np.arange(12) < np.array([[12], [7], [4]]),
        np.arange(9) < np.array([[9], [2], [5]]),
    )

    def plan(cost, rows, columns):
        epsilon = jnp.asarray(0.05)
        minima = _transport.soft_minima(cost, rows, columns)
        f, g, _, _ = _transport.sinkhorn(
            minima,
            (12, 9),
            epsilon,
            jnp.asarray(1.0),
            tolerance=1e-3,
            max_iterations=2000,
        )
        weights = jnp.where(rows, 1 / jnp.sum(rows), 0)[:, None] * jnp.where(
            columns, 1 / jnp.sum(columns), 0
        )
        return weights * jnp.exp((f[:, None] + g - cost) / epsilon)

    plans = np.asarray(jax.jit(jax.vmap(plan))(cost, rows, columns))
    for p, r, c in zip(plans, rows, columns, strict=True):
        np.testing.assert_allclose(p.sum(1), r / r.sum(), rtol=2e-3)
        np.testing.assert_allclose(p.sum(0), c / c.sum(), rtol=1e-4)


def rotation_2d(angle):
    return np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32
    )


def test_alignment_finds_a_small_rotation_and_lowers_the_cost():
    x1 = clouds(8, 4, 30, 2)[1]
    x0 = x1 @ rotation_2d(0.2)
    np.testing.assert_allclose(
        coupled(fk.AlignedAssignment(num_rounds=4), x0, x1), x1, atol=1e-4
    )
    x0, x1 = clouds(9, 4, 30, 3)
    once = coupled(fk.point_assignment, x0, x1)
    aligned = np.asarray(coupled(fk.AlignedAssignment(), x0, x1))
    assert total_cost(aligned, x1) < total_cost(once, x1)
    # Turned, not stretched nor mirrored: lengths stay, and so does the orientation of
    # any three points.
    for before, after in zip(x0, aligned, strict=True):
        np.testing.assert_allclose(
            np.sort(np.linalg.norm(after, axis=1)),
            np.sort(np.linalg.norm(before, axis=1)),
            1e-5,
        )
        order = (
            np.argsort(np.linalg.norm(before, axis=1)),
            np.argsort(np.linalg.norm(after, axis=1)),
        )
        volumes = (
            np.linalg.det(before[order[0]][:3]),
            np.linalg.det(after[order[1]][:3]),
        )
        assert volumes[0] == pytest.approx(volumes[1], rel=1e-3)


def test_alignment_keeps_the_source_only_for_data_of_every_orientation(key):
    """The second moments of the noise that training sees, in standard errors."""
    nkey, akey = jr.split(key)
    x0 = jr.normal(nkey, (2000, 6, 2))
    upright = np.zeros((2000, 6, 2), np.float32)
    upright[..., 0] = np.linspace(-1.5, 1.5, 6)
    angles = np.asarray(jr.uniform(akey, (2000,), maxval=2 * jnp.pi))
    turned = np.einsum(
        "bnd,bde->bne", upright, np.stack([rotation_2d(angle) for angle in angles])
    )

    def z_scores(x1):
        noise = np.asarray(
            coupled(fk.AlignedAssignment(ENTROPIC, num_rounds=1), x0, x1)
        )
        moments = np.stack(
            [
                noise[..., 0] ** 2 - 1,
                noise[..., 1] ** 2 - 1,
                noise[..., 0] * noise[..., 1],
            ],
            -1,
        ).mean(1)
        return np.abs(moments.mean(0)) / (moments.std(0) / np.sqrt(2000))

    assert np.all(z_scores(turned) < 4)
    assert np.max(z_scores(upright)) > 8


class PerPoint(eqx.Module):
    """A network with a condition for each cloud, which knows of points nothing but their places."""

    linear: eqx.nn.Linear

    def __call__(self, t, x, cond=None, mask=None):
        return jax.vmap(self.linear)(x) * (1 + t) + (0 if cond is None else cond)


def flow(size=2):
    return fk.Flow(PerPoint(eqx.nn.Linear(size, size, key=jr.key(1))))


def test_in_the_loss_with_masks_and_blocks(key):
    coupling = fk.ChainedCouplings((fk.assignment, fk.point_assignment, ENTROPIC))
    x0, x1 = clouds(10, 8, 12, 2)
    mask = np.arange(12) < np.arange(5, 13)[:, None]
    spoilt = np.where(mask[..., None], x1, np.nan).astype(np.float32)

    @eqx.filter_value_and_grad
    def loss(flow, x1, block=None):
        return fk.flow_matching_loss(
            flow,
            x1,
            np.arange(8, dtype=np.float32),
            key=key,
            coupling=coupling,
            mask=mask,
            block=block,
        )

    whole, gradient = loss(flow(), np.where(mask[..., None], x1, 0))
    for value, other in (loss(flow(), spoilt), loss(flow(), spoilt, 2)):
        assert value == pytest.approx(float(whole), rel=1e-5)
        np.testing.assert_allclose(
            other.network.linear.weight,
            gradient.network.linear.weight,
            rtol=1e-4,
            atol=1e-6,
        )


def test_in_the_loss_of_sets(key):
    x1 = clouds(11, 6, 16, 2)[1]
    mask = np.arange(16) < np.arange(11, 17)[:, None]
    model = fk.latent.SetFlow(
        fk.nn.PointNet(2, 8, hidden_sizes=(8,), key=jr.key(0)),
        fk.Flow(
            fk.nn.AdaLNMLP(2, 8, width_size=16, depth=1, cond_size=8, key=jr.key(1))
        ),
        fk.Normal(),
    )
    spoilt = np.where(mask[..., None], x1, np.nan).astype(np.float32)
    loss = eqx.filter_jit(
        lambda x: fk.latent.set_flow_loss(
            model, x, key=key, mask=mask, coupling=ENTROPIC, block=2
        )[0]
    )
    assert loss(spoilt) == pytest.approx(float(loss(x1)), rel=1e-6)


def test_assignment_lowers_the_floor_of_the_loss(key):
    """The floor is the mean variance of the velocity given x_t; the best linear field
    stands for the best field."""
    x1 = np.repeat(np.linspace(-2, 2, 32, dtype=np.float32)[None, :, None], 64, 0)
    zero = fk.Flow(lambda t, x, cond: 0 * x)
    apart, near = (
        fk.flow_matching_loss(zero, x1, key=key, coupling=coupling)
        for coupling in (fk.independent, ENTROPIC)
    )
    # Of the zero field the loss is E |x1 - x0|^2: the sum of the variances, or the
    # squared W2 and its finite-size bias.
    assert apart == pytest.approx(1 + np.mean(x1**2), rel=0.1)
    assert near < 0.2 * apart


def test_chained_couplings_compose(key):
    """Rows, noise and weights against doing the two by hand; labels follow."""
    x0, x1 = clouds(12, 6, 8, 2)
    order = jnp.asarray([3, 1, 0, 5, 4, 2])
    first = lambda x0, x1, cond, *, key: fk.Pairing(
        data=order, source=order[::-1], weights=jnp.arange(6.0)
    )
    second = lambda x0, x1, cond, *, key: fk.Pairing(data=order, weights=1 + cond)
    pairing = fk.ChainedCouplings((first, second, fk.point_assignment))(
        x0, x1, jnp.arange(6.0), key=key
    )
    rows = np.asarray(order)[np.asarray(order)]
    np.testing.assert_array_equal(pairing.data, rows)
    np.testing.assert_array_equal(
        pairing.weights, np.asarray(order) * (1.0 + np.asarray(order))
    )
    expected = coupled(fk.point_assignment, x0[np.asarray(order)[::-1]], x1[rows])
    np.testing.assert_array_equal(pairing.x0, expected)


def test_chained_couplings_leave_the_data_where_each_does(key):
    x0, x1 = clouds(18, 4, 8, 2)
    chained = fk.ChainedCouplings((fk.Paired(x0), fk.assignment, fk.point_assignment))
    pairing = chained(x0, x1, key=key)
    assert pairing.data is None
    assert pairing.weights is None
    aligned = fk.AlignedAssignment(
        fk.ChainedCouplings((fk.point_assignment, ENTROPIC)), num_rounds=1
    )
    assert total_cost(coupled(aligned, x0, x1), x1) < total_cost(x0, x1)


def moves_data(x0, x1, cond=None, *, key):
    return fk.Pairing(data=jnp.arange(x1.shape[0])[::-1])


def weighs(x0, x1, cond=None, *, key):
    return fk.Pairing(weights=jnp.ones(x1.shape[0]))


@pytest.mark.parametrize(
    "inner",
    [moves_data, weighs, fk.ChainedCouplings((fk.point_assignment, moves_data))],
)
def test_an_assignment_may_only_choose_the_order_of_the_noise(inner, key):
    x0, x1 = clouds(19, 4, 8, 2)
    with pytest.raises(ValueError, match="`assignment` may only choose the order"):
        fk.AlignedAssignment(inner)(x0, x1, key=key)
    with pytest.raises(ValueError, match="`assignment` may only choose the order"):
        fk.superset_pairs(x1, assignment=inner, progress=False, key=key)


def test_mixture_of_paired_and_fresh_noise(key):
    x0, x1 = clouds(13, 4, 5, 2)
    fresh = jr.normal(key, x0.shape)
    mixed = lambda beta: fk.Paired(x0, beta)(fresh, x1, key=key).x0
    np.testing.assert_allclose(mixed(0), x0, rtol=1e-6)
    np.testing.assert_allclose(mixed(1), fresh, rtol=1e-6)
    np.testing.assert_allclose(
        mixed(0.36), 0.8 * x0 + 0.6 * np.asarray(fresh), rtol=1e-5, atol=1e-6
    )
    compiled = eqx.filter_jit(lambda coupling: coupling(fresh, x1, key=key).x0)(
        fk.Paired(x0, 0.2)
    )
    np.testing.assert_allclose(compiled, mixed(0.2), rtol=1e-5, atol=1e-6)


def test_supersets(key):
    """Pairs are near, their subsets are standard normal, and the mixture lies between both ends."""
    rng = np.random.default_rng(14)
    angles = rng.uniform(0, 2 * np.pi, (40, 128))
    dense = np.stack([np.cos(angles), np.sin(2 * angles)], -1).astype(np.float32)
    pairs = fk.superset_pairs(dense, block=16, progress=False, key=key)
    assert pairs.shape == dense.shape
    for noise, points in zip(pairs[::8], dense[::8], strict=True):
        assert total_cost(noise, points) == pytest.approx(
            least_cost(noise, points), rel=1e-4
        )
    sets = fk.data.PairedSets(dense, pairs, labels=np.arange(40))
    batch = fk.data.subsample(sets, rng, num_points=32)
    assert batch.x0.shape == batch.points.shape == (40, 32, 2)
    np.testing.assert_array_equal(batch.labels, np.arange(40))
    costs = []
    for beta in (0.0, 0.2, 1.0):
        x0 = np.asarray(
            fk.Paired(batch.x0, beta)(
                jr.normal(jr.key(3), (40, 32, 2)), batch.points, key=key
            ).x0
        )
        num = x0[..., 0].size
        assert np.all(np.abs(x0.mean((0, 1))) < 4 / np.sqrt(num))
        assert np.all(np.abs((x0**2).mean((0, 1)) - 1) < 4 * np.sqrt(2 / num))
        assert np.abs((x0[..., 0] * x0[..., 1]).mean()) < 4 / np.sqrt(num)
        # Within one cloud the points are as independent as any: the variance of a
        # cloud's mean is 1 / 32.
        assert np.all(np.abs(32 * x0.mean(1).var(0) - 1) < 4 * np.sqrt(2 / 40))
        costs.append(total_cost(x0, batch.points))
    assert costs[0] < costs[1] < costs[2]
    assert costs[0] < 0.4 * costs[2]


def test_paths_of_pairs_are_straighter(key):
    """The exact flow of all pairs of one dense cloud, by a kernel over them, against
    that of independent pairs."""
    points = np.linspace(-2, 2, 400, dtype=np.float32)[None, :, None]
    pairs = fk.superset_pairs(points, progress=False, key=key)
    times = np.linspace(0, 1, 21, dtype=np.float32)

    def straightness(x0, start):
        x0, x1 = jnp.asarray(x0).ravel(), jnp.asarray(points).ravel()

        def step(x, t):
            weights = jax.nn.softmax(
                -0.5 * ((x[:, None] - (1 - t) * x0 - t * x1) / 0.1) ** 2, axis=1
            )
            x = x + weights @ (x1 - x0) / 20
            return x, x

        path = jnp.concatenate([start[None], jax.lax.scan(step, start, times[:-1])[1]])
        return jnp.mean(
            jax.vmap(lambda line: fk.metrics.straightness(times, line), in_axes=1)(
                path[..., None]
            )
        )

    start = jr.normal(jr.key(1), (64,))
    assert straightness(pairs, start) < 0.3 * straightness(
        pairs.ravel()[::-1].copy(), start
    )


def test_supersets_with_masks(key):
    dense = clouds(15, 3, 40, 2)[1]
    mask = np.arange(40) < np.array([[40], [20], [7]])
    spoilt = np.where(mask[..., None], dense, np.nan).astype(np.float32)
    pairs = fk.superset_pairs(
        spoilt, mask=mask, assignment=ENTROPIC, block=2, progress=False, key=key
    )
    assert np.all(np.isfinite(pairs))
    batch = fk.data.subsample(
        fk.data.PairedSets(dense, pairs, mask), np.random.default_rng(0), num_points=10
    )
    np.testing.assert_array_equal(batch.mask.sum(1), [10, 10, 7])
    # The rows of both belong together still.
    for noise, points, valid, all_noise, all_points in zip(
        batch.x0, batch.points, batch.mask, pairs, dense, strict=True
    ):
        rows = [
            int(np.flatnonzero((all_points == point).all(1))[0])
            for point in points[valid]
        ]
        np.testing.assert_array_equal(noise[valid], all_noise[rows])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, k: fk.point_assignment(x[0], x[0], key=k),
            "must be clouds of equal shape",
        ),
        (lambda x, k: ENTROPIC(x, x[:, :2], key=k), "must be clouds of equal shape"),
        (
            lambda x, k: fk.AlignedAssignment()(x[..., 0], x[..., 0], key=k),
            "must be clouds of equal shape",
        ),
        (
            lambda x, k: fk.point_assignment(x, x, mask=np.ones((4, 2), bool), key=k),
            "`mask` must have shape",
        ),
        (
            lambda x, k: fk.EntropicPointAssignment(epsilon=0),
            "`epsilon` must be positive",
        ),
        (
            lambda x, k: fk.EntropicPointAssignment(max_iterations=0),
            "`max_iterations` must be positive",
        ),
        (
            lambda x, k: fk.AlignedAssignment(num_rounds=0),
            "`num_rounds` must be at least 1",
        ),
        (lambda x, k: fk.ChainedCouplings(()), "`couplings` must hold at least one"),
        (
            lambda x, k: fk.ChainedCouplings((fk.assignment, fk.Paired(x))),
            "put it first",
        ),
        (
            lambda x, k: fk.ChainedCouplings(
                (fk.assignment, fk.ChainedCouplings((fk.Paired(x), fk.assignment)))
            ),
            "put it first",
        ),
        (lambda x, k: fk.Paired(x, beta=1.5), "`beta` must be in"),
        (lambda x, k: fk.Paired(x)(x, x[:2], key=k), "must have the shape"),
        (lambda x, k: fk.superset_pairs(x[:0], key=k), "must be a non-empty batch"),
        (
            lambda x, k: fk.superset_pairs(x, block=0, key=k),
            "`block` must be at least 1",
        ),
        (lambda x, k: fk.superset_pairs(x * np.nan, key=k), "NaN or infinity"),
    ],
)
def test_wrong_use(call, message, key):
    with pytest.raises(ValueError, match=message):
        call(np.ones((4, 3, 2), np.float32), key)


def test_a_coupling_may_not_change_the_shape_of_the_source(key):
    wrong = lambda x0, x1, cond, *, key: fk.Pairing(x0=x0[:, :1])
    with pytest.raises(ValueError, match="returned a source of shape"):
        fk.flow_matching_loss(
            flow(), np.ones((4, 3, 2), np.float32), key=key, coupling=wrong
        )
