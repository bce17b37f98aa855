r"""One-step generators from a latent, and their losses: baselines for flows.

$$x = G(z), \qquad z \sim \mathrm{prior},$$

with $G$ trained on latents that are independent of the data (`Decoder`), encoded from it
(`Autoencoder`), or drawn around the encoding (`VAE`). All networks take one example and
nothing else, such as `fk.nn.FeedForward`.
"""

import inspect
import operator
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import check_data
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._types import AnyArray, FloatArray, is_traced, PRNGKey, Scalar
from flowkit.latent._divergences import normal_kl


class Decoder(eqx.Module):
    """A decoder and a distribution of latents to `sample` from.

    ```python
    network = fk.nn.FeedForward(2, 2, hidden_sizes=(32, 64, 32), key=key)
    model = fk.latent.Decoder(network)
    ```

    **Arguments:**

    - `decoder`: `latents (c,) -> x`, with an attribute `in_size`, which is `c`.
    - `prior`: the distribution of the latents.
    """

    decoder: Callable
    prior: AbstractDistribution = Normal()

    def __check_init__(self):
        _latent_size(self.decoder)

    def sample(
        self, *, num_samples: int, key: PRNGKey
    ) -> Float[Array, "num_samples ..."]:
        """New examples from the prior."""
        return _sample(self, num_samples, key)


class Autoencoder(eqx.Module):
    """An encoder and a decoder.

    `encode` or `reconstruct` one example; `model.decoder(latents)` decodes. Nothing in its
    training makes the latents follow the prior, so samples from it are poor.

    **Arguments:**

    - `encoder`: `x -> latents (c,)`.
    - `decoder`: `latents (c,) -> x`, with an attribute `in_size`, which is `c`.
    - `prior`: the distribution of the latents, for `sample`. `prior_loss` fits another one,
        such as a `fk.latent.FlowPrior`, to latents `(batch, 1, c)`.
    """

    encoder: Callable
    decoder: Callable
    prior: AbstractDistribution = Normal()

    def __check_init__(self):
        _check_sizes(self.encoder, _latent_size(self.decoder))

    def encode(self, x: FloatArray) -> Float[Array, " c"]:
        """The latents of one example."""
        return self.encoder(jnp.asarray(x))

    def reconstruct(self, x: FloatArray) -> Float[Array, "..."]:
        """One example from its own latents."""
        return self.decoder(self.encode(x))

    def sample(
        self, *, num_samples: int, key: PRNGKey
    ) -> Float[Array, "num_samples ..."]:
        """New examples from the prior."""
        return _sample(self, num_samples, key)


class VAE(eqx.Module):
    r"""A variational autoencoder: its encoder gives a Gaussian of latents.

    $$z = \mu(x) + \sigma(x) \epsilon, \qquad \epsilon \sim \mathcal N(0, I)$$

    **Arguments:**

    - `encoder`: `x -> (2 c,)`, means and log-variances: a last layer of this size is two
      heads on one trunk.
    - `decoder`: `latents (c,) -> x`, with an attribute `in_size`, which is `c`.
    - `prior`: the distribution of the latents, for `sample`; `vae_loss` takes the divergence
      from a standard normal.

    **Reference:** Kingma and Welling, Auto-Encoding Variational Bayes (2014), arXiv 1312.6114.
    """

    encoder: Callable
    decoder: Callable
    prior: AbstractDistribution = Normal()

    def __check_init__(self):
        _check_sizes(
            self.encoder,
            2 * _latent_size(self.decoder),
            ", means and log-variances of the latents",
        )

    def posterior(self, x: FloatArray) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Means and log-variances of the latents of one example."""
        mean, log_variance = jnp.split(self.encoder(jnp.asarray(x)), 2)
        return mean, log_variance

    def encode(
        self, x: FloatArray, *, key: PRNGKey | None = None
    ) -> Float[Array, " c"]:
        """The latents of one example: a draw with a key, their mean without one."""
        mean, log_variance = self.posterior(x)
        if key is None:
            return mean
        return _draw(mean, log_variance, key)

    def reconstruct(
        self, x: FloatArray, *, key: PRNGKey | None = None
    ) -> Float[Array, "..."]:
        """One example from its own latents: a draw with a key, their mean without one."""
        return self.decoder(self.encode(x, key=key))

    def sample(
        self, *, num_samples: int, key: PRNGKey
    ) -> Float[Array, "num_samples ..."]:
        """New examples from the prior."""
        return _sample(self, num_samples, key)


def decoder_loss(
    model: Decoder, x1: Float[AnyArray, "batch ..."], *, key: PRNGKey
) -> Float[Array, ""]:
    r"""$\mathrm{mean}\,\|G(z) - x\|^2$ for latents drawn independently of the data.

    Which latent belongs to which example is not identifiable. The optimum is the constant
    $G = E[x]$, where the loss is the variance of an entry.
    """
    check_data("x1", x1)
    return _decoder_loss(model, x1, key)


def autoencoder_loss(
    model: Autoencoder, x1: Float[AnyArray, "batch ..."]
) -> Float[Array, ""]:
    r"""$\mathrm{mean}\,\|D(E(x)) - x\|^2$ over all entries of the batch.

    With linear networks and `c` latents the optimum is the projection onto the first `c`
    principal components, where the loss is the sum of the other eigenvalues of the
    covariance, divided by the dimension.
    """
    check_data("x1", x1)
    return _autoencoder_loss(model, x1)


def vae_loss(
    model: VAE,
    x1: Float[AnyArray, "batch ..."],
    *,
    key: PRNGKey,
    kl_weight: Scalar = 1.0,
    kl_reduction: Callable[[Array], Array] = jnp.sum,
    free_bits: Scalar = 0.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    r"""The loss of a VAE, or of a beta-VAE with another weight, and its parts.

    $$L = \mathrm{mean}\,\|D(z) - x\|^2 + \beta\, \mathrm{KL}, \qquad
    \mathrm{KL} = \sum_j \tfrac12 (\mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2)$$

    with the first mean over all entries of the batch, and KL averaged over examples. With the
    sum over latents this is, up to a factor, the evidence bound of a Gaussian decoder of
    variance $\beta D / 2$ for data of dimension $D$.

    For one-dimensional data with variance $S$, the optimal linear model has the squared slope
    $w^2 = \max(S - \beta/2, 0)$ of the decoder, the slope $w / (w^2 + \beta/2)$ of the
    encoder, the posterior variance $(\beta/2) / (w^2 + \beta/2)$ and the squared error
    $\min(\beta/2, S)$: the posterior collapses if $\beta \ge 2 S$.

    **Arguments:**

    - `model`, `x1`, `key`: the model, the data `(batch, ...)`, the key of the latents.
    - `kl_weight`: $\beta$; as an array it may grow during training and recompiles nothing.
    - `kl_reduction`: how the latents are combined, `jnp.sum` or `jnp.mean`.
    - `free_bits`: the divergence of a latent in nats, averaged over the batch, below which
      it is not penalized: there it has no gradient.

    **Returns:** the loss, and the parts `reconstruction` and `kl`, the latter without its
    weight.

    **Reference:** Kingma and Welling (2014), arXiv 1312.6114; Higgins et al., beta-VAE (ICLR
    2017); Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow
    (2016), arXiv 1606.04934, for free bits.
    """
    check_data("x1", x1)
    for name, value in (("kl_weight", kl_weight), ("free_bits", free_bits)):
        if not is_traced(value) and not 0 <= float(value) < float("inf"):
            raise ValueError(f"`{name}` must be a finite number >= 0, got {value}.")
    x1 = jnp.asarray(x1)
    divergence = _Divergence(
        weight=jnp.asarray(kl_weight, x1.dtype),
        reduction=kl_reduction,
        free_bits=jnp.asarray(free_bits, x1.dtype),
    )

    return _vae_loss(model, x1, divergence, key)


class _Divergence(NamedTuple):
    """How the divergence of a VAE counts."""

    weight: Array
    reduction: Callable[[Array], Array]
    free_bits: Array


def _draw(mean: Array, log_variance: Array, key: PRNGKey) -> Array:
    noise = jr.normal(key, mean.shape, mean.dtype)
    return mean + jnp.exp(0.5 * log_variance) * noise


def _sample(
    model: Decoder | Autoencoder | VAE, num_samples: int, key: PRNGKey
) -> Array:
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")
    return _samples(model, operator.index(num_samples), key)


@eqx.filter_jit
def _samples(
    model: Decoder | Autoencoder | VAE, num_samples: int, key: PRNGKey
) -> Array:
    latents = _prior_latents(model, num_samples, key)
    return jax.vmap(model.decoder)(latents)


def _prior_latents(
    model: Decoder | Autoencoder | VAE, num: int, key: PRNGKey
) -> Float[Array, "num c"]:
    # Each is the only row of its example: those of one example may depend on each other.
    shape = (num, 1, model.decoder.in_size)
    return model.prior.sample(shape, key=key)[:, 0]


@eqx.filter_jit
def _decoder_loss(model, x1, key):
    x1 = jnp.asarray(x1)
    latents = _prior_latents(model, len(x1), key)
    return _mean_square(jax.vmap(model.decoder)(latents), x1)


@eqx.filter_jit
def _autoencoder_loss(model, x1):
    x1 = jnp.asarray(x1)
    return _mean_square(jax.vmap(model.reconstruct)(x1), x1)


@eqx.filter_jit
def _vae_loss(
    model: VAE, x1: Array, divergence: _Divergence, key: PRNGKey
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    mean, log_variance = jax.vmap(model.posterior)(x1)
    latents = _draw(mean, log_variance, key)
    reconstruction = _mean_square(jax.vmap(model.decoder)(latents), x1)

    # Averaged over the batch first: a latent is free if it is so on average.
    kl = jnp.mean(normal_kl(mean, log_variance), axis=0)
    is_paid = kl >= divergence.free_bits
    # A free latent keeps its value in the loss and loses only its gradient.
    paid = jnp.where(is_paid, kl, jax.lax.stop_gradient(kl))

    loss = reconstruction + divergence.weight * divergence.reduction(paid)
    return loss, {"reconstruction": reconstruction, "kl": divergence.reduction(kl)}


def _mean_square(x: Float[Array, "..."], x1: Float[Array, "..."]) -> Float[Array, ""]:
    if x.shape != x1.shape:
        raise ValueError(
            f"`decoder` gives examples of shape {x.shape[1:]}, but those of `x1` have "
            f"{x1.shape[1:]}."
        )
    return jnp.mean((x - x1) ** 2)


def _latent_size(decoder: Callable) -> int:
    if not hasattr(decoder, "in_size"):
        raise ValueError(
            "`decoder` must have an attribute `in_size`, the size of its latents, as "
            "`fk.nn.FeedForward` does."
        )
    _check_call("decoder", decoder)
    return decoder.in_size


def _check_call(name: str, network: Callable) -> None:
    """Raises for a network that wants more than one example, such as a time."""
    try:
        signature = inspect.signature(network)
    except ValueError:
        # Built-in callables have no signature.
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise ValueError(
            f"`{name}` must take one example and nothing else, as `fk.nn.FeedForward` does, "
            f"but {type(network).__name__} is {error}."
        ) from error


def _check_sizes(encoder: Callable, size: int, what: str = "") -> None:
    _check_call("encoder", encoder)
    out_size = getattr(encoder, "out_size", size)
    if out_size != size:
        raise ValueError(
            f"`encoder` must have out_size={size}{what}, to fit the decoder; "
            f"got {out_size}."
        )
