"""Conditional priors, the two stages of a loss, divergences from a prior, normalised latents."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

import flowkit as fk
from flowkit.latent import (
    FlowPrior,
    prior_loss,
    sampled_kl,
    set_flow_loss,
    set_prior_loss,
    SetFlow,
    standard_normal_kl,
)

from .oracles import mixture_1d, mixture_log_prob


class Around(fk.AbstractDistribution):
    """N(weight cond, 1): a conditional prior with a density in closed form."""

    weight: jax.Array

    def sample(self, shape, *, key, cond=None):
        return self.weight * cond[..., None, :] + jr.normal(key, shape)

    def log_prob(self, x, cond=None):
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, self.weight * cond[..., None, :]))


class Mean(eqx.Module):
    """The mean of a cloud is its latent, with a weight; as a variational encoder with
    log-variances of -2."""

    weight: jax.Array
    in_size: int = 2
    out_size: int = eqx.field(static=True, default=2)

    def __call__(self, points, mask=None, key=None):
        weights = jnp.ones(len(points)) if mask is None else mask.astype(points.dtype)
        mean = (
            self.weight
            * (weights @ jnp.where(weights[:, None] > 0, points, 0) / weights.sum())[
                None
            ]
        )
        return (
            mean
            if self.out_size == 2
            else jnp.concatenate([mean, jnp.full((1, 2), -2.0)], -1)
        )


class Towards(eqx.Module):
    """The velocity is the latent, so that a point ends at its noise plus the latent."""

    weight: jax.Array

    def __call__(self, t, x, latents, mask=None):
        return jnp.broadcast_to(self.weight * latents, x.shape)


ONE = jnp.array(1.0)


def make(prior=None, *, variational=False, **options):
    encoder = Mean(ONE, out_size=4 if variational else 2)
    flow = fk.Flow(Towards(ONE))
    return SetFlow(
        encoder,
        flow,
        Around(ONE) if prior is None else prior,
        variational=variational,
        **options,
    )


def clouds(key, num=8):
    return jr.normal(key, (num, 5, 2))


class ExactConditional(eqx.Module):
    """The exact velocity towards rows that are N(cond, 1), cond `(2,)`."""

    def __call__(self, t, x, cond):
        return cond + (t - (1 - t)) / (t**2 + (1 - t) ** 2) * (x - t * cond)


def test_latents_of_another_size_are_refused(key):
    prior = FlowPrior(fk.exact_flow(fk.Normal()), 1)
    latents = jnp.ones((2, 3, 4))
    with pytest.raises(ValueError, match=r"`x` must be \(..., k, 1\)"):
        prior.log_prob(latents)
    with pytest.raises(ValueError, match="`shape` must be"):
        prior.sample(latents.shape, key=key)
    with pytest.raises(ValueError, match="`latents` must be"):
        prior_loss(prior, latents, key=key)


def test_conditional_flow_prior_against_its_density(key):
    """With the exact network: N(m + s cond, s^2) in every row; leading axes of latents
    and condition agree."""
    prior = FlowPrior(fk.Flow(ExactConditional()), 2)
    m, s = jnp.array([1.0, -2.0]), jnp.array([0.5, 2.0])
    prior = eqx.tree_at(lambda p: (p.mean, p.log_std), prior, (m, jnp.log(s)))
    cond = jr.normal(key, (3, 4, 2))
    x = 1.5 * jr.normal(jr.key(1), (3, 4, 5, 2))
    expected = norm.logpdf(
        x, m + s * cond[:, :, None], np.broadcast_to(s, (3, 4, 5, 2))
    ).sum()
    np.testing.assert_allclose(prior.log_prob(x, cond), expected, rtol=1e-4)
    one = norm.logpdf(x[0, 0], m + s * cond[0, 0], np.broadcast_to(s, (5, 2))).sum()
    np.testing.assert_allclose(prior.log_prob(x[0, 0], cond[0, 0]), one, rtol=1e-4)
    labels = jnp.repeat(jnp.array([[3.0, 0.0], [-3.0, 1.0]]), 400, axis=0)
    draws = np.asarray(prior.sample((800, 1, 2), key=key, cond=labels)).reshape(
        2, 400, 2
    )
    assert np.all(
        np.abs(draws.mean(1) - (m + s * labels[::400])) < 4 * np.asarray(s) / 20
    )
    with pytest.raises(ValueError, match="leading axes"):
        prior.sample((7, 1, 2), key=key, cond=labels)


def reverse(x0, x1, cond, *, key):
    return fk.Pairing(data=jnp.arange(x1.shape[0])[::-1])


def test_the_condition_follows_its_cloud(key):
    """The prior's loss in closed form, also if a coupling permutes the clouds, and in blocks."""
    points, cond = clouds(key), jr.normal(jr.key(1), (8, 2))
    expected = -norm.logpdf(points.mean(1), cond).mean()
    for options in ({}, {"coupling": reverse}, {"block": 4, "coupling": reverse}):
        total, parts = set_flow_loss(make(), points, key=key, cond=cond, **options)
        np.testing.assert_allclose(parts["prior_loss"], expected, rtol=1e-5)
        np.testing.assert_allclose(total, parts["flow_loss"] + expected, rtol=1e-5)


def test_weight_of_the_prior(key):
    """A number 0 leaves the prior out, also one that could not be evaluated; others
    scale its loss."""
    points, cond = clouds(key), jnp.ones((8, 2))
    total, parts = set_flow_loss(make(), points, key=key, cond=cond, prior_weight=0.25)
    np.testing.assert_allclose(
        total, parts["flow_loss"] + 0.25 * parts["prior_loss"], rtol=1e-6
    )
    without = eqx.filter_value_and_grad(
        lambda m, **options: set_flow_loss(
            m, points, key=key, prior_weight=0, **options
        ),
        has_aux=True,
    )
    (value, first), gradient = without(make())
    assert set(first) == {"flow_loss"}
    assert value == parts["flow_loss"]
    assert float(gradient.prior.weight) == 0
    assert float(gradient.encoder.weight) != 0


def test_loss_of_the_second_stage(key):
    """The closed form on masked clouds, in blocks too; only the prior has a gradient."""
    points, cond = np.array(clouds(key)), jr.normal(jr.key(1), (8, 2))
    mask = np.arange(5) < np.arange(8)[:, None] % 5 + 1
    means = np.stack(
        [cloud[valid].mean(0) for cloud, valid in zip(points, mask, strict=True)]
    )
    points[~mask] = np.nan
    loss = eqx.filter_value_and_grad(
        lambda m, block: set_prior_loss(
            m, points, mask=mask, cond=cond, block=block, key=key
        ),
        has_aux=True,
    )
    for block in (None, 2):
        (value, parts), gradient = loss(make(), block)
        np.testing.assert_allclose(value, -norm.logpdf(means, cond).mean(), rtol=1e-5)
        assert parts == {"prior_loss": value}
        assert (
            float(gradient.encoder.weight) == float(gradient.flow.network.weight) == 0
        )
        np.testing.assert_allclose(
            gradient.prior.weight, np.mean((cond - means) * cond), rtol=1e-5
        )


class Dropped(eqx.Module):
    inner: Mean
    dropout: eqx.nn.Dropout
    in_size: int = 2
    out_size: int = 2

    def __call__(self, points, mask=None, key=None):
        return self.dropout(self.inner(points, mask), key=key)


def test_the_second_stage_sees_the_encoder_in_inference_mode(key):
    model, cond = make(), jnp.ones((8, 2))
    dropping = eqx.tree_at(
        lambda m: m.encoder, model, Dropped(model.encoder, eqx.nn.Dropout(0.5))
    )
    losses = [
        set_prior_loss(m, clouds(key), cond=cond, key=key)[0] for m in (model, dropping)
    ]
    assert losses[0] == losses[1]


def test_sampled_kl_against_quadrature(key):
    """KL(N(0.5, 0.8^2) | mixture) in 5 standard errors, and its gradient reaches the mixture."""
    mean, log_variance = jnp.array([[0.5]]), jnp.array([[2 * np.log(0.8)]])
    q = lambda z: norm.logpdf(z, 0.5, 0.8)
    expected = quad(lambda z: np.exp(q(z)) * (q(z) - mixture_log_prob(z)), -6, 7)[0]
    estimate = jax.jit(
        jax.vmap(
            lambda key: sampled_kl(
                mean, log_variance, mixture_1d(), num_samples=100, key=key
            )
        )
    )
    values = np.asarray(estimate(jr.split(key, 200)))
    assert abs(values.mean() - expected) < 5 * values.std() / np.sqrt(200)
    gradient = eqx.filter_grad(
        lambda prior: sampled_kl(mean, log_variance, prior, key=key)
    )(mixture_1d())
    assert np.all(np.asarray(gradient.means) != 0)


def test_reductions_of_a_divergence(key):
    """The sum of independent entries is their divergence; the mean is that over their number."""
    mean, log_variance = jr.normal(key, (3, 4)), jr.normal(jr.key(1), (3, 4))
    total = standard_normal_kl(mean, log_variance, jnp.sum)
    np.testing.assert_allclose(
        total, 12 * standard_normal_kl(mean, log_variance), rtol=1e-5
    )
    entries = [standard_normal_kl(mean[i], log_variance[i], jnp.sum) for i in range(3)]
    np.testing.assert_allclose(total, sum(entries), rtol=1e-5)
    sampled = [
        sampled_kl(mean, log_variance, fk.Normal(), reduction=r, key=key)
        for r in (jnp.sum, jnp.mean)
    ]
    np.testing.assert_allclose(sampled[0], 12 * sampled[1], rtol=1e-5)


def test_divergences_in_the_loss(key):
    """By hand: posteriors N(mean, e^-2), against the standard normal and, by sampling,
    against the prior."""
    points, cond = clouds(key, 2000), jnp.full((2000, 2), 0.5)
    model = make(variational=True)
    means = np.asarray(points.mean(1))
    closed = lambda means: 0.5 * (means**2 + np.exp(-2) - 1 + 2)
    part = lambda **options: float(
        set_flow_loss(model, points, cond=cond, vae_kl_weight=1.0, key=key, **options)[
            1
        ]["vae_kl"]
    )
    assert part() == pytest.approx(closed(means).mean(), rel=1e-4)
    assert part(kl_reduction=jnp.sum) == pytest.approx(
        2 * closed(means).mean(), rel=1e-4
    )
    # log q - log p of one draw: (u^2 - e^2) / 2 + 1 with u the distance from the
    # prior's mean, of variance below 1.
    assert part(kl_samples=4) == pytest.approx(
        closed(means - 0.5).mean(), abs=5 * 0.5 / np.sqrt(2000)
    )


def test_normalised_latents(key):
    """Unit length for encoder (means, before the noise) and prior; points end at their latents."""
    prior = fk.Normal(3.0, 2.0)
    model, variational = (
        make(prior, normalize=True),
        make(prior, variational=True, normalize=True),
    )
    points = clouds(key)
    latents = np.asarray(points.mean(1))
    expected = latents / np.linalg.norm(latents, axis=-1, keepdims=True)
    np.testing.assert_allclose(
        jax.vmap(model.encode)(points)[:, 0], expected, rtol=1e-4
    )
    mean, log_variance = jax.vmap(variational.posterior)(points)
    np.testing.assert_allclose(mean[:, 0], expected, rtol=1e-4)
    np.testing.assert_array_equal(log_variance, np.full((8, 1, 2), -2))
    ends = np.asarray(
        model.sample(3, num_samples=50, source=fk.Normal(0.0, 1e-4), key=key).values
    )
    np.testing.assert_allclose(np.linalg.norm(ends, axis=-1), 1.0, atol=1e-3)
    assert np.ptp(ends[:, 0, 0]) > 0.1
    loss = set_prior_loss(model, points, key=key)[0]
    np.testing.assert_allclose(loss, -norm.logpdf(expected, 3.0, 2.0).mean(), rtol=1e-4)
    gradient = eqx.filter_grad(lambda m: jnp.sum(m.encode(jnp.zeros((5, 2)))))(model)
    assert np.isfinite(gradient.encoder.weight)


def test_conditional_samples(key):
    """One condition for each cloud, or one for all of them."""
    still = {"source": fk.Normal(0.0, 1e-3), "key": key}
    cond = jnp.repeat(jnp.array([[9.0, 0.0], [-9.0, 3.0]]), 50, axis=0)
    each = np.asarray(
        make().sample(2, num_samples=100, cond=cond, **still).values
    ).reshape(2, 50, 2, 2)
    np.testing.assert_allclose(each.mean((1, 2)), cond[::50], atol=4 / np.sqrt(50))
    shared = np.asarray(
        make().sample(2, num_samples=50, cond=cond[0], cond_axes=None, **still).values
    )
    np.testing.assert_allclose(shared.mean((0, 1)), cond[0], atol=4 / np.sqrt(50))


def test_priors_over_slots(key):
    """A prior with a transformer has the same density for the slots in any order, one
    with an MLP not."""
    x, order = jr.normal(key, (4, 3)), np.array([2, 0, 3, 1])
    transformer = fk.nn.DiT(
        3, 0, width_size=8, depth=1, num_heads=2, cond_size=8, key=key
    )
    # On a fixed grid: round-off would change the steps of an adaptive solver.
    grid = {"solver": fk.RK4(), "num_steps": 8}
    blind = FlowPrior(fk.Flow(fk.testing.perturbed(transformer, key=key)), 3, **grid)
    mixture = fk.latent.mixture_prior(5, 3, key=key)
    network = fk.testing.perturbed(fk.nn.MLP(12, hidden_sizes=(8,), key=key), key=key)
    for prior in (blind, mixture):
        np.testing.assert_allclose(
            prior.log_prob(x[order]), prior.log_prob(x), rtol=1e-4
        )
    seeing = FlowPrior(fk.Flow(network), 3, **grid)
    assert abs(float(seeing.log_prob(x[order]) - seeing.log_prob(x))) > 1e-2
    assert (
        blind.sample((6, 4, 3), key=key).shape
        == mixture.sample((6, 4, 3), key=key).shape
        == (6, 4, 3)
    )


@pytest.mark.parametrize("prior", [fk.Normal(), fk.GaussianMixture(jnp.zeros((1, 2)))])
def test_plain_distributions_take_no_condition(prior, key):
    model, points, cond = make(prior), clouds(key), jnp.ones((8, 2))
    calls = [
        lambda: set_flow_loss(model, points, cond=cond, key=key),
        lambda: set_prior_loss(model, points, cond=cond, key=key),
        lambda: prior_loss(prior, points[:, :1], cond, key=key),
        lambda: model.sample(5, num_samples=8, cond=cond, key=key),
        lambda: sampled_kl(points[0], points[0], prior, cond, key=key),
    ]
    for call in calls:
        with pytest.raises(
            ValueError,
            match=f"`cond` was given, but the prior, a {type(prior).__name__}",
        ):
            call()


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (
            lambda x, k: set_flow_loss(make(), x, cond=jnp.ones((3, 2)), key=k),
            "`cond` must have 8 rows",
        ),
        (
            lambda x, k: set_prior_loss(make(), x, cond=jnp.ones((3, 2)), key=k),
            "`cond` must have 8 rows",
        ),
        (
            lambda x, k: set_prior_loss(
                make(), x, cond=jnp.ones((8, 2)), block=3, key=k
            ),
            "`block`",
        ),
        (
            lambda x, k: set_prior_loss(
                make(), x * jnp.nan, cond=jnp.ones((8, 2)), key=k
            ),
            "`points` holds NaN",
        ),
        (
            lambda x, k: make().sample(5, num_samples=3, cond=jnp.ones((8, 2)), key=k),
            "`cond` must have 3 rows",
        ),
        (
            lambda x, k: make().sample(
                5, num_samples=8, cond=jnp.ones(2), cond_axes=1, key=k
            ),
            "`cond_axes`",
        ),
        (
            lambda x, k: sampled_kl(x[0], x[0], fk.Normal(), num_samples=0, key=k),
            "`num_samples`",
        ),
        (lambda x, k: fk.latent.mixture_prior(0, 3, key=k), "`num_components`"),
    ],
)
def test_wrong_use(call, fragment, key):
    with pytest.raises(ValueError, match=fragment):
        call(clouds(key), key)
