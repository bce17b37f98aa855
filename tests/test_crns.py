import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowkit.nn as nn
from flowkit.testing import (
    assert_mask_independent,
    assert_permutation_equivariant,
    assert_permutation_invariant,
    perturbed,
)

from .helpers import call, cloud, CRNS, DIMENSIONS, GLOBAL_CRNS, KEY, LOCAL_CRNS, SMALL, STRUCTURED_CRNS


NUM_LATENTS = dict.fromkeys(GLOBAL_CRNS, 1) | dict.fromkeys(LOCAL_CRNS, 6) | dict.fromkeys(STRUCTURED_CRNS, 3)


def parameters(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


class Cloudwise(eqx.Module):
    """A conditional network as a function of the cloud and its mask alone."""

    crn: nn.AbstractCRN
    latents: jax.Array

    def __call__(self, points, mask=None):
        n = points.shape[0]
        latents = self.latents
        if isinstance(self.crn.conditioner, nn.PerPoint):  # pyright: ignore
            latents = jnp.pad(latents, ((0, n - latents.shape[0]), (0, 0)))
        return self.crn(0.3, points, latents, mask)


def cloudwise(name, d):
    crn = perturbed(CRNS[name](d, KEY), key=jr.key(1))
    return Cloudwise(crn, jr.normal(jr.key(2), (NUM_LATENTS[name], 8)))


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("name", CRNS)
def test_crn_masks(name, d):
    mask = jnp.array([True, True, False, True, True, True])
    assert_mask_independent(cloudwise(name, d), cloud(d), mask, key=KEY)


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("name", CRNS)
def test_crn_symmetry(name, d):
    network = cloudwise(name, d)
    mask = jnp.array([True, True, False, True, True, True])
    if name in LOCAL_CRNS:  # points and latents move together
        joint = lambda both, mask: network.crn(0.3, both[0], both[1], mask)
        assert_permutation_equivariant(joint, (cloud(d), network.latents), mask, key=KEY)
    else:
        assert_permutation_equivariant(network, cloud(d), mask, key=KEY)
        in_latents = lambda latents, _: network.crn(0.3, cloud(d), latents)
        if name in STRUCTURED_CRNS:
            assert_permutation_invariant(in_latents, network.latents, key=KEY)


@pytest.mark.parametrize("name", CRNS)
def test_crn_starts_as_zero_and_learns(name):
    crn = CRNS[name](2, KEY)
    latents = jr.normal(KEY, (NUM_LATENTS[name], 8))
    assert (crn.in_size, crn.latent_size) == (2, 8)
    assert not jnp.any(call(crn, 0.5, cloud(2), latents))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(crn):
        return jnp.mean((crn(0.5, cloud(2), latents) - cloud(2)) ** 2)

    assert any(jnp.any(g != 0) for g in parameters(gradient(crn)))
    # Once the last layer has moved, so does everything else.
    assert all(jnp.any(g != 0) for g in parameters(gradient(perturbed(crn, key=KEY))))


@pytest.mark.parametrize("name", CRNS)
def test_crn_depends_on_all_its_inputs_under_all_transforms(name):
    network = cloudwise(name, 3)
    crn, latents, points = network.crn, network.latents, cloud(3)
    value = call(crn, 0.3, points, latents)
    assert value.shape == points.shape
    assert not jnp.allclose(value, call(crn, 0.6, points, latents))
    assert not jnp.allclose(value, call(crn, 0.3, points, latents + 1))
    np.testing.assert_allclose(value, call(crn, np.float32(0.3), np.asarray(points), np.asarray(latents)), atol=1e-5)
    times = jnp.array([0.1, 0.3])
    batch = call(jax.vmap(crn, in_axes=(0, None, None)), times, points, latents)
    np.testing.assert_allclose(batch[1], value, atol=1e-5)
    tangent = call(lambda t: jax.jvp(lambda t: crn(t, points, latents), (t,), (jnp.ones(()),))[1], jnp.array(0.3))
    assert jnp.all(jnp.isfinite(tangent))


@pytest.mark.parametrize("name", CRNS)
def test_adaln_mlp_moves_each_point_on_its_own(name):
    network = cloudwise(name, 2)
    points = cloud(2)
    moved = points.at[3].add(1.0)
    change = jnp.any(call(network, points) != call(network, moved), axis=1)
    assert change.tolist() == [False, False, False, True, False, False]


def test_conditioners_agree_where_they_meet():
    # One latent for all points is the same, said once, once for each point, or as the mean of equal ones.
    make = lambda conditioner: perturbed(nn.AdaLNMLP(2, 8, **SMALL, conditioner=conditioner, key=KEY), key=jr.key(1))
    latent = jr.normal(KEY, (1, 8))
    many = jnp.tile(latent, (6, 1))
    expected = call(make(nn.Broadcast()), 0.3, cloud(2), latent)
    np.testing.assert_allclose(call(make(nn.PerPoint()), 0.3, cloud(2), many), expected, atol=1e-5)
    np.testing.assert_allclose(call(make(nn.Pool(nn.mean_pool)), 0.3, cloud(2), many), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("conditioner", "shape", "message"),
    [
        (nn.Broadcast(), (2, 8), "2 rows.*Broadcast.*Pool"),
        (nn.PerPoint(), (2, 8), "2 rows and `points` has 6"),
        (nn.Broadcast(), (1, 7), "size 7.*latent_size=8"),
    ],
)
def test_crn_refuses_wrong_latents(conditioner, shape, message):
    crn = nn.AdaLNMLP(2, 8, conditioner=conditioner, key=KEY)
    with pytest.raises(ValueError, match=message):
        crn(0.5, cloud(2), jnp.zeros(shape))


def test_shared_conditioning_is_computed_once():
    # With one latent no product over the points has the conditioning's width: 17 appears in vectors of one row only.
    crn = nn.AdaLNMLP(2, 8, cond_size=17, key=KEY)
    jaxpr = jax.make_jaxpr(lambda x, z: crn(0.3, x, z))(jnp.zeros((50, 2)), jnp.zeros((1, 8)))
    shapes = [v.aval.shape for equation in jaxpr.jaxpr.eqns for v in equation.outvars]
    assert (1, 17) in shapes
    assert (50, 17) not in shapes
