"""Flow maps: exact maps against closed forms, losses by their fixed points, samplers by
exact maps."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowkit as fk
import flowkit.few_step as fs

from .helpers import KEY
from .oracles import compilations, mixture_1d, one_of


GAUSSIAN = fk.Normal(0.7, 0.5)

# Of the mixture, by quantiles of scipy: start, end, place, where the flow carries it.
JUMPS = [
    (0.0, 1.0, -3.0, -4.311711),
    (0.0, 1.0, 0.0, -1.547241),
    (0.0, 1.0, 0.6, 1.180153),
    (0.0, 1.0, 3.0, 3.567248),
    (0.0, 0.5, 0.0, -0.639602),
    (0.5, 1.0, 0.5, 1.435197),
    (0.25, 0.75, -1.0, -1.897501),
    (1.0, 0.0, -2.0, -0.385320),
    (1.0, 0.0, 1.5, 0.708538),
]


@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-6), ("float32", 1e-4)])
def test_exact_map_of_the_mixture(dtype, atol):
    with jax.enable_x64(dtype == "float64"):
        flow_map = fs.exact_flow_map(mixture_1d(jnp.dtype(dtype)))
        s, t, x, ends = np.array(JUMPS, dtype).T
        jump = jax.jit(jax.vmap(lambda s, t, x: fs.jump(flow_map, s, t, x)))
        found = jump(s, t, x[:, None])
        assert found.dtype == dtype
        np.testing.assert_allclose(found[:, 0], ends, atol=atol)


def test_exact_maps_are_where_the_odes_end():
    x = jnp.array([0.4])
    cases = [
        (law, path)
        for law in (GAUSSIAN, mixture_1d())
        for path in (fk.LinearPath(), fk.CosinePath())
    ]
    flows = [fk.exact_flow(*case) for case in cases]
    velocity = one_of(flows)
    for number, (flow, case) in enumerate(zip(flows, cases, strict=True)):
        flow_map = fs.exact_flow_map(*case)
        for s, t in ((0.1, 0.8), (0.9, 0.2)):
            end = fk.integrate(velocity, x, number, t0=s, t1=t).ys[0]
            np.testing.assert_allclose(fs.jump(flow_map, s, t, x), end, atol=3e-4)
        np.testing.assert_allclose(flow_map(0.3, 0.3, x), flow(0.3, x), rtol=1e-5)


def test_identity_and_derivative():
    """The total derivative is that of finite differences along the flow, and satisfies
    the identity."""
    with jax.enable_x64(True):
        law = mixture_1d(jnp.float64)
        flow, flow_map = fk.exact_flow(law), fs.exact_flow_map(law)
        x, s, h = jnp.array([0.3]), 0.4, 1e-5

        @jax.jit
        def parts(t):
            v = flow(s, x)
            u, du = fs.total_derivative(flow_map, s, t, x, v)
            shift = jnp.array([h, -h])
            moved = jax.vmap(lambda h: flow_map(s + h, t, x + h * v))(shift)
            return v, u, du, moved

        for t in (0.9, 0.1):
            v, u, du, moved = parts(t)
            np.testing.assert_allclose(du, (moved[0] - moved[1]) / (2 * h), atol=1e-7)
            np.testing.assert_allclose(u, v + (t - s) * du, atol=1e-9)


@pytest.mark.parametrize("law", [GAUSSIAN, mixture_1d()], ids=["gaussian", "mixture"])
def test_exact_maps_keep_their_digits_in_short_intervals(law):
    """In single precision: to first order u = v + (t - s) a / 2, and du/ds = a / 2,
    with the acceleration a."""
    exact, velocity = fs.exact_flow_map(law), fk.exact_flow(law)
    spans = jnp.array([3e-3, 1e-4, 1e-6, 0.0, -1e-4], jnp.float32)
    s, x = jnp.float32(0.3), jnp.array([0.2])
    v, acceleration = jax.jvp(
        lambda s, x: velocity(s, x), (s, x), (jnp.ones_like(s), velocity(s, x))
    )
    u, du = jax.jit(
        jax.vmap(lambda span: fs.total_derivative(exact, s, s + span, x, v))
    )(spans)
    np.testing.assert_allclose(u, v + 0.5 * spans[:, None] * acceleration, atol=2e-4)
    np.testing.assert_allclose(
        du, jnp.broadcast_to(0.5 * acceleration, du.shape), atol=0.05
    )


class Perturbed(eqx.Module):
    """An exact average velocity plus a combination of smooth functions, of weight zero or more."""

    exact: fs.FlowMap
    weights: jax.Array

    def __call__(self, times, x, cond=None):
        s, t = times
        features = jnp.stack(
            [jnp.ones_like(x), x, (t - s) * x, jnp.sin(2 * x + s), jnp.cos(3 * x) * t]
        )
        return self.exact(s, t, x, cond) + jnp.tensordot(self.weights, features, 1)


def scores_of_gradient(loss, law, options, *offsets, num=400):
    """Mean gradients over independent batches of 64, in standard errors; at the exact
    map, or at each of the offsets from it."""
    exact = fs.exact_flow_map(law)

    def value(weights, x1, key):
        flow_map = fs.FlowMap(Perturbed(exact, weights))
        return jax.tree.leaves(loss(flow_map, x1, key=key, **options))[0]

    @jax.jit
    def gradients(weights, keys):
        one = lambda keys: jax.grad(value)(
            weights, law.sample((64, 1), key=keys[0]), keys[1]
        )
        return jax.lax.map(one, keys)

    def scores(offset):
        values = gradients(jnp.full(5, offset), jr.split(KEY, (num, 2)))
        values = np.asarray(values, float)
        return values.mean(0) / (values.std(0) / np.sqrt(num))

    return [np.abs(scores(offset)).max() for offset in offsets]


LOSSES = {
    "mean_flow": (
        fs.mean_flow_loss,
        {"toy": fs.MEAN_FLOW_TOY, "image": fs.MEAN_FLOW, "cifar": fs.MEAN_FLOW_CIFAR10},
    ),
    "improved": (
        fs.improved_mean_flow_loss,
        {"toy": fs.MEAN_FLOW_TOY, "image": fs.IMPROVED_MEAN_FLOW},
    ),
    "back_flow": (fs.back_flow_loss, {"toy": fs.BACK_FLOW_TOY, "image": fs.BACK_FLOW}),
    "facm": (fs.facm_loss, {"toy": fs.FACM_TOY, "image": fs.FACM | {"cosine": False}}),
    "consistency": (fs.consistency_loss, {"toy": {}}),
}
CASES = [(name, preset) for name, (_, presets) in LOSSES.items() for preset in presets]


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_exact_map_is_a_fixed_point(name, preset):
    """On the mixture with the toy presets; with weights and clamps on a Gaussian, whose
    errors are symmetric."""
    loss, presets = LOSSES[name]
    if preset == "toy":
        at_map, beside = scores_of_gradient(
            loss, mixture_1d(), presets[preset], 0.0, 0.2
        )
        assert beside > 8
    else:
        (at_map,) = scores_of_gradient(loss, GAUSSIAN, presets[preset], 0.0)
    assert at_map < 3.5  # the largest of five


def test_exact_map_is_consistent_with_its_shortcuts(key):
    """But for the smallest jumps, which are taken to be straight; a map with another
    average is not."""
    flow_map, x1 = fs.exact_flow_map(GAUSSIAN), GAUSSIAN.sample((256, 1), key=KEY)
    errors = []
    for weight in (0.0, 0.1):
        perturbed = fs.FlowMap(Perturbed(flow_map, jnp.array([0, 0, weight, 0, 0])))
        errors.append(
            fs.shortcut_loss(perturbed, x1, num_levels=10, fraction=0.9, key=key)[1][
                "self_consistency"
            ]
        )
    assert errors[0] < 1e-6
    assert errors[1] > 1e-4


def test_values_of_the_losses_are_their_closed_forms(key):
    """At the exact map of N(0, 0.5^2) and the times 0.2 and 0.9: the variances of the
    targets, B.8 and B.9."""
    law, num = fk.Normal(0.0, 0.5), 40_000
    data_key, key = jr.split(key)
    flow_map, x1 = fs.exact_flow_map(law), law.sample((num, 1), key=data_key)
    pairs = lambda num, *, key: (jnp.full(num, 0.2), jnp.full(num, 0.9))
    c = lambda t: np.sqrt((1 - t) ** 2 + (0.5 * t) ** 2)
    floor = 0.5**2 / c(0.2) ** 2  # the variance of the velocity given the place
    for loss, expected in (
        (fs.mean_flow_loss, floor * (c(0.9) / c(0.2)) ** 2),
        (fs.improved_mean_flow_loss, floor),
    ):
        value = loss(flow_map, x1, key=key, pairs=pairs)
        assert abs(float(value) / expected - 1) < 3 * np.sqrt(
            2 / num
        )  # the error is Gaussian


def test_guidance_in_training_moves_the_fixed_point():
    """For shifted Gaussians guidance of scale 2 is the map of twice the shift."""
    shift, std = 0.8, 0.5

    def exact(times, x, cond=None):
        return fs.exact_flow_map(fk.Normal(cond, std))(times[0], times[1], x)

    def loss(flow_map, x1, *, key, scale, **options):
        network = lambda times, x, cond: (
            flow_map.network(times, x)
            - flow_map.network.exact(*times, x)
            + exact(times, x, scale * cond)
        )
        cond = jnp.full_like(x1, shift)
        guidance = fs.Guidance(1.0, 0.5, dropout=0.0)
        return fs.mean_flow_loss(
            fs.FlowMap(network), x1, cond, key=key, guidance=guidance, **options
        )

    law = fk.Normal(shift, std)
    for scale, low, high in ((2.0, 0.0, 3.5), (1.0, 8.0, np.inf)):
        options = fs.MEAN_FLOW_TOY | {"scale": scale}
        (score,) = scores_of_gradient(loss, law, options, 0.0)
        assert low <= score < high


def test_parts_of_facm(key):
    flow_map, x1 = fs.FlowMap(network_of_two_times()), fk.data.moons(32, key=key)
    loss, parts = fs.facm_loss(flow_map, x1, key=key, **fs.FACM)
    np.testing.assert_allclose(loss, parts["consistency"] + parts["anchor"], rtol=1e-6)
    end = lambda num, *, key: jnp.ones(num)
    assert abs(fs.facm_loss(flow_map, x1, key=key, times=end)[1]["consistency"]) < 1e-12
    gradient = eqx.filter_grad(
        lambda flow_map: fs.facm_loss(flow_map, x1, key=key, **fs.FACM)[0]
    )(flow_map)
    assert all(
        np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient)
    )  # at the output zero


FACM_OPTIONS = [
    {}, {"clamp": 0.3}, {"relaxation": None}, {"relaxation": 2.0},
    {"late_weight": False}, {"cosine": True},
    {"weight": fs.AdaptiveWeight(0.5, 0.1, summed=False)}, {"weight": fs.AdaptiveWeight(0.5, 0.1)},
]  # fmt: skip


@pytest.mark.parametrize("options", FACM_OPTIONS, ids=str)
def test_facm_is_its_formula(options):
    """For u = w x + a s + b t, whose derivative along v is w v + a, at three times."""
    (w, a, b), s = (0.7, -0.4, 0.9), np.array([[0.0], [0.5], [0.9]])
    flow_map = fs.FlowMap(lambda times, x, cond: w * x + a * times[0] + b * times[1])
    x0, x1 = (np.asarray(jr.normal(key, (3, 2))) for key in jr.split(KEY))
    times = lambda num, *, key: jnp.asarray(s[:, 0])
    _, parts = fs.facm_loss(
        flow_map,
        x1,
        coupling=fk.Paired(jnp.asarray(x0)),
        times=times,
        key=KEY,
        **options,
    )

    x, v = (1 - s) * x0 + s * x1, x1 - x0
    step = w * x + a * s + b - v - (1 - s) * (w * v + a)
    step = np.clip(step, -options.get("clamp", np.inf), options.get("clamp", np.inf))
    power = options.get("relaxation", 0.5)
    step *= 1 if power is None else 1 - s**power
    error = np.mean(step**2, axis=1)
    if weight := options.get("weight"):
        error *= 2 if weight.summed else 1
        error /= (error + 0.1) ** 0.5
    beta = np.cos(np.pi * s[:, 0] / 2) if options.get("late_weight", True) else 1
    np.testing.assert_allclose(parts["consistency"], np.mean(beta * error), rtol=1e-5)
    u = w * x + (a + b) * s
    anchor = np.mean((u - v) ** 2, axis=1)
    if options.get("cosine"):
        anchor += 1 - np.sum(u * v, 1) / np.sqrt(
            (np.sum(u**2, 1) + 1e-4) * (np.sum(v**2, 1) + 1e-4)
        )
    np.testing.assert_allclose(parts["anchor"], np.mean(anchor), rtol=1e-5)


@pytest.mark.parametrize("ordered", [True, False])
def test_law_of_the_pairs(ordered):
    num, equal = 20_000, 0.3
    s, t = fs.TimePairs(fk.uniform, equal=equal, ordered=ordered)(num, key=KEY)
    same = np.asarray(s == t)
    assert abs(same.mean() - equal) < 3 * np.sqrt(equal * (1 - equal) / num)
    # The common value is the first time: of two uniform ones the smaller if they are ordered.
    mean, variance = (1 / 3, 1 / 18) if ordered else (1 / 2, 1 / 12)
    for part in (same, ~same):
        assert abs(s[part].mean() - mean) < 3 * np.sqrt(variance / part.sum())
    backward = np.mean(s[~same] > t[~same])
    assert (
        backward == 0
        if ordered
        else abs(backward - 0.5) < 3 * 0.5 / np.sqrt((~same).sum())
    )


@pytest.mark.parametrize("dropout", [0.0, 1 - 1e-6])
def test_guidance_is_its_formula(dropout):
    """For a map that is its condition; examples without one keep the velocity of the pair."""
    x0, x1, cond = (np.asarray(jr.normal(key, (16, 2))) for key in jr.split(KEY, 3))
    guidance = fs.Guidance(1.5, 0.3, dropout, null=jnp.array([2.0, -1.0]))
    value = fs.mean_flow_loss(
        fs.FlowMap(lambda times, x, cond: cond + 0 * x), x1, cond, guidance=guidance,
        coupling=fk.Paired(jnp.asarray(x0)), key=KEY,
    )  # fmt: skip
    null, v = np.array([2.0, -1.0]), x1 - x0
    error = null - v if dropout else cond - (1.5 * v + 0.3 * cond - 0.8 * null)
    np.testing.assert_allclose(value, np.mean(error**2), rtol=1e-5)


def test_a_teacher_takes_the_place_of_pairs(key):
    """With the exact velocity the exact map has no error at all."""
    law = mixture_1d()
    loss = fs.consistency_loss(
        fs.exact_flow_map(law),
        law.sample((64, 1), key=key),
        teacher=fk.exact_flow(law),
        key=key,
    )
    assert loss < 1e-5


class Dropped(eqx.Module):
    dropout: eqx.nn.Dropout

    def __call__(self, t, x, cond=None, key=None):
        return self.dropout(x, key=key)


@pytest.mark.parametrize("loss", [fs.facm_loss, fs.consistency_loss])
def test_a_teacher_has_no_dropout(loss, key):
    flow_map, x1 = fs.FlowMap(half_of_the_place), jr.normal(key, (4, 2))
    teachers = (fk.Flow(Dropped(eqx.nn.Dropout(0.5))), lambda t, x, cond: x)
    values = [
        jax.tree.leaves(loss(flow_map, x1, teacher=teacher, key=key))
        for teacher in teachers
    ]
    np.testing.assert_allclose(*values, rtol=1e-6)


def test_expanded_interval():
    seen = fs.FlowMap(lambda t, x, cond: t + 0 * x, times=fs.expanded_interval)
    x = jnp.zeros(1)
    values = [float(seen(s, t, x)[0]) for s, t in ((0.3, 1.0), (0.3, 0.3), (1.0, 1.0))]
    np.testing.assert_allclose(values, [0.3, 1.7, 1.0])
    _, derivative = fs.total_derivative(seen, 0.3, 1.0, x, x)
    np.testing.assert_allclose(derivative, [1.0])


# -- networks


def network_of_two_times(size=2):
    return fk.nn.MLP(size, hidden_sizes=(16,), time_embedding=fk.nn.RawTime(2), key=KEY)


@pytest.mark.parametrize(
    "make", [fk.nn.AdaLNMLP, fk.nn.DiT, fk.nn.CrossAttentionCRN, fk.nn.ConcatSquashMLP]
)
def test_networks_of_clouds_have_the_derivative(make):
    embedding = fk.nn.TwoTimes(fk.nn.SinusoidalTime(8, scale=1.0))
    options = {"width_size": 8, "depth": 1, "time_embedding": embedding, "key": KEY}
    options |= {"num_heads": 2} if make in (fk.nn.DiT, fk.nn.CrossAttentionCRN) else {}
    points, mask = jnp.ones((4, 6, 2)), jnp.ones((4, 6), bool)

    def loss(points, mask):
        flow_map = fs.FlowMap(make(2, 0, **options))
        return fs.back_flow_loss(flow_map, points, mask=mask, block=2, key=KEY)

    assert (
        eqx.filter_eval_shape(eqx.filter_grad(loss), points, mask).shape == points.shape
    )


def test_masks_blocks_and_weights(key):
    """Masked rows do not count, blocks change nothing, weights of couplings multiply."""
    embedding = fk.nn.TwoTimes(fk.nn.RawTime())
    network = fk.nn.ConcatSquashMLP(
        2, 0, width_size=8, depth=1, time_embedding=embedding, key=KEY
    )
    network = eqx.tree_at(
        lambda n: n.layers[-1].linear.weight, network, jr.normal(KEY, (8, 2))
    )
    flow_map, x1 = fs.FlowMap(network), jr.normal(key, (8, 5, 2))
    mask = jnp.arange(5) < jnp.array([5, 4, 3, 2, 1, 5, 4, 3])[:, None]
    spoiled = jnp.where(mask[..., None], x1, jnp.nan)
    options = {"key": key, "weight": fs.AdaptiveWeight(0.5)}
    whole = fs.mean_flow_loss(flow_map, x1, mask=mask, **options)
    np.testing.assert_allclose(
        fs.mean_flow_loss(flow_map, spoiled, mask=mask, **options), whole, rtol=1e-6
    )
    np.testing.assert_allclose(
        fs.mean_flow_loss(flow_map, x1, mask=mask, block=2, **options), whole, rtol=1e-5
    )
    double = lambda x0, x1, cond, *, key: fk.Pairing(weights=jnp.full(len(x1), 2.0))
    np.testing.assert_allclose(
        fs.mean_flow_loss(flow_map, x1, mask=mask, coupling=double, **options),
        2 * whole,
        rtol=1e-5,
    )


def half_of_the_place(times, x, cond=None, mask=None):
    return 0.5 * x


COSINE = ft.partial(fs.facm_loss, cosine=True)


@pytest.mark.parametrize("loss", [fs.mean_flow_loss, COSINE], ids=["mean", "facm"])
def test_masked_losses_are_those_of_valid_rows(loss, key):
    """Rows of any shape, and with the weight of the sum of their squares."""
    flow_map = fs.FlowMap(half_of_the_place)
    x0, x1 = jr.normal(key, (2, 8, 5, 2, 3))
    options = {"key": key, "weight": fs.AdaptiveWeight(0.5)}
    mask = jnp.broadcast_to(jnp.arange(5) < 3, (8, 5))
    coupling = fk.Paired(x0)
    got = loss(flow_map, x1, mask=mask, coupling=coupling, **options)
    coupling = fk.Paired(x0[:, :3])
    expected = loss(flow_map, x1[:, :3], coupling=coupling, **options)
    leaves = [jax.tree.leaves(each) for each in (got, expected)]
    np.testing.assert_allclose(*leaves, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_losses_in_half_precision(dtype, key):
    """Of masked clouds, with squares whose sum overflows float16."""
    flow_map = fs.FlowMap(half_of_the_place)
    x1 = 20 * jr.normal(key, (4, 600, 2))
    mask = jnp.broadcast_to(jnp.arange(600) < 500, (4, 600))
    pairs = lambda num, *, key: (jnp.full(num, 0.25), jnp.full(num, 0.75))
    times = lambda num, *, key: jnp.full(num, 0.5)
    options = {"key": key, "mask": mask, "weight": fs.AdaptiveWeight(0.5)}
    losses = [
        lambda x1: fs.mean_flow_loss(flow_map, x1, pairs=pairs, **options),
        lambda x1: fs.facm_loss(flow_map, x1, times=times, cosine=True, **options)[0],
    ]
    for loss in losses:
        value = loss(x1.astype(dtype))
        assert value.dtype == dtype
        np.testing.assert_allclose(value.astype(float), loss(x1), rtol=0.02)


def test_embeddings_of_two_times():
    times = jnp.array([0.2, 0.7])
    np.testing.assert_array_equal(fk.nn.RawTime(2)(times), times)
    np.testing.assert_allclose(
        fk.nn.TwoTimes(fk.nn.RawTime())(times), [0.2, 0.5], rtol=1e-6
    )
    with pytest.raises(
        ValueError, match=r"holds 2 times, but the embedding is RawTime\(1\)"
    ):
        fk.nn.RawTime()(times)
    with pytest.raises(ValueError, match="must hold the two times"):
        fk.nn.TwoTimes(fk.nn.RawTime())(0.3)


# -- sampling


def test_any_number_of_steps_is_the_same_map(key):
    law = mixture_1d()
    flow_map, flow = fs.exact_flow_map(law), fk.exact_flow(law)
    start = jr.fold_in(key, 0)
    exact = fk.sample(flow, (1,), num_samples=8, key=start).values
    noise = fk.Normal().sample((8, 1), key=start)

    def both(**options):
        values = fs.sample(flow_map, (1,), num_samples=8, key=key, **options)
        back = jax.vmap(lambda x: fs.encode(flow_map, x, **options))(values)
        return values, back

    for options in ({}, {"num_steps": 3}, {"grid": (0.0, 0.2, 1.0)}):
        values, back = jax.jit(ft.partial(both, **options))()
        np.testing.assert_allclose(values, exact, atol=1e-3)
        np.testing.assert_allclose(back, noise, atol=1e-3)


def test_steps_and_grids_may_be_arrays():
    """The map is `x -> x + (t - s) x`, whose ends depend on the grid."""
    average = lambda s, t, x, cond: x
    encode = lambda **options: fs.encode(average, np.ones(1, np.float32), **options)
    times = (0, 0.25, 1)
    np.testing.assert_allclose(encode(num_steps=np.int64(2)), [0.25])
    for grid in (jnp.array(times), np.array(times), list(np.array(times)), times):
        np.testing.assert_allclose(encode(grid=grid), [0.25 * 0.75])


def test_renoising_keeps_the_law(key):
    num = 20_000
    values = fs.sample(
        fs.exact_flow_map(GAUSSIAN),
        (1,),
        num_samples=num,
        num_steps=3,
        renoise=True,
        key=key,
    )
    assert abs(values.mean() - 0.7) < 3 * 0.5 / np.sqrt(num)
    assert abs(values.std() / 0.5 - 1) < 3 / np.sqrt(2 * num)
    once = fs.sample(
        fs.exact_flow_map(GAUSSIAN), (1,), num_samples=num, num_steps=3, key=key
    )
    assert (
        np.abs(np.corrcoef(values[:, 0], once[:, 0])[0, 1]) < 0.9
    )  # the noise is another


def test_second_call_compiles_nothing(key):
    flow_map, x1, other = (
        fs.FlowMap(network_of_two_times()),
        jnp.ones((4, 2)),
        jr.key(1),
    )
    exact = fs.exact_flow_map(mixture_1d())
    on_path = fk.on_path(fk.exact_flow(mixture_1d()), fk.CosinePath())
    calls = [
        lambda key: fs.mean_flow_loss(flow_map, x1, key=key, **fs.MEAN_FLOW_TOY),
        lambda key: fs.sample(flow_map, (2,), num_samples=2, num_steps=2, key=key),
        lambda key: fs.encode(flow_map, x1[0]),
        lambda key: fs.jump(exact, 0.2, 0.7, x1[0, :1]),
        lambda key: on_path(0.2, x1[0, :1]),
    ]
    for call in calls:
        call(key)
    with compilations() as events:
        for call in calls:
            call(other)
    assert not events


def test_another_grid_compiles_nothing(key):
    flow_map = fs.FlowMap(network_of_two_times())
    x1 = jnp.ones(2)
    options = {"num_samples": 2, "renoise": True, "key": key}

    def both(grid):
        fs.sample(flow_map, (2,), grid=grid, **options)
        fs.encode(flow_map, x1, grid=grid)

    both((0.0, 0.2, 1.0))
    with compilations() as events:
        both((0.0, 0.7, 1.0))
    assert not events


def test_options_may_be_arrays_which_compile_once(key):
    """They have the values of plain numbers, traced as well."""
    network = lambda times, x, cond: x * times[0] + cond
    flow_map, x1, cond = fs.FlowMap(network), jnp.ones((8, 2)), jnp.ones((8, 1))

    def loss(equal, power, constant, scale, mix, dropout):
        return fs.mean_flow_loss(
            flow_map,
            x1,
            cond,
            key=key,
            pairs=fs.TimePairs(equal=equal),
            weight=fs.AdaptiveWeight(power, constant),
            guidance=fs.Guidance(scale, mix, dropout, null=jnp.zeros(1)),
        )

    arrays = lambda *options: [jnp.array(option) for option in options]
    loss(*arrays(0.5, 1.0, 0.01, 2.0, 0.3, 0.5))
    options = (0.25, 0.5, 0.1, 1.5, 0.2, 0.25)
    inputs = arrays(*options)
    with compilations() as events:
        value = loss(*inputs)
    assert not events

    np.testing.assert_allclose(value, loss(*options), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(loss)(*options), value, rtol=1e-5)
    # Whole numbers too.
    assert np.isfinite(loss(1, 2, 1, 2, 0, 0))


def test_conditions_and_masks_in_sampling(key):
    network = lambda times, x, cond, mask: x * 0 + cond
    mask = np.array([[True, False], [True, True]])
    flow_map = fs.FlowMap(network)
    values = fs.sample(
        flow_map,
        (2, 1),
        num_samples=2,
        cond=jnp.array([1.0, 2.0]),
        mask=mask,
        num_steps=2,
        key=key,
    )
    noise = fk.Normal().sample((2, 2, 1), key=jr.fold_in(key, 0))
    expected = np.where(mask[..., None], noise + np.array([1.0, 2.0])[:, None, None], 0)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    np.testing.assert_allclose(
        fs.encode(flow_map, values[0], 1.0, mask=jnp.asarray(mask[0])),
        np.where(mask[0][:, None], noise[0], 0),
        atol=1e-6,
    )


def test_the_velocity_of_a_map_is_a_flow(key):
    flow = fs.velocity_of(fs.exact_flow_map(GAUSSIAN))
    x = jnp.array([0.2])
    np.testing.assert_allclose(flow(0.3, x), fk.exact_flow(GAUSSIAN)(0.3, x), rtol=1e-5)
    np.testing.assert_allclose(fk.log_prob(flow, x), GAUSSIAN.log_prob(x), atol=1e-3)


def test_reflow_pairs_are_ends_of_the_flow(key):
    flow = fk.exact_flow(GAUSSIAN)
    pairs = fs.reflow_pairs(flow, (1,), 16, key=key)
    np.testing.assert_allclose(pairs.x1, 0.7 + 0.5 * pairs.x0, atol=1e-3)
    # One reflow of a Gaussian has straight paths: its loss is zero at the velocity along them.
    straight = fk.Flow(
        lambda t, x, cond: 0.7 + (0.5 - 1) * (x - 0.7 * t) / (1 - t + 0.5 * t)
    )
    loss = fk.flow_matching_loss(
        straight, pairs.x1, coupling=fk.Paired(pairs.x0), key=key
    )
    assert loss < 1e-5


# -- wrong use


def test_network_without_forward_mode(key):
    @jax.custom_vjp
    def kernel(x):
        return x

    kernel.defvjp(lambda x: (x, None), lambda _, g: (g,))
    with pytest.raises(ValueError, match="without a forward-mode derivative"):
        fs.mean_flow_loss(
            fs.FlowMap(lambda times, x, cond: kernel(x)), jnp.ones((4, 2)), key=key
        )


@pytest.mark.parametrize(
    "loss",
    [
        fs.mean_flow_loss,
        fs.improved_mean_flow_loss,
        fs.back_flow_loss,
        fs.shortcut_loss,
    ],
    ids=lambda f: f.__name__,
)
def test_a_map_of_one_time_is_not_trained_on_pairs(loss, key):
    flow_map = fs.FlowMap(fk.nn.MLP(2, key=KEY), times=fs.expanded_interval)
    with pytest.raises(
        ValueError, match="only `facm_loss` and `consistency_loss` train"
    ):
        loss(flow_map, jnp.ones((4, 2)), key=key)


def test_a_map_of_one_time_jumps_to_the_end_only(key):
    flow_map, x = (
        fs.FlowMap(fk.nn.MLP(2, key=KEY), times=fs.expanded_interval),
        jnp.ones(2),
    )
    with pytest.raises(ValueError, match="`t` must be `s` or 1"):
        flow_map(0.2, 0.5, x)
    with pytest.raises(ValueError, match="give `renoise=True`"):
        fs.sample(flow_map, (2,), num_samples=1, num_steps=2, key=key)
    with pytest.raises(ValueError, match="cannot encode"):
        fs.encode(flow_map, x)
    assert fs.sample(
        flow_map, (2,), num_samples=1, num_steps=2, renoise=True, key=key
    ).shape == (1, 2)


@pytest.mark.parametrize(
    "loss", [fs.mean_flow_loss, fs.improved_mean_flow_loss], ids=lambda f: f.__name__
)
def test_pairs_that_go_backwards(loss, key):
    flow_map, x1 = fs.FlowMap(network_of_two_times()), jnp.ones((4, 2))
    law = lambda s, t: lambda num, *, key: (jnp.full(num, s), jnp.full(num, t))
    with pytest.raises(ValueError, match="use `back_flow_loss` for both"):
        loss(flow_map, x1, pairs=fs.TimePairs(ordered=False), key=key)
    with pytest.raises(Exception, match="drew s > t"):
        loss(flow_map, x1, pairs=law(0.8, 0.3), key=key)
    assert np.isfinite(fs.back_flow_loss(flow_map, x1, pairs=law(0.8, 0.3), key=key))


def test_laws_outside_of_the_interval(key):
    flow_map, x1 = fs.FlowMap(network_of_two_times()), jnp.ones((4, 2))
    late = lambda num, *, key: jnp.full(num, 1.2)
    for pairs in (
        fs.TimePairs(late),
        lambda num, *, key: (jnp.zeros(num), late(num, key=key)),
    ):
        with pytest.raises(Exception, match="drew a time outside"):
            fs.mean_flow_loss(flow_map, x1, pairs=pairs, key=key)
    with pytest.raises(Exception, match="drew a time outside"):
        fs.facm_loss(flow_map, x1, times=late, key=key)
    with pytest.raises(ValueError, match="must return two arrays of shape"):
        fs.mean_flow_loss(
            flow_map,
            x1,
            pairs=lambda num, *, key: (jnp.zeros(2), jnp.zeros(2)),
            key=key,
        )


def test_networks_with_embeddings_of_one_time():
    for embedding in (fk.nn.SinusoidalTime(4, scale=1.0), fk.nn.ZeroToOneTime(4)):
        flow_map = fs.FlowMap(
            fk.nn.MLP(2, hidden_sizes=(4,), time_embedding=embedding, key=KEY)
        )
        with pytest.raises(ValueError, match=r"`fk.nn.TwoTimes\(embedding\)`"):
            flow_map(0.0, 1.0, jnp.ones(2))


def test_units_are_refused(key):
    flow_map, x1 = fs.FlowMap(network_of_two_times()), jnp.ones((4, 2))
    teacher = fk.Standardized(fk.exact_flow(fk.Normal()), 10.0, 3.0)
    for loss in (fs.facm_loss, fs.consistency_loss):
        with pytest.raises(ValueError, match="`teacher` must not be a `fk.Stand"):
            loss(flow_map, x1, key=key, teacher=teacher)
    standardized = fk.Standardized(flow_map, 10.0, 3.0)
    with pytest.raises(ValueError, match="`flow_map` must not be a `fk.Stand"):
        fs.sample(standardized, (2,), num_samples=1, key=key)
    with pytest.raises(ValueError, match="`flow_map` must not be a `fk.Stand"):
        fs.encode(standardized, x1[0])


def test_a_flow_is_no_map(key):
    """Called as a map it takes the time for the place, and some give numbers."""
    flow = fk.exact_flow(GAUSSIAN)
    with pytest.raises(ValueError, match="`flow_map` is a `fk.Flow`"):
        fs.sample(flow, (2,), num_samples=2, key=key)
    with pytest.raises(ValueError, match="`flow_map` is a `fk.Flow`"):
        fs.encode(flow, jnp.ones(2))


@pytest.mark.parametrize("loss", [fs.facm_loss, fs.consistency_loss])
def test_teachers_are_velocity_fields(loss, key):
    flow_map, x1 = fs.FlowMap(network_of_two_times()), jnp.ones((4, 2))
    cases = {
        "is a `fk.few_step.FlowMap`": flow_map,
        "is the class Flow": fk.Flow,
        r"must take the arguments `\(t, x, cond\)`": lambda x, t: x,
    }
    for fragment, teacher in cases.items():
        with pytest.raises(ValueError, match=f"`teacher` {fragment}"):
            loss(flow_map, x1, key=key, teacher=teacher)


def test_options_out_of_range(key):
    flow_map, x1 = fs.FlowMap(network_of_two_times()), jnp.ones((4, 2))
    for name in ("clamp", "relaxation"):
        with pytest.raises(ValueError, match=f"`{name}` must be positive"):
            fs.facm_loss(flow_map, x1, key=key, **{name: 0.0})
    with pytest.raises(ValueError, match="`constant` must be positive"):
        fs.AdaptiveWeight(1.0, 0.0)
    with pytest.raises(ValueError, match="`dropout` must be a probability below 1"):
        fs.Guidance(dropout=1.0)
    with pytest.raises(ValueError, match="`null` must be the condition of one example"):
        fs.mean_flow_loss(
            flow_map,
            x1,
            jnp.ones((4, 1)),
            guidance=fs.Guidance(null=jnp.zeros(3)),
            key=key,
        )


def test_wrong_use(key):
    flow_map, x1 = fs.FlowMap(network_of_two_times()), jnp.ones((4, 2))
    with pytest.raises(ValueError, match="`s` must be in"):
        flow_map(1.5, 1.0, x1[0])
    with pytest.raises(ValueError, match="`guidance` needs `cond`"):
        fs.mean_flow_loss(flow_map, x1, guidance=fs.Guidance(), key=key)
    with pytest.raises(ValueError, match="`mix` must be below 1"):
        fs.Guidance(mix=1.0)
    with pytest.raises(
        ValueError, match="`fraction` must leave examples for both parts"
    ):
        fs.shortcut_loss(flow_map, x1, fraction=0.0, key=key)
    with pytest.raises(ValueError, match="`equal` must be a probability"):
        fs.TimePairs(equal=1.2)
    with pytest.raises(ValueError, match="`grid` must increase from 0 to 1"):
        fs.sample(flow_map, (2,), num_samples=1, grid=(0.0, 0.5), key=key)
    with pytest.raises(ValueError, match="`num_steps` must be at least 1"):
        fs.encode(flow_map, x1[0], num_steps=0)
    with pytest.raises(ValueError, match="must return the shape"):
        fs.FlowMap(lambda times, x, cond: x[:1])(0.0, 1.0, x1[0])
    with pytest.raises(
        ValueError, match=r"must take the arguments `\(times, x, cond\)`"
    ):
        fs.FlowMap(lambda s, t, x, cond: x)
    with pytest.raises(ValueError, match="`network` is the class MLP"):
        fs.FlowMap(fk.nn.MLP)
    with pytest.raises(ValueError, match=r"two times `\(s, t\)`.*TimePairs\(times\)"):
        fs.mean_flow_loss(flow_map, x1, pairs=fk.uniform, key=key)
    with pytest.raises(ValueError, match="`pairs` is the class TimePairs"):
        fs.mean_flow_loss(flow_map, x1, pairs=fs.TimePairs, key=key)
    with pytest.raises(ValueError, match="`velocity` must have the shape of `x`"):
        fs.consistency_loss(flow_map, x1, teacher=lambda t, x, cond: x[:1], key=key)
    with pytest.raises(ValueError, match="in one dimension"):
        fs.exact_flow_map(fk.GaussianMixture(jnp.zeros((2, 2))))
