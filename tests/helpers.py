"""The registries: everything that is held to the same invariants, listed once.

A new encoder or network is one line here.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

import flowkit.nn as nn


KEY = jr.key(0)
DIMENSIONS = (2, 3, 4)
# name: (dimension, key) -> encoder
GLOBAL_ENCODERS = {
    "point_net": lambda d, key: nn.PointNet(d, 8, hidden_sizes=(16, 32), key=key),
    "point_net_max": lambda d, key: nn.PointNet(d, 8, hidden_sizes=(16,), pooling=nn.max_pool, key=key),
    "point_net_mean": lambda d, key: nn.PointNet(d, 8, hidden_sizes=(16,), pooling=nn.mean_pool, key=key),
    "point_net_sinusoidal": lambda d, key: nn.PointNet(
        d, 8, hidden_sizes=(16,), features=nn.SinusoidalFeatures(), key=key
    ),
    "point_net_fourier": lambda d, key: nn.PointNet(
        d, 8, hidden_sizes=(16,), features=nn.FourierFeatures(d, num_frequencies=16, scale=1.0, key=key), key=key
    ),
}
LOCAL_ENCODERS = {}
STRUCTURED_ENCODERS = {}
ENCODERS = GLOBAL_ENCODERS | LOCAL_ENCODERS | STRUCTURED_ENCODERS

SMALL: dict = {"width_size": 16, "depth": 2, "cond_size": 16}

# name: (dimension, key) -> network for latents of size 8
GLOBAL_CRNS = {
    "adaln_mlp": lambda d, key: nn.AdaLNMLP(d, 8, **SMALL, key=key),
    "adaln_mlp_plain": lambda d, key: nn.AdaLNMLP(d, 8, **SMALL, residual=False, key=key),
    "adaln_mlp_features": lambda d, key: nn.AdaLNMLP(
        d, 8, **SMALL, features=nn.SinusoidalFeatures(nn.banded()), key=key
    ),
}
LOCAL_CRNS = {
    "adaln_mlp_per_point": lambda d, key: nn.AdaLNMLP(d, 8, **SMALL, conditioner=nn.PerPoint(), key=key),
}
STRUCTURED_CRNS = {
    "adaln_mlp_pool": lambda d, key: nn.AdaLNMLP(d, 8, **SMALL, conditioner=nn.Pool(), key=key),
}
UNCONDITIONAL_CRNS = {
    "adaln_mlp_unconditional": lambda d, key: nn.AdaLNMLP(d, 0, **SMALL, key=key),
}
CRNS = GLOBAL_CRNS | LOCAL_CRNS | STRUCTURED_CRNS | UNCONDITIONAL_CRNS


def as_set_function(fn):
    """`fn(points, mask)` with the rows outside of the mask zeroed before and after, as networks on sets do it."""

    def masked(points, mask):
        keep = jnp.ones(points.shape[0], bool) if mask is None else mask
        return jnp.where(keep[:, None], fn(jnp.where(keep[:, None], points, 0), mask), 0)

    return masked


def cloud(d, n=6):
    return jr.normal(jr.key(d), (n, d)) + 0.3


@eqx.filter_jit
def call(network, *args):
    return network(*args)
