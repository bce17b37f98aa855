import re
import warnings

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from scipy.optimize import linear_sum_assignment

import flowkit as fk

from .oracles import compilations, mixture_1d, mixture_2d, PATHS, PREDICTIONS


class Linear(eqx.Module):
    """A network that is wrong everywhere, with a gradient, which depends on the condition."""

    weight: jax.Array

    def __call__(self, t, x, cond, mask=None):
        y = x @ self.weight + t
        return y if cond is None else y + jnp.sum(cond)


def network(dtype=jnp.float32):
    return Linear(jnp.array([[0.5, -0.2], [0.3, 0.8]], dtype))


NATIVE = ["velocity", "noise", "target"]


def converted(path, prediction):
    """One function of (t, x), read as a velocity and restated in another prediction."""
    base = fk.Flow(network(jnp.float64), path)

    class Restated(eqx.Module):
        base: fk.Flow

        def __call__(self, t, x, cond):
            return self.base.predict(PREDICTIONS[prediction], t, x, cond)

    return fk.Flow(Restated(base), path, PREDICTIONS[prediction])


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "polynomial", "variance-preserving"]
)
@pytest.mark.parametrize("target", NATIVE)
def test_native_losses_agree_after_their_factors(name, target, key):
    """Whatever the network predicts, the loss of a listed target is the same number."""
    with jax.enable_x64(True):
        x1 = jr.normal(key, (16, 2), jnp.float64) + 1
        times = lambda num, key: fk.uniform(num, key=key) * 0.9 + 0.05
        losses = [
            fk.flow_matching_loss(
                converted(PATHS[name], p),
                x1,
                key=key,
                times=times,
                targets=(PREDICTIONS[target],),
            )
            for p in NATIVE
        ]
        np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-10)


def test_factor_table_of_the_linear_path(key):
    """Velocity network: noise loss t^2, target loss (1 - t)^2, and their sum."""
    with jax.enable_x64(True):
        x1 = jr.normal(key, (64, 2), jnp.float64)
        flow = fk.Flow(network(jnp.float64))
        velocity, t = fk.flow_matching_errors(flow, x1, key=key)
        noise, _ = fk.flow_matching_errors(flow, x1, key=key, targets=(fk.Noise(),))
        both, _ = fk.flow_matching_errors(
            flow, x1, key=key, targets=(fk.Noise(), fk.Target())
        )
        score, _ = fk.flow_matching_errors(flow, x1, key=key, targets=(fk.Score(),))
        np.testing.assert_allclose(noise, t**2 * velocity)
        np.testing.assert_allclose(both, (t**2 + (1 - t) ** 2) * velocity)
        inside = t < 1 - 1e-3
        np.testing.assert_allclose(
            score[inside], ((t / (1 - t)) ** 2 * velocity)[inside]
        )


@pytest.mark.parametrize("prediction", NATIVE)
def test_likelihood_weighting_is_applied_once(prediction, key):
    """w_v = t / (1 - t) on the velocity error, whatever the network predicts; twice for
    two listed targets."""
    with jax.enable_x64(True):
        x1 = jr.normal(key, (64, 2), jnp.float64)
        flow = converted(fk.LinearPath(), prediction)
        times = lambda num, key: fk.uniform(num, key=key) * 0.9 + 0.05
        velocity, t = fk.flow_matching_errors(flow, x1, key=key, times=times)
        options = {"key": key, "times": times, "weighting": fk.likelihood_weighting}
        weighted, _ = fk.flow_matching_errors(flow, x1, **options)
        np.testing.assert_allclose(weighted, t / (1 - t) * velocity, rtol=1e-10)
        twice, _ = fk.flow_matching_errors(
            flow, x1, targets=(fk.Noise(), fk.Target()), **options
        )
        np.testing.assert_allclose(twice, 2 * weighted, rtol=1e-10)


@pytest.mark.parametrize("name", ["cosine", "polynomial", "variance-preserving"])
def test_likelihood_weighting_is_half_the_slope_of_the_log_snr(name):
    """On the noise error, e_v = -(D / alpha) e_0, the weight is lambda' / 2 with lambda
    = log(alpha^2 / sigma^2)."""
    with jax.enable_x64(True):
        path = PATHS[name]
        for t in (0.2, 0.8):
            log_snr = lambda t: 2 * jnp.log(path.alpha(t) / path.sigma(t))
            c = path.coefficients(t)
            squared_ratio = ((c.d_alpha * c.sigma - c.alpha * c.d_sigma) / c.alpha) ** 2
            np.testing.assert_allclose(
                fk.likelihood_weighting(path, t) * squared_ratio,
                0.5 * jax.grad(log_snr)(t),
                rtol=1e-9,
            )
        assert np.isfinite(fk.likelihood_weighting(path, 1.0))


@pytest.mark.parametrize(
    ("floor", "flow"),
    [(np.pi / 2 * 0.5, fk.exact_flow(fk.Normal(1.3, 0.5))), (2.827313, None)],
)
def test_loss_of_the_exact_flow_is_its_floor(floor, flow, key):
    """(pi / 2) s s0 for Gaussians, 2.827313 for the mixture by quadrature; within 5
    standard errors."""
    xkey, lkey = jr.split(key)
    data = mixture_1d() if flow is None else fk.Normal(1.3, 0.5)
    x1 = data.sample((200_000, 1), key=xkey)
    errors, _ = fk.flow_matching_errors(
        flow or fk.exact_flow(mixture_1d()), x1, key=lkey
    )
    assert abs(errors.mean() - floor) < 5 * errors.std() / np.sqrt(len(errors))


def test_loss_of_the_zero_network(key):
    """E|x1 - x0|^2 = 5.556 for the mixture."""
    xkey, lkey = jr.split(key)
    x1 = mixture_1d().sample((200_000, 1), key=xkey)
    errors, _ = fk.flow_matching_errors(fk.Flow(lambda t, x, cond: 0 * x), x1, key=lkey)
    assert abs(errors.mean() - 5.556) < 5 * errors.std() / np.sqrt(len(errors))


@pytest.mark.parametrize("prediction", NATIVE)
def test_expected_gradient_at_the_exact_flow_is_zero(prediction, key):
    """The minimiser is the conditional expectation: shifting or scaling the exact
    network cannot help."""

    class Perturbed(eqx.Module):
        exact: fk.Flow
        shift: jax.Array
        scale: jax.Array

        def __call__(self, t, x, cond):
            return self.scale * self.exact.network(t, x, cond) + self.shift

    path = fk.CosinePath()
    exact = fk.exact_flow(mixture_2d(), path, prediction=PREDICTIONS[prediction])
    xkey, lkey = jr.split(key)
    x1 = mixture_2d().sample((200, 1000, 2), key=xkey)
    options = {"targets": (PREDICTIONS[prediction],)}

    @jax.jit
    @jax.vmap
    def gradient(x1, key):
        def loss(shift_and_scale):
            flow = fk.Flow(
                Perturbed(exact, *shift_and_scale), path, PREDICTIONS[prediction]
            )
            return fk.flow_matching_loss(flow, x1, key=key, **options)

        return jnp.stack(jax.grad(loss)((jnp.zeros(()), jnp.ones(()))))

    draws = gradient(x1, jr.split(lkey, 200))
    assert np.all(np.abs(draws.mean(0)) < 4 * draws.std(0) / np.sqrt(200))


class PointNetwork(eqx.Module):
    weight: jax.Array

    def __call__(self, t, x, cond, mask=None):
        return x @ self.weight + t


def test_masked_points_change_nothing(key):
    flow = fk.Flow(PointNetwork(jnp.array([[0.5, -0.2], [0.3, 0.8]])))
    x1 = np.array(jr.normal(key, (4, 6, 2)))
    mask = np.ones((4, 6), bool)
    mask[:, 4:] = False
    mask[0, 3] = False
    value_and_grad = eqx.filter_value_and_grad(
        lambda flow, x1: fk.flow_matching_loss(flow, x1, key=key, mask=mask)
    )
    value, gradient = value_and_grad(flow, x1)
    for bad in (1e9, np.inf, np.nan):
        x1[~mask] = bad
        other, other_gradient = value_and_grad(flow, x1)
        assert value == other
        np.testing.assert_array_equal(
            gradient.network.weight, other_gradient.network.weight
        )


def test_masks_may_be_constants_of_a_compiled_function(key):
    x1, mask = jr.normal(key, (4, 3, 2)), jnp.array([[True, True, False]] * 4)
    loss = lambda key: fk.flow_matching_loss(fk.Flow(network()), x1, key=key, mask=mask)
    np.testing.assert_allclose(jax.jit(loss)(key), loss(key), rtol=1e-6)


def test_masked_mean_is_over_valid_points(key):
    """By hand: with one valid point per cloud the loss is that of the points alone."""
    flow = fk.Flow(PointNetwork(jnp.eye(2)))
    x1 = jr.normal(key, (5, 3, 2))
    mask = np.zeros((5, 3), bool)
    mask[:, 1] = True
    per_example = fk.flow_matching_errors(flow, x1, key=key, mask=mask).values
    whole = jax.vmap(
        lambda m: fk.flow_matching_errors(flow, x1, key=key, mask=m).values
    )(jnp.stack([jnp.broadcast_to(jnp.arange(3) == i, (5, 3)) for i in range(3)]))
    np.testing.assert_allclose(whole[1], per_example)
    np.testing.assert_allclose(
        whole.mean(0), fk.flow_matching_errors(flow, x1, key=key).values, rtol=1e-5
    )


def test_blocks_keep_the_type(key):
    with jax.enable_x64(True):
        x1 = jr.normal(key, (8, 2), jnp.float32)
        loss = lambda f: fk.flow_matching_loss(f, x1, key=key, block=4)
        value_and_grad = eqx.filter_jit(eqx.filter_value_and_grad(loss))
        value, gradient = value_and_grad(fk.Flow(network()))
        assert value.dtype == gradient.network.weight.dtype == jnp.float32


@pytest.mark.parametrize("block", [1, 4, 16])
def test_blocks_give_the_same_value_and_gradients(block, key):
    with jax.enable_x64(True):
        x1 = jr.normal(key, (16, 2), jnp.float64)
        cond = jr.normal(jr.key(1), (16, 3), jnp.float64)
        flow = fk.Flow(network(jnp.float64), prediction=fk.Target())

        @eqx.filter_jit
        @eqx.filter_value_and_grad
        def loss(flow_and_cond, block):
            flow, cond = flow_and_cond
            return fk.flow_matching_loss(
                flow, x1, cond, key=key, block=block, coupling=fk.assignment
            )

        whole, whole_gradient = loss((flow, cond), None)
        blocked, blocked_gradient = loss((flow, cond), block)
        np.testing.assert_allclose(blocked, whole, rtol=1e-12)
        leaves = zip(
            jax.tree.leaves(blocked_gradient),
            jax.tree.leaves(whole_gradient),
            strict=True,
        )
        for got, expected in leaves:
            np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize("block", [None, 4])
def test_forward_mode_and_second_derivatives(block, key):
    """Against the loss of all examples by itself, with the directional derivative by hand."""
    with jax.enable_x64(True):
        x1 = jr.normal(key, (8, 2), jnp.float64)
        weight = jnp.array([[0.5, -0.2], [0.3, 0.8]], jnp.float64)
        tangent = jnp.array([[1.0, 0.5], [-0.3, 0.2]], jnp.float64)

        @jax.jit
        def loss(weight):
            flow = fk.Flow(Linear(weight))
            return fk.flow_matching_loss(flow, x1, key=key, block=block)

        @jax.jit
        def derivatives(weight):
            _, slope = jax.jvp(loss, (weight,), (tangent,))
            gradient, product = jax.jvp(jax.grad(loss), (weight,), (tangent,))
            return slope, jnp.sum(gradient * tangent), jnp.sum(product * tangent)

        slope, projected, second = derivatives(weight)
        np.testing.assert_allclose(slope, projected)
        # The loss is a quadratic function of the weights.
        along = lambda step: loss(weight + step * tangent)
        curvature = along(1.0) - 2 * along(0.0) + along(-1.0)
        np.testing.assert_allclose(second, curvature, rtol=1e-9)


def test_blocks_of_half_precision(key):
    """Sums and gradients are added up in single precision, as those of a whole batch are."""
    x1 = 5 * jr.normal(key, (4096, 2))
    loss = lambda flow, x1, block: fk.flow_matching_loss(flow, x1, key=key, block=block)
    half = fk.Flow(network(jnp.float16))
    whole = loss(half, x1.astype(jnp.float16), None)
    blocked = loss(half, x1.astype(jnp.float16), 16)
    assert blocked.dtype == jnp.float16
    np.testing.assert_allclose(blocked, whole, rtol=2e-3)

    brain = fk.Flow(network(jnp.bfloat16))
    gradient = eqx.filter_jit(eqx.filter_grad(loss))
    got = gradient(brain, x1.astype(jnp.bfloat16), 16).network.weight
    expected = gradient(fk.Flow(network()), x1, None).network.weight
    error = jnp.linalg.norm(got.astype(jnp.float32) - expected)
    assert error < 0.02 * jnp.linalg.norm(expected)


class Convolution(eqx.Module):
    """A convolution as it is, or one that CPUs run as a matrix product."""

    weight: jax.Array
    plain: bool

    def __call__(self, t, x, cond):
        by_product = lambda x, weight: jnp.einsum("hwi,io->hwo", x, weight[0, 0])
        if self.plain:
            return self.convolve(x, self.weight)
        return jax.lax.platform_dependent(
            x, self.weight, cpu=by_product, default=self.convolve
        )

    @staticmethod
    def convolve(x, weight):
        layout = ("NHWC", "HWIO", "NHWC")
        args = (x[None], weight, (1, 1), "SAME")
        return jax.lax.conv_general_dilated(*args, dimension_numbers=layout)[0]


class Layer(eqx.Module):
    """A convolution of this library as a velocity."""

    conv: fk.nn.Conv

    def __call__(self, t, x, cond):
        return self.conv(x)


def number_of_blocks(network, shape, block):
    """Read off the traced loss: the length of its loop, 1 if it has none."""
    loss = lambda x1: fk.flow_matching_loss(
        fk.Flow(network), x1, key=jr.key(0), block=block
    )
    jaxpr = jax.make_jaxpr(loss)(jnp.zeros(shape)).jaxpr
    scans = [eqn for eqn in jaxpr.eqns[-1].params["jaxpr"].eqns if "scan" in str(eqn)]
    lengths = re.findall(r"length=(\d+)", str(scans))
    return int(lengths[-1]) if lengths else 1


def test_automatic_blocks(monkeypatch):
    """An example of 100 points makes products of 100 x 2 entries, 800 bytes."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    points, sets = network(), (12, 100, 2)
    for cache_bytes, blocks in (
        (100_000, 1),
        (9_600, 1),
        (5_000, 2),
        (3_200, 3),
        (1, 3),
    ):
        block = fk.AutomaticBlock(cache_bytes)
        assert number_of_blocks(points, sets, block) == blocks
    assert number_of_blocks(points, sets, fk.AutomaticBlock(np.int64(5_000))) == 2

    # Every block reads the 16 bytes of weights, for 8 operations an example.
    one_point = (12, 1, 2)
    for flops_per_byte, blocks in ((1, 3), (3, 2), (4, 1)):
        block = fk.AutomaticBlock(1, flops_per_byte)
        assert number_of_blocks(points, one_point, block) == blocks

    # What each step would take anew from the system counts more than the weights. Of a
    # prime number of examples no block has four or more but all of them.
    little = fk.AutomaticBlock(flops_per_byte=10**6, memory_bytes=1)
    assert number_of_blocks(points, sets, little) == 3
    assert number_of_blocks(points, (11, 100, 2), little) == 1
    # At the least the products, of 800 bytes each.
    some = fk.AutomaticBlock(flops_per_byte=10**6, memory_bytes=12 * 800 - 1)
    assert number_of_blocks(points, sets, some) > 1

    images, weight = (8, 8, 8, 3), jnp.zeros((1, 1, 3, 3))
    assert (
        number_of_blocks(Convolution(weight, True), images, fk.AutomaticBlock(1)) == 1
    )
    assert (
        number_of_blocks(Convolution(weight, False), images, fk.AutomaticBlock(1)) == 2
    )

    # The convolution of this library has a rule of its own. An example has 8 x 8 x 3
    # numbers, and nine times as many in the views.
    layer = Layer(fk.nn.Conv(3, 3, use_bias=False, key=jr.key(0)))
    assert number_of_blocks(layer, images, fk.AutomaticBlock(1)) == 2
    num_bytes = 8 * 10 * (8 * 8 * 3) * 4
    assert number_of_blocks(layer, images, fk.AutomaticBlock(num_bytes)) == 1
    assert number_of_blocks(layer, images, fk.AutomaticBlock(num_bytes - 1)) == 2

    # A batch may be split over several devices. (Another limit, which is traced again.)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert number_of_blocks(points, sets, fk.AutomaticBlock(2)) == 1
    with pytest.raises(ValueError, match="`cache_bytes` must be positive"):
        fk.AutomaticBlock(0)
    with pytest.raises(ValueError, match="`flops_per_byte` must be positive"):
        fk.AutomaticBlock(flops_per_byte=0)
    with pytest.raises(ValueError, match="`memory_bytes` must be positive"):
        fk.AutomaticBlock(memory_bytes=0)


def test_weights_that_are_not_finite(key):
    late = lambda path, t: jnp.where(t > 0.5, jnp.nan, 1.0)
    with pytest.raises(Exception, match="`weighting` returned NaN or infinity"):
        fk.flow_matching_loss(
            fk.Flow(network()), np.ones((16, 2), np.float32), key=key, weighting=late
        )


def test_a_class_in_place_of_an_instance(key):
    x1, flow = np.ones((4, 2), np.float32), fk.Flow(network())
    with pytest.raises(
        ValueError, match="`times` is the class LogitNormal; give an inst"
    ):
        fk.flow_matching_loss(flow, x1, key=key, times=fk.LogitNormal)
    with pytest.raises(ValueError, match="`network` is the class Linear; give an inst"):
        fk.Flow(Linear)
    message = "`path` is the class CosinePath; give an instance of it"
    for make in (
        lambda: fk.Flow(network(), path=fk.CosinePath),
        lambda: fk.Flow(network(), fk.CosinePath),
    ):
        with pytest.raises(TypeCheckError, match=message):
            make()
    with pytest.raises(TypeCheckError, match="`solver` is the class Tsit5; give an"):
        fk.sample(flow, (2,), num_samples=1, solver=dfx.Tsit5, key=key)
    # Here the class is right, and something else is wrong.
    with pytest.raises(TypeCheckError, match="'out_size'"):
        fk.nn.SetTransformer(2, "3", block=fk.nn.ISAB, key=key)


def swapped(x, t, cond):
    return x


WRONG_SIGNATURES = {
    "without a condition": (lambda t, x: x, r"but takes `\(t, x\)`: too many pos"),
    "without a time": (
        eqx.nn.MLP(2, 2, 4, 1, key=jr.key(0)),
        r"takes `\(x, \*, key=No",
    ),
    "swapped": (swapped, r"but takes `\(x, t, cond\)`: their order differs"),
    "more": (lambda t, x, cond, *, width: x, "missing a required .*: 'width'"),
}


@pytest.mark.parametrize(
    ("network", "message"), WRONG_SIGNATURES.values(), ids=WRONG_SIGNATURES
)
def test_the_signature_of_a_network(network, message):
    start = r"`network` must take the arguments `\(t, x, cond"
    with pytest.raises(ValueError, match=f"{start}.*{message}"):
        fk.Flow(network)


def test_the_signatures_that_a_network_may_have(key):
    class Network(eqx.Module):
        def __call__(self, t, x, cond=None, *, key):
            return x

    x = jnp.ones(2)
    every = lambda *args, **keywords: args[1]
    renamed = lambda time, y, args: y
    for network in (Network(), every, renamed, jax.jit(renamed)):
        np.testing.assert_array_equal(fk.Flow(network)(0.5, x, key=key), x)


def test_the_signature_of_times(key):
    x1, flow = np.ones((4, 2), np.float32), fk.Flow(network())
    ones = lambda num: jnp.ones(num)
    message = r"`times` must take the arguments `\(num, \*, key\)`, but takes `\(num\)`"
    with pytest.raises(ValueError, match=message):
        fk.flow_matching_loss(flow, x1, key=key, times=ones)


def test_float64_input_does_not_warn(key):
    flow, x = fk.Flow(network()), np.ones((4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert flow(np.float64(0.5), x[0]).dtype == jnp.float32
        assert flow.predict(fk.Target(), np.array(0.5), x[0]).dtype == jnp.float32
        fk.flow_matching_loss(flow, x, key=key)


def test_strict_rank_promotion(key):
    x1, mask = np.ones((4, 3, 2), np.float32), np.ones((4, 3), bool)
    flow = fk.Flow(network())
    with jax.numpy_rank_promotion("raise"):
        fk.flow_matching_loss(flow, x1, key=key, mask=mask, block=2)
        fk.explained_velocity(flow, x1, key=key, mask=mask, bins=np.int64(2))
        head = fk.MixtureHead(np.int64(3))
        output = jnp.ones((3, head.out_size(2)))
        head.error(output, jnp.ones((3, 2)), mask[0])


def test_assignment_against_scipy_and_everything_follows(key):
    x0key, x1key = jr.split(key)
    x0, x1 = jr.normal(x0key, (32, 2, 3)), jr.normal(x1key, (32, 2, 3))
    pairing = fk.assignment(x0, x1, key=key)
    cost = np.sum((np.asarray(x1)[:, None] - np.asarray(x0)[None]) ** 2, axis=(2, 3))
    np.testing.assert_array_equal(pairing.source, linear_sum_assignment(cost)[1])
    assert sorted(pairing.source.tolist()) == list(range(32))
    assert pairing.data is None


def test_assignment_of_batches_far_from_the_origin(key):
    """In float32 the squared norms of such points have no digits left for their differences."""
    x0key, x1key = jr.split(key)
    x0, x1 = jr.normal(x0key, (64, 2)), jr.normal(x1key, (64, 2)) + 1e4
    cost = np.sum(
        (np.asarray(x1, np.float64)[:, None] - np.asarray(x0, np.float64)[None]) ** 2,
        axis=2,
    )
    rows = np.arange(64)
    got, best = (
        cost[rows, fk.assignment(x0, x1, key=key).source].sum(),
        cost[linear_sum_assignment(cost)].sum(),
    )
    # Rounding the data to float32 at 1e4 moves each by up to 5e-4.
    assert got - best < 64 * 4 * 5e-4


def test_assignment_sorts_in_one_dimension(key):
    x0, x1 = (
        np.array([[3.0], [-1.0], [0.5]], np.float32),
        np.array([[0.0], [9.0], [-5.0]], np.float32),
    )
    np.testing.assert_array_equal(
        x0[np.asarray(fk.assignment(x0, x1, key=key).source)].ravel(), [0.5, 3.0, -1.0]
    )


def test_labels_and_masks_follow_their_data(key):
    """A coupling that reverses the data, and a network that subtracts its label: the
    loss must not change."""

    def reverse(x0, x1, cond, *, key):
        return fk.Pairing(
            data=jnp.arange(x1.shape[0])[::-1], source=jnp.arange(x1.shape[0])[::-1]
        )

    class ByLabel(eqx.Module):
        def __call__(self, t, x, cond, mask=None):
            return x * 0 + cond["label"] - jnp.sum(jnp.where(mask[:, None], x, 0))

    x1 = jr.normal(key, (8, 3, 2))
    cond = {"label": jnp.arange(8.0)}
    mask = np.array(jr.bernoulli(key, 0.6, (8, 3)))
    mask[:, 0] = True
    times = lambda num, key: jnp.full(num, 0.3)
    losses = [
        fk.flow_matching_loss(
            fk.Flow(ByLabel()),
            x1,
            cond,
            key=key,
            times=times,
            coupling=coupling,
            mask=mask,
        )
        for coupling in (fk.independent, reverse)
    ]
    assert losses[0] == pytest.approx(float(losses[1]), rel=1e-6)


def test_weights_of_a_pairing_scale_the_errors(key):
    doubled = lambda x0, x1, cond, *, key: fk.Pairing(
        weights=jnp.full(x0.shape[0], 2.0)
    )
    x1, flow = jr.normal(key, (8, 2)), fk.Flow(network())
    once, twice = (
        fk.flow_matching_loss(flow, x1, key=key, coupling=c)
        for c in (fk.independent, doubled)
    )
    assert twice == pytest.approx(2 * float(once))


def test_explained_velocity_of_the_exact_flow_is_one(key):
    xkey, ekey = jr.split(key)
    exact = fk.exact_flow(mixture_2d())
    report = fk.explained_velocity(
        exact, mixture_2d().sample((4000, 2), key=xkey), key=ekey, floor=exact
    )
    np.testing.assert_allclose(report.r2, np.ones(10), atol=1e-6)
    np.testing.assert_allclose(report.times, np.arange(0.05, 1, 0.1), rtol=1e-6)


def test_explained_velocity_without_a_floor(key):
    """One Gaussian: 1 - Var(v_c | x_t) / Var(v_c), with Var(v_c | x_t) = s^2 / c_t^2
    and Var(v_c) = 1 + s^2."""
    std, num = 0.5, 200_000
    xkey, ekey = jr.split(key)
    x1 = fk.Normal(1.3, std).sample((num, 1), key=xkey)
    report = fk.explained_velocity(
        fk.exact_flow(fk.Normal(1.3, std)), x1, key=ekey, bins=5
    )
    t = np.linspace(0, 1, 1001)
    floor = std**2 / ((1 - t) ** 2 + t**2 * std**2)
    expected = 1 - np.array(
        [floor[i * 200 : i * 200 + 201].mean() for i in range(5)]
    ) / (1 + std**2)
    # The ratio of two means over num / 5 squares of normals: a relative error of about
    # sqrt(2 / (num / 5)) each.
    np.testing.assert_allclose(report.r2, expected, atol=5 * 2 * np.sqrt(2 / (num / 5)))
    assert report.total == pytest.approx(float(report.r2.mean()), abs=0.01)


def test_explained_velocity_far_from_the_origin(key):
    """Moving data and flow together moves nothing else."""
    reports = []
    for offset in (0.0, 1000.0):
        data = fk.Normal(offset, 0.5)
        x1 = jr.normal(key, (2000, 1)) * 0.5 + offset
        reports.append(fk.explained_velocity(fk.exact_flow(data), x1, key=key, bins=4))
    np.testing.assert_allclose(reports[1].r2, reports[0].r2, atol=2e-3)


def test_explained_velocity_in_half_precision(key):
    """A sum of bfloat16 numbers ends at 256 of its terms, one of float16 at 2048."""
    exact = fk.exact_flow(fk.Normal(1.3, 0.5))
    x1 = fk.Normal(1.3, 0.5).sample((20_000, 1), key=key)
    expected = fk.explained_velocity(exact, x1, key=key)
    for dtype in (jnp.bfloat16, jnp.float16):
        report = fk.explained_velocity(exact, x1.astype(dtype), key=key)
        # The draws are the same, rounded.
        np.testing.assert_allclose(report.r2, expected.r2, atol=0.01)
        np.testing.assert_allclose(report.total, expected.total, atol=1e-3)


def test_explained_velocity_has_the_weights_of_the_loss(key):
    """Errors and variance follow from losses of constants, quadratic in the constant."""
    weights = jnp.linspace(0, 3, 64)
    coupling = lambda x0, x1, cond, *, key: fk.Pairing(weights=weights)
    x1 = jr.normal(key, (64, 1)) * jnp.linspace(1, 4, 64)[:, None]
    shared = {"key": key, "coupling": coupling}

    constant = lambda c: fk.Flow(lambda t, x, cond: 0 * x + c)
    losses = [
        fk.flow_matching_loss(constant(c), x1, times=fk.stratified, **shared)
        for c in (0.0, 1.0)
    ]
    weight = weights.mean()
    mean = 0.5 * (losses[0] - losses[1] + weight) / weight
    variance = losses[0] - weight * mean**2
    report = fk.explained_velocity(constant(1.0), x1, bins=1, **shared)
    np.testing.assert_allclose(report.total, 1 - losses[1] / variance, rtol=1e-3)


def test_explained_velocity_of_single_examples(key):
    report = fk.explained_velocity(
        fk.Flow(network()), jr.normal(key, (8, 2)), key=key, bins=20
    )
    assert np.sum(np.isnan(report.r2)) >= 12
    assert not np.isinf(report.total)


def test_explained_velocity_of_the_mean_is_zero(key):
    x1 = fk.Normal(2.0, 1.0).sample((50_000, 1), key=key)
    report = fk.explained_velocity(
        fk.Flow(lambda t, x, cond: 0 * x + 2.0), x1, key=jr.key(1)
    )
    np.testing.assert_allclose(report.r2, np.zeros(10), atol=5e-3)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_losses_are_finite_at_the_ends_of_time(path):
    """Of all predictions, in one program."""
    ends = lambda num, key: jnp.linspace(0, 1, num)
    options = {"times": ends, "weighting": fk.likelihood_weighting, "key": jr.key(0)}
    loss = lambda flow: fk.flow_matching_loss(flow, jnp.ones((5, 2)), **options)

    @eqx.filter_jit
    def results(flows):
        return [eqx.filter_value_and_grad(loss)(flow) for flow in flows]

    flows = [fk.Flow(network(), path, kind) for kind in PREDICTIONS.values()]
    for name, (value, gradient) in zip(PREDICTIONS, results(flows), strict=True):
        assert np.isfinite(value), name
        assert np.all(np.isfinite(gradient.network.weight)), name


SLOW_END = fk.AffinePath(lambda t: t * (2 - t), lambda t: (1 - t) ** 2)


@pytest.mark.parametrize("path", [fk.PolynomialPath(2), SLOW_END], ids=["start", "end"])
@pytest.mark.parametrize("kind", [fk.Noise(), fk.Target()])
def test_errors_of_paths_that_stand_still_are_finite(path, kind, key):
    """The velocity says nothing about data and noise there, where uniform times may be 0."""
    x1 = jr.normal(key, (5, 2))
    ends = lambda num, key: jnp.linspace(0, 1, num)
    options = {"times": ends, "key": key}
    flow = fk.Flow(network(), path)
    errors, t = fk.flow_matching_errors(flow, x1, targets=(kind,), **options)
    assert np.all(np.isfinite(errors))
    velocity, _ = fk.flow_matching_errors(flow, x1, **options)
    c = jax.vmap(path.coefficients)(t[1:-1])
    part = c.alpha if isinstance(kind, fk.Noise) else c.sigma
    ratio = part / (c.d_alpha * c.sigma - c.alpha * c.d_sigma)
    np.testing.assert_allclose(errors[1:-1], ratio**2 * velocity[1:-1], rtol=1e-5)


def test_half_precision_is_finite_at_the_ends_of_time():
    """In bfloat16 1 - 1e-3 is 1."""
    ends = lambda num, key: jnp.linspace(0, 1, num)
    x1 = jnp.ones((5, 2), jnp.bfloat16)
    weight = network(jnp.bfloat16)
    flows = [fk.Flow(weight, fk.LinearPath(), kind) for kind in PREDICTIONS.values()]
    times = jnp.array([0, 1], jnp.bfloat16)

    @eqx.filter_jit
    def results(flows):
        losses = [
            fk.flow_matching_loss(
                flow, x1, times=ends, weighting=weighting, key=jr.key(0)
            )
            for flow in flows
            for weighting in (None, fk.likelihood_weighting)
        ]
        predictions = [
            flow.predict(kind, t, x1[0])
            for flow in flows
            for kind in PREDICTIONS.values()
            for t in times
        ]
        return jnp.stack(losses), jnp.stack(predictions)

    assert all(np.all(np.isfinite(each.astype(float))) for each in results(flows))


def test_the_second_call_compiles_nothing(key):
    x1 = np.zeros((8, 2), np.float32)
    flow = fk.Flow(network())
    calls = [
        lambda key, x1: fk.flow_matching_loss(
            flow, x1, key=key, coupling=fk.assignment, block=4
        ),
        lambda key, x1: fk.flow_matching_errors(
            flow, x1, key=key, times=fk.LogitNormal()
        ),
        lambda key, x1: fk.explained_velocity(flow, x1, key=key),
    ]
    for call in calls:
        call(key, x1)
        with compilations() as events:
            jax.block_until_ready(call(key, x1 + np.float32(1)))
        assert events == []


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"x1": np.zeros((0, 2), np.float32)}, "`x1`"),
        ({"x1": np.zeros(3, np.float32)}, "`x1`"),
        ({"x1": np.full((4, 2), np.nan, np.float32)}, "`x1` holds NaN"),
        ({"cond": np.zeros(3)}, "`cond` must have 4 rows"),
        ({"mask": np.ones((4, 3), bool)}, "`mask` must have shape"),
        ({"mask": np.zeros((4, 2), bool)}, "without any valid point"),
        ({"targets": ()}, "`targets`"),
        ({"cond": [0, 1, 2, 3]}, "`cond` must hold arrays"),
        ({"times": lambda num, key: jnp.zeros(num + 1)}, "`times` must return shape"),
        ({"times": lambda num, key: 0.5}, "`times` must return shape"),
        ({"block": 3}, "`block`"),
    ],
)
@pytest.mark.parametrize("function", [fk.flow_matching_loss, fk.flow_matching_errors])
def test_wrong_values(function, change, fragment, key):
    arguments = {"x1": np.zeros((4, 2), np.float32), "key": key} | change
    with pytest.raises(ValueError, match=fragment):
        function(fk.Flow(network()), **arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"x1": np.zeros((4, 2), np.int32)},
        {"mask": np.ones((4, 2))},
        {"key": jr.PRNGKey(0)},
        {"targets": "velocity"},
    ],
)
def test_wrong_types(change, key):
    arguments = {"x1": np.zeros((4, 2), np.float32), "key": key} | change
    with pytest.raises(TypeCheckError, match=next(iter(change))):
        fk.flow_matching_loss(fk.Flow(network()), **arguments)


def test_coupling_on_unequal_batches(key):
    with pytest.raises(ValueError, match="equal shape"):
        fk.assignment(
            np.zeros((3, 2), np.float32), np.zeros((4, 2), np.float32), key=key
        )


def test_a_law_that_leaves_the_unit_interval(key):
    with pytest.raises(Exception, match="outside"):
        fk.flow_matching_loss(
            fk.Flow(network()),
            np.zeros((4, 2)),
            key=key,
            times=lambda num, key: jnp.full(num, 1.5),
        )


def test_laws_can_be_swept_without_compiling(key):
    x1, flow = jr.normal(key, (8, 2)), fk.Flow(network())
    loss = lambda mean: fk.flow_matching_loss(
        flow, x1, key=key, times=fk.LogitNormal(jnp.asarray(mean), 1.0)
    )
    values = [loss(0.0)]
    with compilations() as events:
        values.append(loss(1.0))
    assert events == []
    assert values[0] != values[1]


def test_targets_may_be_a_list(key):
    x1, flow = jr.normal(key, (8, 2)), fk.Flow(network())
    assert fk.flow_matching_loss(
        flow, x1, key=key, targets=[fk.Velocity()]
    ) == fk.flow_matching_loss(flow, x1, key=key)
