"""PointNet and an AdaLN MLP written plainly in Equinox, as Flow-Mix has them.

Layers of single points under `jax.vmap`, a whole batch at once, no blocks, a separate
matrix for every modulation, no skip connections, and max pooling. The weights are those of
a model of flowkit with `residual=False` and `fk.nn.max_pool`, so that both compute the
same.

**Reference:** Flow-Mix, github.com/bayesianempirimancer/FlowMix.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import flowkit as fk


class PlainPointNet(eqx.Module):
    """The latent of a cloud."""

    layers: list[eqx.nn.Linear]
    norms: list[eqx.nn.LayerNorm]
    out: eqx.nn.Linear

    def __init__(self, encoder: Any):
        inner = (encoder.embedding.linear, *encoder.layers)
        self.layers = [_linear(layer.weight, layer.bias) for layer in inner]
        self.norms = [_layer_norm(norm) for norm in encoder.norms]
        self.out = _linear(encoder.out.weight, encoder.out.bias)

    def __call__(self, points: jax.Array) -> jax.Array:
        h = points
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = jax.vmap(norm)(jax.nn.silu(jax.vmap(layer)(h)))
        return self.out(jnp.max(h, axis=0))


class PlainAdaLN(eqx.Module):
    """The velocity of every point of a cloud, given a latent."""

    latent_in: eqx.nn.Linear
    time_in: eqx.nn.Linear
    hidden: eqx.nn.Linear
    embedding: eqx.nn.Linear
    layers: list[eqx.nn.Linear]
    norms: list[eqx.nn.LayerNorm]
    modulations: list[eqx.nn.Linear]
    out: eqx.nn.Linear

    def __init__(self, network: Any):
        of_cond = network.conditioning
        self.latent_in = _linear(of_cond.latent_in.weight, of_cond.latent_in.bias)
        self.time_in = _linear(of_cond.time_in.weight, of_cond.time_in.bias)
        self.hidden = _linear(of_cond.hidden.weight, of_cond.hidden.bias)

        embedding = network.embedding.linear
        self.embedding = _linear(embedding.weight, embedding.bias)
        inner = [block.linear for block in network.blocks]
        self.layers = [_linear(layer.weight, layer.bias) for layer in inner]
        self.norms = [_layer_norm(block.norm) for block in network.blocks]
        self.out = _linear(network.out.weight, network.out.bias)

        # flowkit makes the scales and shifts of all layers by one product.
        joint = network.modulation.linear
        depth = len(inner)
        weights = jnp.split(joint.weight, depth, axis=1)
        biases = jnp.split(joint.bias, depth)
        parts = zip(weights, biases, strict=True)
        self.modulations = [_linear(weight, bias) for weight, bias in parts]

    def __call__(self, t: jax.Array, points: jax.Array, latent: jax.Array) -> jax.Array:
        angles = t * 1e4 ** -jnp.linspace(0, 1, self.time_in.weight.shape[1] // 2)
        time = self.time_in(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)]))
        cond = jax.nn.silu(self.hidden(jax.nn.silu(self.latent_in(latent) + time)))

        h = jax.nn.silu(jax.vmap(self.embedding)(points))
        parts = zip(self.layers, self.norms, self.modulations, strict=True)
        for layer, norm, modulation in parts:
            scale, shift = jnp.split(modulation(cond), 2)
            h = jax.vmap(norm)(jax.nn.silu(jax.vmap(layer)(h)))
            h = h * (1 + scale) + shift
        return jax.vmap(self.out)(h)


class PlainModel(eqx.Module):
    """Encoder and velocity of a `fk.latent.SetFlow`."""

    encoder: PlainPointNet
    network: PlainAdaLN

    def __init__(self, model: fk.latent.SetFlow):
        self.encoder = PlainPointNet(model.encoder)
        self.network = PlainAdaLN(model.flow.network)

    def error(self, x0: jax.Array, x1: jax.Array, t: jax.Array) -> jax.Array:
        """The squared error of the velocity, of one cloud."""
        x_t = (1 - t) * x0 + t * x1
        velocity = self.network(t, x_t, self.encoder(x1))
        return jnp.mean((velocity - (x1 - x0)) ** 2)


def plain_loss(model: PlainModel, points: jax.Array, key: jax.Array) -> jax.Array:
    """Flow matching on a batch of clouds."""
    noise_key, time_key = jr.split(key)
    x0 = jr.normal(noise_key, points.shape)
    t = jr.uniform(time_key, (len(points),))
    return jnp.mean(jax.vmap(model.error)(x0, points, t))


def _linear(weight: jax.Array, bias: jax.Array | None) -> eqx.nn.Linear:
    """A layer of Equinox, which multiplies from the left."""
    in_size, out_size = weight.shape
    use_bias = bias is not None
    layer = eqx.nn.Linear(in_size, out_size, use_bias=use_bias, key=jr.key(0))
    layer = eqx.tree_at(lambda layer: layer.weight, layer, weight.T)
    if not use_bias:
        return layer
    return eqx.tree_at(lambda layer: layer.bias, layer, bias)


def _layer_norm(norm: fk.nn.LayerNorm) -> eqx.nn.LayerNorm:
    plain = eqx.nn.LayerNorm(norm.scale.shape, eps=1e-6)
    return eqx.tree_at(lambda n: (n.weight, n.bias), plain, (norm.scale, norm.shift))
