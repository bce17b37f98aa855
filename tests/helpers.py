"""The registries: everything that is tested for the same invariants, listed once.

A new encoder or network is one line here.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import flowkit.nn as nn


KEY = jr.key(0)
DIMENSIONS = (2, 3, 4)
TINY: dict = {"width_size": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 2}
SLOTS: dict = {"num_slots": 3, "width_size": 8, "hidden_size": 8, "num_iterations": 2}


def feed_forward(in_size, hidden_size, *, key):
    return nn.FeedForward(in_size, in_size, hidden_sizes=(hidden_size,), key=key)


# name: (dimension, key) -> encoder
GLOBAL_ENCODERS = {
    "point_net": lambda d, key: nn.PointNet(d, 8, hidden_sizes=(16, 32), key=key),
    "point_net_max": lambda d, key: nn.PointNet(
        d, 8, hidden_sizes=(16,), pooling=nn.max_pool, key=key
    ),
    "point_net_mean": lambda d, key: nn.PointNet(
        d, 8, hidden_sizes=(16,), pooling=nn.mean_pool, key=key
    ),
    "point_net_sinusoidal": lambda d, key: nn.PointNet(
        d, 8, hidden_sizes=(16,), features=nn.SinusoidalFeatures(), key=key
    ),
    "point_net_fourier": lambda d, key: nn.PointNet(
        d,
        8,
        hidden_sizes=(16,),
        features=nn.FourierFeatures(d, num_frequencies=16, scale=1.0, key=key),
        key=key,
    ),
    "point_net_gated": lambda d, key: nn.PointNet(
        d,
        8,
        hidden_sizes=(8, 8),
        layer=lambda i, o, *, key: nn.SwiGLU(i, 12, o, key=key),
        key=key,
    ),
    "set_transformer_token": lambda d, key: nn.SetTransformer(
        d, 8, **TINY, num_tokens=1, return_tokens=True, key=key
    ),
    "pooled_by_attention": lambda d, key: nn.Pooled(
        nn.SetTransformer(d, 8, **TINY, key=key),
        nn.AttentionPool(8, key_size=4, key=key),
        out_size=8,
        key=key,
    ),
    "pooled_by_set2set": lambda d, key: nn.Pooled(
        nn.SetTransformer(d, 8, **TINY, key=key),
        nn.Set2Set(8, key=key),
        out_size=8,
        key=key,
    ),
    "mixture_and_point_net": lambda d, key: nn.Chained(
        nn.GMMFeaturizer(d, num_components=3),
        nn.PointNet(d, 8, hidden_sizes=(16,), key=key),
    ),
}
LOCAL_ENCODERS = {
    "set_transformer": lambda d, key: nn.SetTransformer(
        d, 8, **TINY, num_tokens=2, num_kv_heads=1, layer_scale=0.5, key=key
    ),
    "set_transformer_isab": lambda d, key: nn.SetTransformer(
        d, 8, **TINY, block=nn.ISAB, num_inducing=3, key=key
    ),
    "dgcnn": lambda d, key: nn.DGCNN(
        d, 8, width_size=8, depth=2, num_neighbors=2, key=key
    ),
    "dgcnn_attention": lambda d, key: nn.DGCNN(
        d,
        8,
        width_size=8,
        depth=1,
        pooling=nn.AttentionPool(8, key_size=4, key=key),
        key=key,
    ),
}
STRUCTURED_ENCODERS = {
    "pooled_by_seeds": lambda d, key: nn.Pooled(
        nn.SetTransformer(d, 8, **TINY, key=key),
        nn.PMA(8, num_seeds=3, num_heads=2, key=key),
        out_size=8,
        key=key,
    ),
    "cross_attention": lambda d, key: nn.CrossAttentionEncoder(
        d, 8, **TINY, num_latents=3, key=key
    ),
    "slot_attention": lambda d, key: nn.SlotAttention(d, 8, **SLOTS, key=key),
    "slot_attention_k_means": lambda d, key: nn.SlotAttention(
        d, 8, **SLOTS, start=nn.KMeans, key=key
    ),
    "slot_attention_learned": lambda d, key: nn.SlotAttention(
        d, 8, **SLOTS, start=nn.LearnedSlots, key=key
    ),
}
ENCODERS = GLOBAL_ENCODERS | LOCAL_ENCODERS | STRUCTURED_ENCODERS

SMALL: dict = {"width_size": 16, "depth": 2, "cond_size": 16}
SMALLEST: dict = {"width_size": 8, "depth": 1, "cond_size": 8, "num_heads": 2}
SMALL_SQUASH: dict = {"width_size": 16, "depth": 2}

# name: (dimension, key) -> network for latents of size 8
GLOBAL_CRNS = {
    "adaln_mlp": lambda d, key: nn.AdaLNMLP(d, 8, **SMALL, key=key),
    "adaln_mlp_plain": lambda d, key: nn.AdaLNMLP(
        d, 8, **SMALL, residual=False, key=key
    ),
    "adaln_mlp_features": lambda d, key: nn.AdaLNMLP(
        d, 8, **SMALL, features=nn.SinusoidalFeatures(nn.banded()), key=key
    ),
    "dit": lambda d, key: nn.DiT(d, 8, **SMALL, num_heads=2, key=key),
    "dit_options": lambda d, key: nn.DiT(
        d,
        8,
        **SMALLEST,
        num_kv_heads=1,
        feed_forward=feed_forward,
        features=nn.SinusoidalFeatures(),
        modulate_output=True,
        dropout=0.1,
        stochastic_depth=0.1,
        key=key,
    ),
    "cross_attention": lambda d, key: nn.CrossAttentionCRN(
        d, 8, **SMALLEST, num_tokens=3, key=key
    ),
    "concat_squash": lambda d, key: nn.ConcatSquashMLP(d, 8, **SMALL_SQUASH, key=key),
    "concat_squash_features": lambda d, key: nn.ConcatSquashMLP(
        d, 8, **SMALL_SQUASH, features=nn.SinusoidalFeatures((1.0, 2.0)), key=key
    ),
}
LOCAL_CRNS = {
    "adaln_mlp_per_point": lambda d, key: nn.AdaLNMLP(
        d, 8, **SMALL, conditioner=nn.PerPoint(), key=key
    ),
    "dit_per_point": lambda d, key: nn.DiT(
        d, 8, **SMALLEST, conditioner=nn.PerPoint(), key=key
    ),
    "concat_squash_per_point": lambda d, key: nn.ConcatSquashMLP(
        d, 8, **SMALL_SQUASH, conditioner=nn.PerPoint(), key=key
    ),
}
STRUCTURED_CRNS = {
    "adaln_mlp_pool": lambda d, key: nn.AdaLNMLP(
        d, 8, **SMALL, conditioner=nn.Pool(), key=key
    ),
    "adaln_mlp_attention_pool": lambda d, key: nn.AdaLNMLP(
        d,
        8,
        **SMALL,
        conditioner=nn.Pool(nn.AttentionPool(8, key_size=4, key=key)),
        key=key,
    ),
    "adaln_mlp_select": lambda d, key: nn.AdaLNMLP(
        d,
        8,
        **SMALL,
        conditioner=nn.Select(
            d, 8, width_size=8, features=nn.SinusoidalFeatures(), key=key
        ),
        key=key,
    ),
    "adaln_mlp_cross_attend": lambda d, key: nn.AdaLNMLP(
        d,
        8,
        **SMALL,
        conditioner=nn.CrossAttend(d, 8, width_size=8, num_heads=2, key=key),
        key=key,
    ),
    "dit_pool": lambda d, key: nn.DiT(
        d, 8, **SMALLEST, conditioner=nn.Pool(nn.mean_pool), key=key
    ),
    "dit_select": lambda d, key: nn.DiT(
        d, 8, **SMALLEST, conditioner=nn.Select(d, 8, width_size=8, key=key), key=key
    ),
    "dit_cross_attend": lambda d, key: nn.DiT(
        d,
        8,
        **SMALLEST,
        conditioner=nn.CrossAttend(d, 8, width_size=8, num_kv_heads=1, key=key),
        key=key,
    ),
    "cross_attention_structured": lambda d, key: nn.CrossAttentionCRN(
        d, 8, **SMALLEST, num_tokens=1, key=key
    ),
    "concat_squash_pool": lambda d, key: nn.ConcatSquashMLP(
        d, 8, **SMALL_SQUASH, conditioner=nn.Pool(), key=key
    ),
    "concat_squash_select": lambda d, key: nn.ConcatSquashMLP(
        d,
        8,
        **SMALL_SQUASH,
        conditioner=nn.Select(d, 8, width_size=8, key=key),
        key=key,
    ),
    "concat_squash_cross_attend": lambda d, key: nn.ConcatSquashMLP(
        d,
        8,
        **SMALL_SQUASH,
        conditioner=nn.CrossAttend(d, 8, width_size=8, key=key),
        key=key,
    ),
}
UNCONDITIONAL_CRNS = {
    "adaln_mlp_unconditional": lambda d, key: nn.AdaLNMLP(d, 0, **SMALL, key=key),
    "dit_unconditional": lambda d, key: nn.DiT(d, 0, **SMALLEST, key=key),
    "cross_attention_unconditional": lambda d, key: nn.CrossAttentionCRN(
        d, 0, **SMALLEST, num_tokens=3, key=key
    ),
    "concat_squash_unconditional": lambda d, key: nn.ConcatSquashMLP(
        d, 0, **SMALL_SQUASH, key=key
    ),
}
CRNS = GLOBAL_CRNS | LOCAL_CRNS | STRUCTURED_CRNS | UNCONDITIONAL_CRNS


def cloud(d, n=6):
    return jr.normal(jr.key(d), (n, d)) + 0.3


@eqx.filter_jit
def call(network, *args):
    return network(*args)


def drawn(make, *args):
    """What `make` builds, with parameters drawn by NumPy.

    None of them is zero, and nothing is compiled.
    """
    rng = np.random.default_rng(0)

    def draw(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(np.full(leaf.shape, 7, leaf.dtype))
        scale = leaf.shape[0] if leaf.ndim == 2 else 4
        values = rng.normal(size=leaf.shape) / np.sqrt(scale)
        return jnp.asarray(values.astype(leaf.dtype))

    return jax.tree.map(draw, eqx.filter_eval_shape(make, *args))
