"""Mixtures as outputs: likelihood and mean against scipy, training, misuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import flowkit as fk


def by_scipy(head, output, target):
    """The mean and the negative log-likelihood of one vector, component by component."""
    log_weights, means, std = jax.tree.map(
        np.asarray, head.components(output, len(target))
    )
    terms = [multivariate_normal.logpdf(target, mean, std**2) for mean in means]
    return np.exp(log_weights) @ means, -logsumexp(log_weights + np.array(terms))


def test_mean_and_likelihood_against_scipy(key):
    head = fk.MixtureHead(3)
    output, target = jr.normal(key, (5, head.out_size(2))), jr.normal(jr.key(1), (5, 2))
    means, values = zip(
        *[by_scipy(head, o, x) for o, x in zip(output, target, strict=True)],
        strict=True,
    )
    np.testing.assert_allclose(head.mean(output, target), np.stack(means), rtol=1e-5)
    np.testing.assert_allclose(head.error(output, target), np.mean(values), rtol=1e-5)
    mask = np.array([True, False, True, True, False])
    np.testing.assert_allclose(
        head.error(output, target, mask), np.mean(np.array(values)[mask]), rtol=1e-5
    )
    log_weights, _, std = head.components(output, 2)
    np.testing.assert_allclose(jnp.exp(log_weights).sum(-1), np.ones(5), rtol=1e-6)
    np.testing.assert_allclose(std**2, np.exp(2 * output[:, -1]) + 1e-4, rtol=1e-5)


class Linear(eqx.Module):
    """A network of any output width, wrong everywhere, for vectors or clouds."""

    weight: jax.Array

    def __call__(self, t, x, cond, mask=None):
        return x @ self.weight + t


class WithFixedStd(eqx.Module):
    """The same output with a logit and a logarithm of the standard deviation around it."""

    inner: Linear

    def __call__(self, t, x, cond, mask=None):
        value, zero = self.inner(t, x, cond), jnp.zeros((*x.shape[:-1], 1))
        return jnp.concatenate([zero, value, zero], -1)


@pytest.mark.parametrize("prediction", [fk.Velocity(), fk.Target()])
def test_one_component_of_fixed_width_is_the_squared_loss(prediction, key):
    """d / (2 s^2) times the mean square, plus d log(s sqrt(2 pi)).

    The gradient has the same factor.
    """
    x1 = np.array(jr.normal(key, (8, 5, 2)))
    mask = np.arange(5) < np.arange(8)[:, None] % 5 + 1
    x1[~mask] = np.nan
    linear = Linear(jnp.array([[0.5, -0.2], [0.3, 0.8]]))
    point = fk.Flow(linear, prediction=prediction)
    mixture = fk.Flow(
        WithFixedStd(linear), prediction=prediction, head=fk.MixtureHead(1)
    )
    variance = 1 + 1e-4
    losses = [
        eqx.filter_value_and_grad(
            lambda flow, block=block: fk.flow_matching_loss(
                flow, x1, mask=mask, targets=(prediction,), block=block, key=key
            )
        )(flow)
        for flow, block in ((point, None), (mixture, None), (mixture, 4))
    ]
    (squared, gradient), *others = losses
    for value, other in others:
        np.testing.assert_allclose(
            value, squared / variance + np.log(2 * np.pi * variance), rtol=1e-5
        )
        np.testing.assert_allclose(
            other.network.inner.weight, gradient.network.weight / variance, rtol=1e-4
        )
    np.testing.assert_allclose(
        mixture(0.3, x1[4], mask=mask[4]), point(0.3, x1[4], mask=mask[4]), rtol=1e-5
    )


def test_a_fresh_network_is_the_velocity_zero(key):
    """Its components differ, so that training can tell them apart."""
    head = fk.MixtureHead(4)
    flow = fk.Flow(
        fk.nn.MLP(2, head.out_size(2), hidden_sizes=(8,), key=key), head=head
    )
    x = jr.normal(key, (2,))
    np.testing.assert_allclose(flow(0.3, x), np.zeros(2), atol=1e-6)
    means = head.components(flow.output(0.3, x), 2).means
    distances = np.linalg.norm(means[:, None] - means[None], axis=-1) + 9 * np.eye(4)
    assert distances.min() > 0.1
    samples = fk.sample(flow, (2,), num_samples=3, key=key)
    np.testing.assert_allclose(samples.values, jr.normal(key, (3, 2)), atol=1e-5)


class Constant(eqx.Module):
    output: jax.Array

    def __call__(self, t, x, cond):
        return self.output


def trained(head, size, steps, key):
    """The best constant output at t = 0 for data at -1 (70%) and 1.

    Velocities are x1 - x0, with noise that is small.
    """
    x1 = jnp.where(jnp.arange(1000)[:, None] < 700, -1.0, 1.0)
    options = {"source": fk.Normal(0.0, 0.1), "times": lambda num, key: jnp.zeros(num)}
    loss = lambda output, key: fk.flow_matching_loss(
        fk.Flow(Constant(output), head=head), x1, key=key, **options
    )
    optimizer = optax.adam(3e-2)

    @jax.jit
    def train(output):
        def step(carry, key):
            output, state = carry
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(jax.grad(loss)(output, key), state)
            return (output + updates, state), None

        return jax.lax.scan(
            step, (output, optimizer.init(output)), jr.split(key, steps)
        )[0][0]

    return fk.Flow(Constant(train(jnp.zeros(size))), head=head)


def test_both_modes_of_a_two_valued_target(key):
    """The squared loss finds the mean -0.4.

    The mixture finds -1 and 1, their weights and width, and the same mean.
    """
    mean = trained(fk.PointHead(), 1, 400, key)
    np.testing.assert_allclose(mean(0.0, jnp.zeros(1)), [-0.4], atol=0.03)
    head = fk.MixtureHead(2)
    mixture = trained(head, head.out_size(1), 600, key)
    log_weights, means, std = head.components(mixture.network.output, 1)
    order = np.argsort(means[:, 0])
    np.testing.assert_allclose(means[order, 0], [-1, 1], atol=0.02)
    np.testing.assert_allclose(jnp.exp(log_weights)[order], [0.7, 0.3], atol=0.03)
    np.testing.assert_allclose(std, 0.1, atol=0.01)
    np.testing.assert_allclose(mixture(0.0, jnp.zeros(1)), [-0.4], atol=0.05)


@pytest.mark.parametrize("variational", [False, True])
def test_in_a_set_flow(variational, key):
    """Trained by the likelihood alone, also in variational models.

    Masked points have no influence, and it samples.
    """
    head = fk.MixtureHead(3)
    encoder = fk.nn.PointNet(2, 4, hidden_sizes=(8,), key=key)
    options = {
        "out_size": head.out_size(2),
        "width_size": 8,
        "depth": 1,
        "cond_size": 8,
    }
    network = fk.testing.perturbed(
        fk.nn.AdaLNMLP(2, 2 if variational else 4, **options, key=key), key=key
    )
    model = fk.latent.SetFlow(
        encoder, fk.Flow(network, head=head), fk.Normal(), variational=variational
    )
    points, mask = (
        np.array(jr.normal(key, (4, 6, 2))),
        np.arange(6) < np.array([[6], [4], [2], [1]]),
    )
    results = []
    for fill in (0.0, np.nan):
        points[~mask] = fill
        loss = lambda model: fk.latent.set_flow_loss(
            model, points, mask=mask, prior_weight=0, key=key
        )[0]
        results.append(eqx.filter_value_and_grad(loss)(model))
    assert np.isfinite(results[0][0])
    for first, second in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(first, second)
    assert model.sample(
        5, num_samples=2, num_steps=4, solver=fk.RK4(), key=key
    ).values.shape == (2, 5, 2)


def mixture_flow(width=7):
    return fk.Flow(Linear(jnp.zeros((2, width))), head=fk.MixtureHead(2))


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda k: fk.MixtureHead(0), "`num_components`"),
        (lambda k: fk.MixtureHead(2, min_std=0.0), "`min_std`"),
        (
            lambda k: mixture_flow(6)(0.5, jnp.zeros(2)),
            r"`network` must return arrays \(..., 7\)",
        ),
        (
            lambda k: fk.Flow(lambda t, x, cond: x[0], head=fk.MixtureHead(2))(
                0.5, jnp.zeros((3, 2))
            ),
            "for each of",
        ),
        (
            lambda k: fk.flow_matching_loss(
                mixture_flow(), jnp.zeros((4, 2)), targets=(fk.Noise(),), key=k
            ),
            "`targets`",
        ),
        (
            lambda k: fk.flow_matching_errors(
                mixture_flow(),
                jnp.zeros((4, 2)),
                weighting=fk.likelihood_weighting,
                key=k,
            ),
            "`weighting`",
        ),
    ],
)
def test_wrong_use(call, fragment, key):
    with pytest.raises(ValueError, match=fragment):
        call(key)
