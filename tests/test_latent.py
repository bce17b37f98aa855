import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jaxtyping import TypeCheckError

import flowkit as fk
from flowkit.latent import (
    FlowPrior,
    marginal_kl,
    prior_loss,
    set_flow_loss,
    SetFlow,
    standard_normal_kl,
)

from .oracles import compilations, MEANS, mixture_1d, mixture_2d, STDS, WEIGHTS


def make(key, prior=None, variational=False):
    ekey, fkey = jr.split(key)
    encoder = fk.nn.PointNet(2, 8 if variational else 4, hidden_sizes=(8, 16), key=ekey)
    crn = fk.nn.AdaLNMLP(2, 4, width_size=16, depth=2, cond_size=16, key=fkey)
    crn = fk.testing.perturbed(crn, key=fkey)
    return SetFlow(
        encoder,
        fk.Flow(crn),
        fk.Normal() if prior is None else prior,
        variational=variational,
    )


def flow_prior(key):
    return FlowPrior(fk.Flow(fk.nn.MLP(4, hidden_sizes=(16,), key=key)), 4)


PRIORS = {
    "normal": lambda key: fk.Normal(),
    "mixture": lambda key: fk.GaussianMixture(jr.normal(key, (3, 4))),
    "flow": flow_prior,
}


def clouds(key, num=8, n=6):
    return jr.normal(key, (num, n, 2))


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_the_prior_never_moves_the_encoder(prior, key):
    prior_loss = lambda model: set_flow_loss(model, clouds(key), key=key)[1][
        "prior_loss"
    ]
    gradient = eqx.filter_grad(prior_loss)(make(key, prior(key)))
    assert not any(
        np.any(leaf) for leaf in jax.tree.leaves((gradient.encoder, gradient.flow))
    )
    trained = any(np.any(leaf) for leaf in jax.tree.leaves(gradient.prior))
    assert trained != isinstance(gradient.prior, fk.Normal)


@pytest.mark.parametrize("variational", [False, True], ids=["plain", "variational"])
def test_blocks_give_the_same_loss_and_gradients(variational, key):
    model = make(key, flow_prior(key), variational)
    mask = np.array(jr.bernoulli(key, 0.7, (8, 6)))
    mask[:, 0] = True
    weights = {"marginal_kl_weight": 0.3} | (
        {"vae_kl_weight": 0.5} if variational else {}
    )
    loss = eqx.filter_value_and_grad(
        lambda model, block: set_flow_loss(
            model, clouds(key), key=key, mask=mask, block=block, **weights
        ),
        has_aux=True,
    )
    (whole, parts), whole_gradient = loss(model, None)
    (blocked, blocked_parts), blocked_gradient = loss(model, 2)
    np.testing.assert_allclose(blocked, whole, rtol=1e-5)
    assert set(parts) == {"flow_loss", "prior_loss", "marginal_kl"} | (
        {"vae_kl"} if variational else set()
    )
    for name, value in parts.items():
        np.testing.assert_allclose(blocked_parts[name], value, rtol=1e-5)
    pairs = zip(
        jax.tree.leaves(blocked_gradient), jax.tree.leaves(whole_gradient), strict=True
    )
    for got, expected in pairs:
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_parts_add_up(key):
    model = make(key, flow_prior(key), variational=True)
    total, parts = set_flow_loss(
        model,
        clouds(key),
        key=key,
        vae_kl_weight=0.5,
        marginal_kl_weight=0.3,
        targets=(fk.Velocity(),),
    )
    expected = (
        parts["flow_loss"]
        + parts["prior_loss"]
        + 0.5 * parts["vae_kl"]
        + 0.3 * parts["marginal_kl"]
    )
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    latents, log_variance = jax.vmap(model.posterior)(clouds(key))
    np.testing.assert_allclose(
        parts["vae_kl"], standard_normal_kl(latents, log_variance), rtol=1e-5
    )
    np.testing.assert_allclose(parts["marginal_kl"], marginal_kl(latents), rtol=1e-5)


def test_encoder_mask_hides_from_the_encoder_only(key):
    """Moving a hidden point changes what the flow is trained on, and not the latents; a
    masked one changes nothing."""
    model, points = make(key), np.array(clouds(key))
    mask, encoder_mask = np.ones((8, 6), bool), np.ones((8, 6), bool)
    mask[:, 5], encoder_mask[:, 4] = False, False
    seen = []

    class Spy(eqx.Module):
        inner: fk.nn.PointNet
        in_size: int = 2
        out_size: int = 4

        def __call__(self, points, mask=None, key=None):
            latents = self.inner(points, mask=mask)
            jax.debug.callback(lambda z: seen.append(np.asarray(z)), latents)
            return latents

    spying = eqx.tree_at(lambda m: m.encoder, model, Spy(model.encoder))
    loss = lambda points: set_flow_loss(
        spying, points, key=key, mask=mask, encoder_mask=encoder_mask
    )[0]

    def run(points):
        seen.clear()
        value = loss(points)
        jax.effects_barrier()
        return float(value), np.sort(np.concatenate(seen, axis=None))

    base, base_latents = run(points)
    hidden, masked = points.copy(), points.copy()
    hidden[:, 4] += 3
    masked[:, 5] = np.nan
    assert run(masked)[0] == base
    value, latents = run(hidden)
    assert value != base
    np.testing.assert_array_equal(latents, base_latents)


def test_standard_normal_kl():
    divergence = standard_normal_kl(jnp.array([[0.5]]), 2 * jnp.log(jnp.array([[0.3]])))
    assert float(divergence) == pytest.approx(
        0.5 * (0.25 + 0.09 - 1 - np.log(0.09)), abs=1e-6
    )
    gradient = jax.grad(standard_normal_kl, argnums=(0, 1))(
        jnp.zeros((1, 3)), jnp.zeros((1, 3))
    )
    np.testing.assert_allclose(gradient, np.zeros((2, 1, 3)), atol=1e-7)


def test_marginal_kl():
    """Zero for standardised latents; for others the divergence of two Gaussians with
    their moments."""
    latents = np.array([[[1.0]], [[-1.0]]], np.float32)
    assert float(marginal_kl(latents)) == pytest.approx(0, abs=1e-6)
    expected = 0.5 * (0.09 + 0.25 - 1 - np.log(0.09))
    assert float(marginal_kl(0.3 * latents + 0.5)) == pytest.approx(expected, rel=1e-5)


class Rows(eqx.Module):
    """The exact flow of a vector distribution on every row of `(k, c)`."""

    flow: fk.Flow

    def __call__(self, t, x, cond):
        return jax.vmap(lambda row: self.flow(t, row))(x)


def test_flow_prior_against_the_exact_density(key):
    """With the exact network: the mixture, moved by `mean` and `log_std`."""
    prior = FlowPrior(fk.Flow(Rows(fk.exact_flow(mixture_2d()))), 2)
    shift, log_std = jnp.array([1.0, -2.0]), jnp.array([0.3, -0.5])
    prior = eqx.tree_at(lambda p: (p.mean, p.log_std), prior, (shift, log_std))
    x = jr.normal(key, (3, 4, 2))
    expected = mixture_2d().log_prob((x - shift) / jnp.exp(log_std)) - 12 * jnp.sum(
        log_std
    )
    np.testing.assert_allclose(prior.log_prob(x), expected, rtol=2e-3)
    draws = np.asarray(prior.sample((500, 4, 2), key=key)).reshape(-1, 2)
    exact = np.asarray(mixture_2d().sample((200_000, 2), key=key)) * np.exp(
        log_std
    ) + np.asarray(shift)
    assert np.all(
        np.abs(draws.mean(0) - exact.mean(0)) < 5 * exact.std(0) / np.sqrt(2000)
    )


def test_coordinates_of_a_flow_prior_learn_the_moments(key):
    """At the moments of the latents their gradient is zero."""
    latents = 3 + 0.5 * jr.normal(key, (64, 1, 4))
    prior = flow_prior(key)
    moments = latents.mean((0, 1)), jnp.log(latents.std((0, 1)))
    at_moments = eqx.tree_at(lambda p: (p.mean, p.log_std), prior, moments)
    gradient = eqx.filter_grad(lambda p: prior_loss(p, latents, key=key))
    for leaf in (gradient(at_moments).mean, gradient(at_moments).log_std):
        np.testing.assert_allclose(leaf, np.zeros(4), atol=1e-5)
    assert np.all(np.abs(gradient(prior).mean) > 0.1)


@pytest.mark.slow
def test_a_mixture_prior_recovers_the_mixture(key):
    """Maximum likelihood on samples of the one-dimensional mixture finds its parameters."""
    latents = mixture_1d().sample((20_000, 1, 1), key=key)
    prior = fk.GaussianMixture(jnp.array([[-1.0], [1.0]]))
    optimizer = optax.adam(2e-2)

    @eqx.filter_jit
    def train(prior):
        def step(carry, _):
            prior, state = carry
            gradient = eqx.filter_grad(lambda p: prior_loss(p, latents, key=key))(prior)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradient, state)
            return (eqx.apply_updates(prior, updates), state), None

        return jax.lax.scan(step, (prior, optimizer.init(prior)), length=600)[0][0]

    prior = train(prior)
    np.testing.assert_allclose(prior.means[:, 0], MEANS, atol=0.05)
    np.testing.assert_allclose(np.sqrt(prior.covariances[:, 0, 0]), STDS, atol=0.05)
    np.testing.assert_allclose(prior.weights, WEIGHTS, atol=0.02)


class MeanEncoder(eqx.Module):
    """The mean of a cloud is its latent."""

    in_size: int = 2
    out_size: int = 2

    def __call__(self, points, mask=None, key=None):
        weights = jnp.ones(len(points)) if mask is None else mask.astype(points.dtype)
        return (weights @ points / weights.sum())[None]


class GaussianCloud(eqx.Module):
    """The exact velocity of points that are N(latent, 0.5^2)."""

    def __call__(self, t, x, latents, mask=None):
        variance = (1 - t) ** 2 + (0.5 * t) ** 2
        return latents + (0.25 * t - (1 - t)) / variance * (x - t * latents)


def exact_model():
    return SetFlow(MeanEncoder(), fk.Flow(GaussianCloud()), fk.Normal(3.0, 0.1))


def test_reconstruction_by_the_exact_flow(key):
    """Any number of points, around the mean of the cloud that was encoded."""
    cloud = jnp.array([[1.0, -2.0], [3.0, -4.0], [99.0, 99.0]])
    mask = np.array([True, True, False])
    points = np.asarray(
        exact_model().reconstruct(cloud, mask, num_points=4000, key=key)
    )
    assert points.shape == (4000, 2)
    np.testing.assert_allclose(
        points.mean(0), [2.0, -3.0], atol=4 * 0.5 / np.sqrt(4000)
    )
    np.testing.assert_allclose(points.std(0), [0.5, 0.5], atol=4 * 0.5 / np.sqrt(8000))
    assert exact_model().reconstruct(cloud, mask, key=key).shape == (3, 2)


def test_points_with_latents_of_their_own_see_no_padding(key):
    """The cloud is that of the valid points alone: masked ones are not attended to."""
    ekey, fkey = jr.split(key)
    options = {"width_size": 8, "depth": 1, "num_heads": 2}
    encoder = fk.nn.SetTransformer(2, 4, **options, key=ekey)
    network = fk.nn.DiT(2, 4, conditioner=fk.nn.PerPoint(), **options, key=fkey)
    network = fk.testing.perturbed(network, key=fkey, scale=0.2)
    model = SetFlow(encoder, fk.Flow(network), fk.Normal())

    cloud = clouds(key)[0]
    padded = jnp.concatenate([cloud, jnp.full((4, 2), jnp.nan)])
    solve = {"key": key, "solver": fk.RK4(), "num_steps": 4}
    found = model.reconstruct(padded, np.arange(10) < 6, **solve)
    expected = model.reconstruct(cloud, **solve)
    np.testing.assert_allclose(found[:6], expected, rtol=1e-3, atol=1e-4)
    assert not np.any(found[6:])


def test_samples_from_the_prior(key):
    model = exact_model()
    mask = np.ones((200, 20), bool)
    mask[:, 15:] = False
    samples = model.sample(20, num_samples=200, key=key, mask=mask)
    values = np.asarray(samples.values)
    assert values.shape == (200, 20, 2)
    assert np.all(values[:, 15:] == 0)
    np.testing.assert_allclose(
        values[:, :15].mean(), 3.0, atol=5 * np.sqrt(0.01 / 400 + 0.25 / 6000)
    )
    assert samples.stats.evaluations.shape == (200,)


def test_shapes_and_modes(key):
    plain, variational = make(key), make(key, variational=True)
    cloud = clouds(key)[0]
    for model in (plain, variational):
        assert model.latent_shape == (1, 4)
        assert model.encode(cloud).shape == (1, 4)
    mean, log_variance = variational.posterior(cloud)
    np.testing.assert_array_equal(variational.encode(cloud), mean)
    draws = jax.vmap(lambda key: variational.encode(cloud, key=key))(
        jr.split(key, 4000)
    )
    np.testing.assert_allclose(
        draws.mean(0),
        mean,
        atol=5 * float(jnp.exp(log_variance / 2).max()) / np.sqrt(4000),
    )
    np.testing.assert_allclose(draws.std(0), jnp.exp(0.5 * log_variance), rtol=0.1)
    np.testing.assert_array_equal(plain.encode(cloud, key=key), plain.encode(cloud))


def test_variational_models_are_trained_on_the_target_too(key):
    """Unless `targets` says otherwise: the sum of the velocity and the target error, (1
    - t)^2 of it."""
    model, x = make(key, variational=True), clouds(key)
    both = set_flow_loss(model, x, key=key)[1]["flow_loss"]
    parts = [
        set_flow_loss(model, x, key=key, targets=(p,))[1]["flow_loss"]
        for p in (fk.Velocity(), fk.Target())
    ]
    np.testing.assert_allclose(both, sum(parts), rtol=1e-6)


class Dropped(eqx.Module):
    """An encoder with dropout, which needs a key in training."""

    inner: fk.nn.PointNet
    dropout: eqx.nn.Dropout
    in_size: int = 2
    out_size: int = 4

    def __call__(self, points, mask=None, key=None):
        return self.dropout(self.inner(points, mask=mask), key=key)


def test_encoders_that_draw(key):
    model = make(key)
    model = eqx.tree_at(
        lambda m: m.encoder, model, Dropped(model.encoder, eqx.nn.Dropout(0.5))
    )
    loss, parts = set_flow_loss(
        model, clouds(key), key=key, marginal_kl_weight=0.1, block=4
    )
    assert np.isfinite(loss)
    assert np.isfinite(parts["marginal_kl"])
    assert model.latent_shape == (1, 4)
    assert model.sample(5, num_samples=2, key=key).values.shape == (2, 5, 2)
    assert model.reconstruct(clouds(key)[0], key=key).shape == (6, 2)
    assert not np.array_equal(
        model.encode(clouds(key)[0], key=key),
        model.encode(clouds(key)[0], key=jr.key(1)),
    )


def test_weights_can_be_swept_without_compiling(key):
    model = make(key, variational=True)
    loss = lambda weight: set_flow_loss(
        model,
        clouds(key),
        key=key,
        vae_kl_weight=weight,
        marginal_kl_weight=2 * weight,
        targets=(fk.Velocity(),),
    )
    loss(0.1)
    with compilations() as events:
        total, parts = loss(0.3)
    assert events == []
    expected = (
        parts["flow_loss"]
        + parts["prior_loss"]
        + 0.3 * parts["vae_kl"]
        + 0.6 * parts["marginal_kl"]
    )
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_the_second_call_compiles_nothing(key):
    model, x = make(key, flow_prior(key)), np.array(clouds(key))
    calls = [
        lambda key: set_flow_loss(model, x, key=key, block=4),
        lambda key: model.reconstruct(x[0], key=key),
        lambda key: model.sample(5, num_samples=3, key=key).values,
        lambda key: prior_loss(model.prior, x[:, :2].reshape(8, 1, 4), key=key),
    ]
    for call in calls:
        jax.block_until_ready(call(key))
        other = jr.key(2)
        with compilations() as events:
            jax.block_until_ready(call(other))
        assert events == []


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda m, x, k: set_flow_loss(m, x[:0], key=k), "`points`"),
        (lambda m, x, k: set_flow_loss(m, x * np.nan, key=k), "`points` holds NaN"),
        (
            lambda m, x, k: set_flow_loss(
                m, x, key=k, mask=np.zeros(x.shape[:2], bool)
            ),
            "without any valid point",
        ),
        (
            lambda m, x, k: set_flow_loss(m, x, key=k, vae_kl_weight=1.0),
            "`vae_kl_weight`",
        ),
        (
            lambda m, x, k: set_flow_loss(
                m, x, key=k, encoder_mask=np.zeros((8, 6), bool)
            ),
            "`encoder_mask` leaves",
        ),
        (lambda m, x, k: m.encode(x[0], np.zeros(6, bool)), "`mask` leaves"),
        (lambda m, x, k: set_flow_loss(m, x, key=k, block=3), "`block`"),
        (
            lambda m, x, k: SetFlow(
                fk.nn.PointNet(2, 5, key=k), m.flow, fk.Normal(), variational=True
            ),
            "`encoder`",
        ),
    ],
)
def test_wrong_use(call, fragment, key):
    with pytest.raises(ValueError, match=fragment):
        call(make(key), np.array(clouds(key)), key)


def test_wrong_shapes(key):
    with pytest.raises(TypeCheckError, match="encoder_mask"):
        set_flow_loss(
            make(key), clouds(key), key=key, encoder_mask=np.ones((8, 2), bool)
        )
