"""Every encoder tested for the same invariants, then each on its own."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import flowkit.nn as nn
from flowkit.testing import (
    assert_mask_independent,
    assert_permutation_equivariant,
    assert_permutation_invariant,
)

from .helpers import (
    call,
    cloud,
    drawn,
    ENCODERS,
    GLOBAL_ENCODERS,
    KEY,
    LOCAL_ENCODERS,
    SLOTS,
    STRUCTURED_ENCODERS,
    TINY,
)
from .oracles import compilations


MASK = np.array([True, True, False, True, True, True])
ALL = ENCODERS | {"mixture": lambda d, key: nn.GMMFeaturizer(d, num_components=3)}
# The rows of what a local encoder returns are those of the points, hence not here.
NUM_LATENTS = (
    dict.fromkeys(GLOBAL_ENCODERS, 1)
    | dict.fromkeys(STRUCTURED_ENCODERS, 3)
    | {"mixture": 21}
)


@functools.cache
def encoder_of(name):
    return drawn(ALL[name], 3, KEY)


@pytest.mark.parametrize("name", ALL)
def test_encoder_symmetry_and_masks(name):
    encoder = encoder_of(name)
    symmetric = (
        assert_permutation_equivariant
        if name in LOCAL_ENCODERS
        else assert_permutation_invariant
    )
    symmetric(encoder, cloud(3), MASK, key=KEY)
    # With more points in a component than it has axes: rounding may rotate equal axes.
    repeat = 4 if name.startswith("mixture") else 1
    assert_mask_independent(
        encoder, cloud(3, 6 * repeat), np.tile(MASK, repeat), key=KEY
    )


# Both dimensions for what treats axes in a way of its own, for the others by turns.
OTHER_DIMENSIONS = [
    (name, d)
    for i, name in enumerate(ALL)
    for d in (2, 4)
    if name in ("point_net", "point_net_fourier", "dgcnn")
    or name.startswith("mixture")
    or d == (2, 4)[i % 2]
]


@pytest.mark.parametrize(("name", "d"), OTHER_DIMENSIONS)
def test_encoder_in_other_dimensions(name, d):
    # As built: how much a new encoder sees of the scale depends on its first weights.
    encoder = ALL[name](d, KEY)
    points = np.asarray(cloud(d))
    everything = np.ones(6, bool)
    order = np.array([3, 5, 0, 2, 1, 4])
    clouds = np.stack(
        [
            points,
            points[order],
            np.where(MASK[:, None], points, np.nan),
            points,
            3 * points,
        ]
    )
    masks = np.stack([MASK, MASK[order], MASK, everything, everything])
    outputs = np.asarray(call(jax.vmap(encoder), clouds, masks))
    latents, permuted, filled, unmasked, scaled = outputs
    np.testing.assert_allclose(
        permuted, latents[order] if name in LOCAL_ENCODERS else latents, atol=1e-5
    )
    np.testing.assert_allclose(filled, latents, atol=1e-5)
    # LayerNorm right after a linear map without bias would see no scale; on raw
    # coordinates it would leave signs.
    assert np.max(np.abs(scaled - unmasked)) > 0.05
    # Six points have few axes: rounding may rotate those of a mixture in dimension 4.
    if d == 2 or not name.startswith("mixture"):
        np.testing.assert_allclose(call(encoder, points), unmasked, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_encoder_contract(name):
    encoder = encoder_of(name)
    assert (encoder.in_size, encoder.out_size) == (3, 3 if name == "mixture" else 8)
    for n in (1, 2, 9):
        latents = eqx.filter_eval_shape(encoder, np.zeros((n, 3), np.float32))
        assert latents.shape == (NUM_LATENTS.get(name, n), encoder.out_size)
        assert latents.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "n"),
    [(name, 1) for name in ALL] + [("dgcnn", 3), ("slot_attention_k_means", 3)],
)
def test_encoder_of_points_that_are_all_equal(name, n):
    # Of one point alone too: no neighbors, no spread, distances of zero.
    loss = lambda encoder_and_points: jnp.sum(
        encoder_and_points[0](encoder_and_points[1]) ** 2
    )
    value, gradients = eqx.filter_jit(eqx.filter_value_and_grad(loss))(
        (encoder_of(name), jnp.full((n, 3), 0.7))
    )
    assert all(
        bool(np.all(np.isfinite(leaf))) for leaf in jax.tree.leaves((value, gradients))
    )


@pytest.mark.parametrize("name", ALL)
def test_encoder_refuses_wrong_clouds(name):
    encoder = encoder_of(name)
    with pytest.raises(ValueError, match="`points` have 2 coordinates.*in_size=3"):
        encoder(cloud(2))
    with pytest.raises(ValueError, match="`points` is an empty set"):
        encoder(jnp.zeros((0, 3)))
    with pytest.raises(TypeCheckError, match="mask"):
        encoder(cloud(3), jnp.ones(5, bool))


@pytest.mark.parametrize("name", ["mixture", "slot_attention_k_means"])
def test_the_second_call_compiles_nothing(name):
    encoder = encoder_of(name)
    points = [cloud(3), 2 * cloud(3)]
    encoder(points[0], MASK)
    with compilations() as events:
        encoder(points[1], MASK)
    assert not events


def test_point_net_needs_a_layer():
    with pytest.raises(ValueError, match="`hidden_sizes` is empty"):
        nn.PointNet(2, 8, hidden_sizes=(), key=KEY)


# -- transformers


def test_tokens_that_are_returned_must_be_there():
    with pytest.raises(ValueError, match="`num_tokens` must be at least 1"):
        nn.SetTransformer(2, 8, return_tokens=True, key=KEY)


def test_token_and_points_are_rows_of_the_same_transformer():
    both = nn.SetTransformer(2, 8, **TINY, num_tokens=1, key=KEY)
    token = nn.SetTransformer(2, 8, **TINY, num_tokens=1, return_tokens=True, key=KEY)
    changed = eqx.tree_at(lambda encoder: encoder.tokens, both, both.tokens + 1)
    assert call(both, cloud(2)).shape == (6, 8)
    assert call(token, cloud(2)).shape == (1, 8)
    assert not np.allclose(call(both, cloud(2)), call(changed, cloud(2)))


def test_stochastic_depth_rises_to_the_last_block():
    options = TINY | {"depth": 3, "stochastic_depth": 0.5, "dropout": 0.1}
    encoder = drawn(lambda: nn.SetTransformer(2, 8, **options, key=KEY))
    residuals = [block.attention_residual for block in encoder.blocks]  # pyright: ignore
    rates = [residual.stochastic_depth.p for residual in residuals]
    assert rates == [0, 0.25, 0.5]
    value = call(encoder, cloud(2))
    assert np.array_equal(value, call(encoder, cloud(2)))
    assert not np.allclose(value, call(encoder, cloud(2), None, KEY))


def test_transformer_refuses_unknown_options():
    with pytest.raises(TypeError, match="num_inducing"):
        nn.SetTransformer(2, 8, num_inducing=3, key=KEY)


# -- the graph of neighbors


def plain_layer_norm(norm, h):
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(
        h.var(-1, keepdims=True) + 1e-6
    ) * np.asarray(norm.scale) + np.asarray(norm.shift)


def test_edge_convolution_is_its_formula():
    options = {"width_size": 4, "depth": 1, "num_neighbors": 2}
    layer = drawn(lambda: nn.DGCNN(2, 8, **options, key=KEY).layers[0])
    affine = lambda linear, x: x @ np.asarray(linear.weight) + np.asarray(linear.bias)
    h, mask = np.asarray(jr.normal(KEY, (6, 4))), MASK
    expected = np.zeros_like(h)
    for i in range(6):
        others = sorted(
            (j for j in range(6) if j != i and mask[j]),
            key=lambda j: np.sum((h[j] - h[i]) ** 2),
        )
        edges = [
            np.concatenate([h[i], h[j] - h[i], [np.sum((h[j] - h[i]) ** 2)]])
            for j in others[:2]
        ]
        hidden = affine(layer.hidden, plain_layer_norm(layer.norm, np.stack(edges)))
        expected[i] = affine(layer.out, hidden / (1 + np.exp(-hidden))).max(0)
    np.testing.assert_allclose(
        np.asarray(call(layer, h, mask))[mask], expected[mask], atol=1e-5
    )


def test_more_neighbors_than_points_are_all_of_them():
    many, all_others = (
        nn.DGCNN(2, 8, width_size=8, depth=1, num_neighbors=k, key=KEY) for k in (20, 5)
    )
    assert np.array_equal(call(many, cloud(2)), call(all_others, cloud(2)))


def test_a_point_alone_reads_nothing():
    encoder = nn.DGCNN(2, 8, width_size=8, depth=1, key=KEY)
    assert not np.any(call(encoder.layers[0], np.ones((1, 8), np.float32), None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_neighbors": 0}, "`num_neighbors` must be at least 1"),
        (
            {"pooling": nn.max_mean_pool},
            "`pooling` must keep the size of 64.*returns 128",
        ),
    ],
)
def test_dgcnn_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        nn.DGCNN(2, 8, **options, key=KEY)


# -- slots


def test_slot_attention_is_its_formula():
    options = SLOTS | {"num_iterations": 1}
    encoder = drawn(lambda: nn.SlotAttention(2, 8, **options, key=KEY))
    points = np.asarray(cloud(2))[MASK]
    rows = plain_layer_norm(encoder.norm, np.asarray(call(encoder.embedding, points)))
    slots = np.asarray(call(encoder.start, points, None, None))
    w = lambda linear: np.asarray(linear.weight)
    queries = plain_layer_norm(encoder.slot_norm, slots) @ w(encoder.query)
    scores = rows @ w(encoder.keys) @ queries.T / np.sqrt(8)
    attention = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    weights = attention / attention.sum(0)
    updates = weights.T @ (rows @ w(encoder.values))
    slots = np.asarray(call(jax.vmap(encoder.cell), updates, slots))
    normalized = plain_layer_norm(encoder.feed_forward_norm, slots)
    slots = slots + np.asarray(call(encoder.feed_forward, normalized))
    latents, actual = call(encoder.with_attention, cloud(2), MASK)
    np.testing.assert_allclose(actual[MASK], attention, atol=1e-5)
    assert not np.any(actual[~MASK])
    np.testing.assert_allclose(latents, call(encoder.out, slots), atol=1e-5)


def test_slots_are_permuted_with_their_start():
    encoder = nn.SlotAttention(2, 8, **SLOTS, start=nn.LearnedSlots, key=KEY)
    turned = eqx.tree_at(
        lambda encoder: encoder.start.mean, encoder, encoder.start.mean[::-1]
    )  # pyright: ignore
    np.testing.assert_allclose(
        call(turned, cloud(2)), call(encoder, cloud(2))[::-1], atol=1e-5
    )


def test_learned_slots_are_drawn_with_a_key():
    start = nn.LearnedSlots(2, 2000, 3, key=KEY)
    drawn = call(start, cloud(2), None, jr.key(1))
    # 6000 draws of standard deviation 0.1: that of the draws has a relative standard error
    # of 1 / sqrt(12,000).
    assert abs(np.std(drawn - start.mean) / 0.1 - 1) < 5 / np.sqrt(12_000)
    assert np.array_equal(call(start, cloud(2), None, None), start.mean)


# -- encoders made of encoders


def test_pooled_leaves_masked_latents_out():
    local = drawn(lambda: nn.SetTransformer(2, 8, **TINY, key=KEY))
    pooled = drawn(lambda: nn.Pooled(local, nn.mean_pool, out_size=4, key=KEY))
    mean = np.asarray(call(pooled.encoder, cloud(2), MASK))[MASK].mean(0)
    np.testing.assert_allclose(
        call(pooled, cloud(2), MASK), call(pooled.out, mean)[None], atol=1e-5
    )


def test_chained_reads_the_components_that_are_there():
    # Two narrow blobs and ten components: not all of them are needed.
    points = np.asarray(0.05 * jr.normal(KEY, (200, 2))) + np.repeat(
        [[-1.0, 0.0], [1.0, 0.0]], 100, axis=0
    )
    first = nn.GMMFeaturizer(2, num_components=10, num_steps=100)
    second = nn.PointNet(2, 8, hidden_sizes=(8,), pooling=nn.mean_pool, key=KEY)
    rows = np.asarray(call(first, points.astype(np.float32)))
    there = np.any(rows != 0, axis=1)
    assert 0 < there.sum() < 50
    latent = call(nn.Chained(first, second), points.astype(np.float32))
    np.testing.assert_allclose(latent, call(second, rows[there]), atol=1e-5)


def test_chained_encoders_must_fit():
    with pytest.raises(ValueError, match="`second` must have `in_size` 3.*got 2"):
        nn.Chained(nn.GMMFeaturizer(3), nn.PointNet(2, 8, key=KEY))
