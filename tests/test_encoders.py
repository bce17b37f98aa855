"""Every encoder held to the same invariants, then each on its own."""

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
    perturbed,
)

from .helpers import call, cloud, DIMENSIONS, ENCODERS, GLOBAL_ENCODERS, KEY, LOCAL_ENCODERS, STRUCTURED_ENCODERS


# The rows of what a local encoder returns are those of the points, hence not here.
NUM_LATENTS = dict.fromkeys(GLOBAL_ENCODERS, 1) | dict.fromkeys(STRUCTURED_ENCODERS, 3)


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_symmetry_and_masks(name, d):
    encoder = perturbed(ENCODERS[name](d, KEY), key=jr.key(1))
    mask = jnp.array([True, True, False, True, True, True])
    symmetric = assert_permutation_equivariant if name in LOCAL_ENCODERS else assert_permutation_invariant
    symmetric(encoder, cloud(d), mask, key=KEY)
    assert_mask_independent(encoder, cloud(d), mask, key=KEY)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_contract(name):
    encoder = ENCODERS[name](3, KEY)
    assert (encoder.in_size, encoder.out_size) == (3, 8)
    for n in (1, 2, 9):
        latents = call(encoder, cloud(3, n))
        assert latents.shape == (NUM_LATENTS.get(name, n), 8)
        np.testing.assert_allclose(latents, call(encoder, cloud(3, n), jnp.ones(n, bool)), atol=1e-5)
    batch = jnp.stack([cloud(3), cloud(3) + 1])
    together = call(jax.vmap(encoder), batch)
    np.testing.assert_allclose(together[1], call(encoder, batch[1]), atol=1e-5)
    assert call(encoder, np.asarray(cloud(3))).dtype == jnp.float32


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_refuses_wrong_clouds(name):
    encoder = ENCODERS[name](3, KEY)
    with pytest.raises(ValueError, match="`points` have 2 coordinates.*in_size=3"):
        encoder(cloud(2))
    with pytest.raises(ValueError, match="`points` is an empty set"):
        encoder(jnp.zeros((0, 3)))
    with pytest.raises(TypeCheckError, match="mask"):
        encoder(cloud(3), jnp.ones(5, bool))


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_tells_clouds_apart_that_differ_in_scale_only(name):
    # LayerNorm right after a linear map without bias would not; on raw coordinates it would leave signs.
    encoder = ENCODERS[name](2, KEY)
    assert jnp.max(jnp.abs(call(encoder, cloud(2)) - call(encoder, 3 * cloud(2)))) > 0.05


def test_point_net_needs_a_layer():
    with pytest.raises(ValueError, match="`hidden_sizes` is empty"):
        nn.PointNet(2, 8, hidden_sizes=(), key=KEY)
