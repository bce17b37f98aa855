"""Every network, given what users have: NumPy's sizes and arrays, half precision."""

import dataclasses
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowkit.nn as nn

from .helpers import call, cloud, CRNS, ENCODERS, KEY, LOCAL_CRNS, STRUCTURED_CRNS


MASK = np.array([True, True, False, True, True, True])
MIXTURE = {"mixture": lambda d, key: nn.GMMFeaturizer(d, num_components=3)}
NETWORKS = ENCODERS | MIXTURE | CRNS


def int64s(*sizes):
    return tuple(np.int64(size) for size in sizes)


TWO, FOUR, EIGHT = int64s(2, 4, 8)
BLOCK: dict = {"num_heads": TWO, "num_kv_heads": TWO}

# Every integer argument of every class.
NUMPY_SIZES = {
    "MLP": lambda: nn.MLP(TWO, FOUR, hidden_sizes=int64s(8), cond_size=TWO, key=KEY),
    "Linear": lambda: nn.Linear(TWO, FOUR, key=KEY),
    "LayerNorm": lambda: nn.LayerNorm(TWO),
    "SwiGLU": lambda: nn.SwiGLU(TWO, FOUR, EIGHT, key=KEY),
    "Modulation": lambda: nn.Modulation(TWO, FOUR, TWO, key=KEY),
    "ConcatSquashLinear": lambda: nn.ConcatSquashLinear(TWO, FOUR, TWO, key=KEY),
    "SquashSum": lambda: nn.SquashSum(int64s(2, 3), FOUR, key=KEY),
    "FourierFeatures": lambda: nn.FourierFeatures(TWO, num_frequencies=FOUR, key=KEY),
    "banded": lambda: nn.SinusoidalFeatures(nn.banded(TWO, TWO)),
    "PointEmbedding": lambda: nn.PointEmbedding(TWO, FOUR, key=KEY),
    "RawTime": lambda: nn.RawTime(TWO),
    "SinusoidalTime": lambda: nn.TwoTimes(nn.SinusoidalTime(EIGHT)),
    "ZeroToOneTime": lambda: nn.ZeroToOneTime(EIGHT),
    "LearnedTime": lambda: nn.LearnedTime(FOUR, width_size=TWO, key=KEY),
    "AttentionBlock": lambda: nn.AttentionBlock(
        EIGHT, cross=True, context_size=FOUR, **BLOCK, key=KEY
    ),
    "ISAB": lambda: nn.ISAB(EIGHT, num_inducing=TWO, **BLOCK, key=KEY),
    "PointNet": lambda: nn.PointNet(TWO, FOUR, hidden_sizes=int64s(8, 4), key=KEY),
    "SetTransformer": lambda: nn.SetTransformer(
        TWO, FOUR, width_size=EIGHT, depth=TWO, num_tokens=TWO, **BLOCK, key=KEY
    ),
    "DGCNN": lambda: nn.DGCNN(
        TWO, FOUR, width_size=EIGHT, depth=TWO, num_neighbors=TWO, key=KEY
    ),
    "SlotAttention": lambda: nn.SlotAttention(
        TWO,
        FOUR,
        num_slots=TWO,
        width_size=EIGHT,
        hidden_size=FOUR,
        num_iterations=TWO,
        start=nn.KMeans,
        key=KEY,
    ),
    "CrossAttentionEncoder": lambda: nn.CrossAttentionEncoder(
        TWO, FOUR, num_latents=TWO, width_size=EIGHT, depth=TWO, **BLOCK, key=KEY
    ),
    "Pooled": lambda: nn.Pooled(
        nn.PointNet(TWO, FOUR, key=KEY),
        nn.PMA(FOUR, num_seeds=TWO, depth=TWO, num_heads=TWO, key=KEY),
        out_size=TWO,
        key=KEY,
    ),
    "Set2Set": lambda: nn.Set2Set(FOUR, num_steps=TWO, key=KEY),
    "AttentionPool": lambda: nn.AttentionPool(FOUR, key_size=TWO, key=KEY),
    "GMMFeaturizer": lambda: nn.GMMFeaturizer(TWO, num_components=TWO, num_steps=TWO),
    "AdaLNMLP": lambda: nn.AdaLNMLP(
        TWO,
        FOUR,
        out_size=FOUR,
        conditioner=nn.Select(TWO, FOUR, width_size=EIGHT, key=KEY),
        width_size=EIGHT,
        depth=TWO,
        cond_size=FOUR,
        key=KEY,
    ),
    "DiT": lambda: nn.DiT(
        TWO, FOUR, width_size=EIGHT, depth=TWO, cond_size=FOUR, **BLOCK, key=KEY
    ),
    "CrossAttentionCRN": lambda: nn.CrossAttentionCRN(
        TWO, FOUR, num_tokens=TWO, width_size=EIGHT, depth=TWO, **BLOCK, key=KEY
    ),
    "ConcatSquashMLP": lambda: nn.ConcatSquashMLP(
        TWO, FOUR, width_size=EIGHT, depth=TWO, key=KEY
    ),
}


# Sizes of which there must be at least one, and those of which there may be none.
POSITIVE = {
    "LayerNorm": ((), "size"),
    "GroupNorm": ((), "size"),
    "ClassEmbedding": ((3,), "size"),
    "LearnedTime": ((), "size"),
    "Modulation": ((4, 2, 3), "cond_size width_size"),
    "Attention": ((8,), "width_size context_size num_heads num_kv_heads"),
    "AttentionBlock": ((8,), "width_size context_size num_heads"),
    "ISAB": ((8,), "width_size num_inducing num_heads"),
    "SetTransformer": ((2, 4), "width_size num_heads"),
    "DGCNN": ((2, 4), "width_size num_neighbors"),
    "SlotAttention": ((2, 4), "width_size hidden_size num_slots"),
    "CrossAttentionEncoder": ((2, 4), "width_size depth num_latents num_heads"),
    "PMA": ((4,), "size num_seeds num_heads"),
    "Set2Set": ((4,), "size num_steps"),
    "AttentionPool": ((4,), "size key_size"),
    "Select": ((2, 4), "width_size"),
    "CrossAttend": ((2, 4), "width_size num_heads"),
    "AdaLNMLP": ((2, 4), "width_size depth cond_size"),
    "DiT": ((2, 4), "width_size depth cond_size num_heads"),
    "CrossAttentionCRN": ((2, 4), "width_size depth cond_size num_tokens num_heads"),
    "ConcatSquashMLP": ((2, 4), "width_size"),
    "PatchDiT": ((3, 3), "in_size out_size width_size depth patch_size num_heads"),
    "UNet": ((3, 3), "in_size out_size width_size patch_size num_heads num_groups"),
    "PixelField": (
        (),
        "value_size coord_size width_size depth cond_size num_latents num_heads",
    ),
    "PerceiverField": (
        (),
        "value_size coord_size width_size depth num_latents num_frequencies",
    ),
    "PerceiverIO": (
        (2, 3),
        "coord_size value_size width_size depth num_latents num_heads",
    ),
}
NATURAL = {
    "Linear": ((2, 4), "in_size out_size"),
    "SwiGLU": ((2, 4), "hidden_size"),
    "SetTransformer": ((2, 4), "depth num_tokens"),
    "DGCNN": ((2, 4), "depth"),
    "PMA": ((4,), "depth"),
    "ConcatSquashMLP": ((2, 4), "depth"),
}


@pytest.mark.parametrize("name", {**POSITIVE, **NATURAL})
def test_sizes_that_cannot_be_are_named(name):
    kind = getattr(nn, name)
    for table, wrong in ((POSITIVE, (0, -1)), (NATURAL, (-1,))):
        sizes, arguments = table.get(name, ((), ""))
        for argument in arguments.split():
            # A size by its position is given by its name.
            names = [*inspect.signature(kind.__init__).parameters][1:]
            options = dict(zip(names, sizes, strict=False))
            if "key" in names:
                options["key"] = KEY
            for size in wrong:
                with pytest.raises(ValueError, match=f"`{argument}` must"):
                    kind(**options | {argument: size})


def values_in(module):
    """All that a module and those within it hold, static fields included."""
    is_module = lambda leaf: isinstance(leaf, eqx.Module)
    for field in dataclasses.fields(module):
        for leaf in jax.tree.leaves(getattr(module, field.name), is_leaf=is_module):
            if is_module(leaf):
                yield from values_in(leaf)
            else:
                yield leaf


@pytest.mark.parametrize("name", NUMPY_SIZES)
def test_sizes_of_numpy_become_plain_integers(name):
    """They are refused by JSON, and would compile again what was compiled for an int."""
    module = eqx.filter_eval_shape(NUMPY_SIZES[name])
    assert not [value for value in values_in(module) if isinstance(value, np.generic)]


def test_a_network_with_sizes_of_numpy_is_the_same_network():
    options = {"hidden_sizes": (8,), "zero_init": False, "key": KEY}
    plain = nn.MLP(2, **options)
    numpy = nn.MLP(TWO, **options)
    assert eqx.tree_equal(plain, numpy)
    assert np.array_equal(plain(0.5, np.ones(2)), numpy(0.5, np.ones(2)))


def called(name, points):
    """The network of this name at a cloud, with latents if it takes them."""
    if name not in CRNS:
        return NETWORKS[name](3, KEY)(points, MASK)
    num = 1
    if name in LOCAL_CRNS:
        num = 6
    if name in STRUCTURED_CRNS:
        num = 3
    latents = None if "unconditional" in name else jnp.ones((num, 8), jnp.float32)
    return CRNS[name](3, KEY)(0.3, points, latents, MASK)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_run_in_strict_settings_and_in_any_dtype(name):
    """Without implicit promotion of ranks, and from float64 of NumPy without a warning."""
    points = np.asarray(cloud(3))
    with jax.numpy_rank_promotion("raise"):
        out = eqx.filter_eval_shape(called, name, points)
        from_numpy = jax.eval_shape(lambda: called(name, points.astype(np.float64)))
    assert out.dtype == jnp.float32
    assert from_numpy.dtype == jnp.float32

    # JAX's own attention promotes half precision, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        for dtype in (jnp.bfloat16, jnp.float16):
            out = eqx.filter_eval_shape(called, name, points.astype(dtype))
            assert out.dtype == dtype


def test_vector_network_and_layers_run_in_strict_settings():
    x = np.ones(2, np.float16)
    squash = nn.SquashSum((2, 3), 4, key=KEY)
    with jax.numpy_rank_promotion("raise"):
        embedding = nn.LearnedTime(4, embedding=nn.SinusoidalTime(4), key=KEY)
        mlp = nn.MLP(2, time_embedding=embedding, key=KEY)
        assert mlp(0.5, x).dtype == jnp.float16
        # The axes of the inputs broadcast.
        assert squash(np.ones((5, 2), np.float32), np.ones(3, np.float32)).shape == (
            5,
            4,
        )


@pytest.mark.parametrize("name", ["dgcnn", "mixture", "dit"])
def test_half_precision_is_near_single_precision(name):
    points = np.asarray(cloud(3)).astype(jnp.bfloat16)
    expected = np.asarray(call(called, name, points.astype(np.float32)))
    with jax.numpy_dtype_promotion("standard"):
        half = np.asarray(call(called, name, points), np.float32)
    # bfloat16 has eight bits; the error of a few layers of them stays below one tenth.
    assert np.abs(half - expected).max() < 0.1 * max(np.abs(expected).max(), 1e-3)


def test_half_precision_is_summed_in_single_precision():
    """Squares overflow float16 from 256 on; bfloat16 does not count beyond 256."""
    rows = np.array([[300.0, -300.0, 900.0, 0.0]], np.float16)
    expected = (rows - 225.0) / np.std(np.float32(rows))
    np.testing.assert_allclose(nn.LayerNorm(4)(rows), expected, rtol=2e-3)

    many = np.full((4000, 1), 60.0, np.float16)
    valid = np.ones(4000, bool)
    np.testing.assert_allclose(nn.mean_pool(many, valid), [60.0])

    line = (1000.0 * np.arange(5, dtype=np.float16))[:, None]
    indices, _ = nn.nearest_neighbors(line, 1)
    assert indices[-1, 0] == 3
    centers = nn.k_means(np.ones((1001, 1), jnp.bfloat16), np.ones((1, 1), np.float32))
    np.testing.assert_array_equal(np.float32(centers), [[1.0]])


def test_times_are_not_rounded_to_half_precision():
    mlp = nn.MLP(
        1,
        hidden_sizes=(),
        time_embedding=nn.SinusoidalTime(8, scale=1000.0),
        zero_init=False,
        key=KEY,
    )
    x = np.zeros(1, np.float32)
    half = mlp(0.7, x.astype(jnp.bfloat16)).astype(np.float32)
    np.testing.assert_allclose(half, mlp(0.7, x), rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("size", "build"),
    [
        ("depth", lambda: nn.AdaLNMLP(2, 4, depth=0, key=KEY)),
        ("depth", lambda: nn.DiT(2, 4, depth=0, key=KEY)),
        ("depth", lambda: nn.CrossAttentionCRN(2, 4, depth=0, key=KEY)),
        ("depth", lambda: nn.CrossAttentionEncoder(2, 4, depth=0, key=KEY)),
        ("num_latents", lambda: nn.CrossAttentionEncoder(2, 4, num_latents=0, key=KEY)),
        ("num_slots", lambda: nn.SlotAttention(2, 4, num_slots=0, key=KEY)),
        ("num_seeds", lambda: nn.PMA(4, num_seeds=0, key=KEY)),
        ("num_inducing", lambda: nn.ISAB(4, num_inducing=0, key=KEY)),
        ("num_steps", lambda: nn.Set2Set(4, num_steps=0, key=KEY)),
        ("key_size", lambda: nn.AttentionPool(4, key_size=0, key=KEY)),
        ("depth", lambda: nn.PixelField(depth=0, key=KEY)),
        ("num_latents", lambda: nn.PerceiverIO(2, 1, num_latents=0, key=KEY)),
    ],
)
def test_sizes_of_zero_are_named(size, build):
    with pytest.raises(ValueError, match=f"`{size}` must be at least 1, got 0"):
        eqx.filter_eval_shape(build)
