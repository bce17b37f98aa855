"""Decoders and autoencoders against the closed forms of linear models, and a small
training of each."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import flowkit as fk
from flowkit.latent import (
    Autoencoder,
    autoencoder_loss,
    Decoder,
    decoder_loss,
    VAE,
    vae_loss,
)

from .oracles import compilations


NUM = 20_000
MEAN, VARIANCE = -0.8, 3.916  # of `mixture_1d`


def linear(weight, bias=0.0):
    """A linear network with these numbers, `(in_size, out_size)` and `(out_size,)`."""
    weight = jnp.asarray(weight, float)
    network = fk.nn.Linear(*weight.shape, key=jr.key(0))
    values = weight, jnp.broadcast_to(jnp.asarray(bias, float), weight.shape[1:])
    return eqx.tree_at(lambda n: (n.weight, n.bias), network, values)


def linear_vae(variance, kl_weight):
    """The optimum of the linear VAE for centred data, by its closed form."""
    squared = max(variance - kl_weight / 2, 0.0)
    slope, log_variance = (
        squared**0.5 / (squared + kl_weight / 2),
        np.log(kl_weight / 2 / (squared + kl_weight / 2)),
    )
    return VAE(linear([[slope, 0.0]], [0.0, log_variance]), linear([[squared**0.5]]))


@eqx.filter_jit
def per_example(loss, model, x1, key):
    """The loss and the gradient of batches of one, each with its key."""
    keys = jr.split(key, len(x1))
    return eqx.filter_vmap(eqx.filter_value_and_grad(loss), in_axes=(None, 0, 0))(
        model, x1[:, None], keys
    )


def assert_zero(gradients):
    """Means that are zero within three standard errors."""
    for gradient in jax.tree.leaves(gradients):
        gradient = np.asarray(gradient, np.float64)
        assert gradient.std(0).max() > 0
        assert np.all(
            np.abs(gradient.mean(0)) < 3 * gradient.std(0) / len(gradient) ** 0.5
        )


def estimate(values, exact):
    values = np.asarray(values, np.float64)
    assert abs(values.mean() - exact) < 3 * values.std() / len(values) ** 0.5


def test_decoder_collapses_to_the_mean(key):
    """At the constant E[x] the expected gradient is zero and the loss is the variance."""
    dkey, lkey = jr.split(key)
    x1 = fk.data.mixture_1d(NUM, key=dkey)
    loss = lambda model, x1, key: decoder_loss(model, x1, key=key)
    values, gradients = per_example(loss, Decoder(linear([[0.0]], [MEAN])), x1, lkey)
    assert_zero(gradients)
    estimate(values, VARIANCE)


def test_autoencoder_finds_the_principal_components():
    """On finite data the projection on them is a stationary point, with the other
    eigenvalues as loss."""
    x1 = np.random.default_rng(0).normal(size=(500, 4)) @ np.diag(
        [3.0, 2.0, 1.0, 0.5]
    ) + [1, 0, -2, 0]
    x1 = x1.astype(np.float32)
    eigenvalues, vectors = np.linalg.eigh(np.cov(x1.T, bias=True))
    basis = vectors[:, -2:]
    mean = x1.mean(0)
    model = Autoencoder(linear(basis, -mean @ basis), linear(basis.T, mean))
    value, gradient = eqx.filter_value_and_grad(autoencoder_loss)(model, x1)
    assert float(value) == pytest.approx(eigenvalues[:2].sum() / 4, rel=1e-5)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0, atol=2e-5)
    np.testing.assert_allclose(
        model.reconstruct(x1[0]),
        mean + basis @ basis.T @ (x1[0] - mean),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("kl_weight", [1.0, 4.0, 10.0])
def test_linear_vae_has_its_optimum(kl_weight, key):
    """Gradient, squared error and divergence at the closed form; the last weight is
    beyond the collapse."""
    dkey, lkey = jr.split(key)
    x1 = VARIANCE**0.5 * jr.normal(dkey, (NUM, 1))
    weight = jnp.asarray(kl_weight)  # one program for all of them
    loss = lambda model, x1, key: vae_loss(model, x1, key=key, kl_weight=weight)[0]
    model = linear_vae(VARIANCE, kl_weight)
    _, gradients = per_example(loss, model, x1, lkey)
    if kl_weight < 2 * VARIANCE:
        assert_zero(gradients)
    else:
        assert_zero(gradients.decoder)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients.encoder))
    _, parts = eqx.filter_vmap(lambda x, key: vae_loss(model, x[None], key=key))(
        x1, jr.split(lkey, NUM)
    )
    estimate(parts["reconstruction"], min(kl_weight / 2, VARIANCE))
    if kl_weight < 2 * VARIANCE:
        estimate(parts["kl"], 0.5 * np.log(VARIANCE / (kl_weight / 2)))
    else:
        np.testing.assert_array_equal(parts["kl"], 0)


@pytest.mark.parametrize(("ratio", "collapses"), [(1.5, False), (2.5, True)])
def test_collapse_begins_at_twice_the_variance(ratio, collapses, key):
    """The collapsed model is a minimum in the slopes of encoder and decoder if the
    weight is larger, else a saddle."""
    dkey, lkey = jr.split(key)
    x1 = jr.normal(dkey, (NUM, 1))
    variance = float(jnp.var(x1))

    def loss(slopes):
        model = VAE(
            linear(jnp.array([[1.0, 0.0]]) * slopes[0]), linear(slopes[1:, None])
        )
        return vae_loss(model, x1, key=lkey, kl_weight=ratio * variance)[0]

    eigenvalues = np.linalg.eigvalsh(np.asarray(jax.hessian(loss)(jnp.zeros(2))))
    assert (eigenvalues.min() > 0) == collapses


def test_parts_of_the_vae_loss(key):
    """The divergence is that of `standard_normal_kl`; weight zero leaves an autoencoder
    with noise."""
    x1 = jr.normal(key, (16, 3))
    ekey, dkey, lkey = jr.split(key, 3)
    model = VAE(
        fk.nn.FeedForward(3, 4, hidden_sizes=(8,), key=ekey),
        fk.nn.FeedForward(2, 3, hidden_sizes=(8,), key=dkey),
    )
    mean, log_variance = jax.vmap(model.posterior)(x1)
    for reduction in (jnp.sum, jnp.mean):
        loss, parts = vae_loss(
            model, x1, key=lkey, kl_weight=0.5, kl_reduction=reduction
        )
        expected = jnp.mean(
            jax.vmap(lambda *a, f=reduction: fk.latent.standard_normal_kl(*a, f))(
                mean, log_variance
            )
        )
        np.testing.assert_allclose(parts["kl"], expected, rtol=1e-5)
        np.testing.assert_allclose(
            loss, parts["reconstruction"] + 0.5 * parts["kl"], rtol=1e-6
        )
    assert vae_loss(model, x1, key=lkey, kl_weight=0.0)[0] == parts["reconstruction"]
    still = eqx.tree_at(
        lambda m: m.encoder.layers[-1].bias, model, jnp.array([0.0, 0, -80, -80])
    )
    still = eqx.tree_at(
        lambda m: m.encoder.layers[-1].weight,
        still,
        replace_fn=lambda w: w.at[:, 2:].set(0),
    )
    _, parts = vae_loss(still, x1, key=lkey)
    plain = Autoencoder(lambda x: still.posterior(x)[0], still.decoder)
    np.testing.assert_allclose(
        parts["reconstruction"], autoencoder_loss(plain, x1), rtol=1e-6
    )
    np.testing.assert_array_equal(still.encode(x1[0]), still.posterior(x1[0])[0])
    draws = jax.vmap(lambda key: model.encode(x1[0], key=key))(jr.split(key, 4000))
    np.testing.assert_allclose(
        draws.std(0), jnp.exp(0.5 * log_variance[0]), rtol=5 * (1 / 8000) ** 0.5
    )


def test_free_bits_spare_small_divergences(key):
    """A latent below has the gradient of the squared error alone, one above the whole."""
    x1 = jr.normal(key, (64, 2))
    model = VAE(
        linear([[0.1, 0.0, 0, 0], [0.0, 2.0, 0, 0]]), linear([[0.5, 0.0], [0.0, 0.5]])
    )
    gradient = lambda **options: (
        eqx.filter_grad(lambda m: vae_loss(m, x1, key=key, **options)[0])(
            model
        ).encoder.weight
    )
    spared, whole, none = gradient(free_bits=0.1), gradient(), gradient(kl_weight=0.0)
    np.testing.assert_allclose(spared[:, 0], none[:, 0], rtol=1e-5)
    np.testing.assert_allclose(spared[:, 1], whole[:, 1], rtol=1e-5)
    assert not np.allclose(spared[:, 0], whole[:, 0])


@pytest.mark.slow
def test_trained_baselines_do_what_they_must(key):
    """On the mixture with small networks: the decoder is constant, the autoencoder
    exact, the heavy VAE collapsed."""
    x1 = np.asarray(fk.data.mixture_1d(500, exact_counts=True, key=jr.key(42)))
    ekey, dkey, tkey = jr.split(key, 3)
    relu = {"activation": jax.nn.relu}
    decoder = fk.nn.FeedForward(1, 1, hidden_sizes=(32, 64, 32), **relu, key=dkey)
    encoder = lambda size: fk.nn.FeedForward(
        1, size, hidden_sizes=(32, 64, 32), **relu, key=ekey
    )
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(decoder, eqx.is_array)))
        == 4289
    )

    def train(loss, model):
        options = {
            "num_steps": 800,
            "steps_per_call": 100,
            "progress": False,
            "batch_size": 64,
        }
        return fk.training.fit(
            loss, model, x1, optimizer=optax.adam(1e-3), **options, key=tkey
        ).ema

    constant = train(lambda m, x, key: decoder_loss(m, x, key=key), Decoder(decoder))
    samples = constant.sample(num_samples=1000, key=key)
    assert samples.shape == (1000, 1)
    assert abs(float(samples.mean()) - x1.mean()) < 0.1
    assert float(samples.std()) < 0.3
    identity = train(
        lambda m, x, key: autoencoder_loss(m, x), Autoencoder(encoder(1), decoder)
    )
    assert float(autoencoder_loss(identity, x1)) < 0.01
    heavy = train(
        lambda m, x, key: vae_loss(m, x, key=key, kl_weight=10.0),
        VAE(encoder(2), decoder),
    )
    _, parts = vae_loss(heavy, x1, key=key)
    assert float(parts["kl"]) < 0.02
    assert float(parts["reconstruction"]) == pytest.approx(x1.var(), rel=0.05)


def test_a_flow_is_a_prior(key):
    """Its network starts at zero, so that latents have the moments of its coordinates."""
    network = fk.nn.MLP(2, hidden_sizes=(4,), key=key)
    mean = np.array([1.0, -2.0], np.float32)
    std = np.array([0.5, 2.0], np.float32)
    prior = eqx.tree_at(
        lambda prior: (prior.mean, prior.log_std),
        fk.latent.FlowPrior(fk.Flow(network), 2, solver=fk.RK4(), num_steps=1),
        (jnp.asarray(mean), jnp.log(std)),
    )
    identity = linear(np.eye(2))
    for model in (Autoencoder(identity, identity, prior), Decoder(identity, prior)):
        samples = np.asarray(model.sample(num_samples=4000, key=key))
        scores = (samples.mean(0) - mean) / (std / np.sqrt(4000))
        assert np.abs(scores).max() < 4
        np.testing.assert_allclose(samples.std(0), std, rtol=4 / np.sqrt(8000))
    assert np.isfinite(decoder_loss(model, jnp.ones((3, 2)), key=key))


def test_second_calls_compile_nothing(key):
    model = VAE(linear([[1.0, 0.0]]), linear([[1.0]]))
    x1 = np.ones((5, 1), np.float32)
    calls = [
        lambda weight: vae_loss(model, x1, key=key, kl_weight=weight),
        lambda _: decoder_loss(Decoder(model.decoder), x1, key=key),
        lambda _: autoencoder_loss(Autoencoder(model.decoder, model.decoder), x1),
        lambda _: model.sample(num_samples=3, key=key),
    ]
    for call in calls:
        call(1.0)
    with compilations() as count:
        for call in calls:
            call(0.5)
    assert not count


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda net, key: VAE(net, net),
            r"`encoder` must have out_size=2, means and log-variances",
        ),
        (
            lambda net, key: Autoencoder(linear([[1.0, 1.0]]), net),
            "`encoder` must have out_size=1, to fit",
        ),
        (
            lambda net, key: decoder_loss(Decoder(net), jnp.ones((4, 2)), key=key),
            r"shape \(1,\), but those of `x1` have \(2,\)",
        ),
        (
            lambda net, key: autoencoder_loss(Autoencoder(net, net), jnp.ones((0, 1))),
            "non-empty batch",
        ),
        (
            lambda net, key: autoencoder_loss(
                Autoencoder(net, net), np.full((2, 1), np.nan, np.float32)
            ),
            "NaN",
        ),
        (
            lambda net, key: vae_loss(
                VAE(linear([[1.0, 1.0]]), net),
                jnp.ones((2, 1)),
                key=key,
                kl_weight=-1.0,
            ),
            "`kl_weight` must be a finite number",
        ),
        (
            lambda net, key: vae_loss(
                VAE(linear([[1.0, 1.0]]), net),
                jnp.ones((2, 1)),
                key=key,
                free_bits=-1.0,
            ),
            "`free_bits` must be",
        ),
        (
            lambda net, key: Decoder(net).sample(num_samples=0, key=key),
            "`num_samples` must be at least 1",
        ),
        (
            lambda net, key: Decoder(jnp.tanh),
            "`decoder` must have an attribute `in_size`",
        ),
        (
            lambda net, key: Decoder(fk.nn.MLP(1, key=key)),
            "`decoder` must take one example and nothing else.*MLP is missing",
        ),
        (
            lambda net, key: Autoencoder(fk.nn.MLP(1, key=key), net),
            "`encoder` must take one example",
        ),
    ],
)
def test_wrong_use(call, message, key):
    with pytest.raises(ValueError, match=message):
        call(linear([[1.0]]), key)
