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
)

from .helpers import call, cloud, CRNS, DIMENSIONS, GLOBAL_CRNS, KEY, LOCAL_CRNS, SMALL, STRUCTURED_CRNS


NUM_LATENTS = dict.fromkeys(GLOBAL_CRNS, 1) | dict.fromkeys(LOCAL_CRNS, 6) | dict.fromkeys(STRUCTURED_CRNS, 3)
BACKBONES = [nn.AdaLNMLP]
MASK = jnp.array([True, True, False, True, True, True])


def parameters(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


def drawn(make, *args):
    """What `make` builds, with parameters drawn by NumPy: none of them is zero, and nothing is compiled."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        values = rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0] if leaf.ndim == 2 else 4)
        return jnp.asarray(values.astype(leaf.dtype))

    return jax.tree.map(draw, eqx.filter_eval_shape(make, *args))


def latents_for(name):
    if name not in NUM_LATENTS:
        return None
    return jnp.asarray(np.random.default_rng(1).normal(size=(NUM_LATENTS[name], 8)).astype(np.float32))


class Cloudwise(eqx.Module):
    """A network as a function of the cloud and its mask alone; local latents are padded as the cloud is."""

    crn: nn.AbstractCRN
    latents: jax.Array | None
    local: bool = False

    def __call__(self, points, mask=None):
        latents = self.latents
        if self.local and latents is not None:
            latents = jnp.pad(latents, ((0, points.shape[0] - latents.shape[0]), (0, 0)))
        return self.crn(0.3, points, latents, mask)


def cloudwise(name, d):
    return Cloudwise(drawn(CRNS[name], d, KEY), latents_for(name), name in LOCAL_CRNS)


@pytest.mark.parametrize("i", range(len(CRNS)), ids=list(CRNS))
def test_crn_masks(i):
    d = DIMENSIONS[i % 3]
    assert_mask_independent(cloudwise(list(CRNS)[i], d), cloud(d), MASK, key=KEY)


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("name", CRNS)
def test_crn_symmetry(name, d):
    network = cloudwise(name, d)
    points, latents = cloud(d), network.latents
    if name in LOCAL_CRNS:  # points and latents move together
        joint = lambda both, mask: network.crn(0.3, both[0], both[1], mask)
        assert_permutation_equivariant(joint, (points, latents), MASK, key=KEY)
    elif name in STRUCTURED_CRNS:
        assert_permutation_equivariant(network, points, MASK, key=KEY)
        assert_permutation_invariant(lambda z, _: network.crn(0.3, points, z, MASK), latents, key=KEY)
    else:
        assert_permutation_equivariant(network, points, MASK, key=KEY)


@pytest.mark.parametrize("name", CRNS)
def test_crn_starts_as_zero_and_learns(name):
    make, latents = CRNS[name], latents_for(name)
    crn = make(2, KEY)
    assert (crn.in_size, crn.out_size, crn.latent_size) == (2, 2, 0 if latents is None else 8)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def gradient(crn):
        value = crn(0.5, cloud(2), latents, MASK)
        return jnp.mean((value - cloud(2)) ** 2), value

    (_, value), first = gradient(crn)
    assert not np.any(value)
    assert any(np.any(np.asarray(g)) for g in parameters(first))
    # Once the last layer has moved, so does everything else.
    assert all(np.any(np.asarray(g)) for g in parameters(gradient(drawn(make, 2, KEY))[1]))


@pytest.mark.parametrize("name", CRNS)
def test_crn_depends_on_all_its_inputs_under_all_transforms(name):
    network = cloudwise(name, 3)
    crn, latents, points = network.crn, network.latents, cloud(3)
    one = eqx.filter_jit(lambda crn, t, x, z: jax.jvp(lambda t: crn(t, x, z), (t,), (jnp.ones(()),)))
    value, tangent = one(crn, jnp.array(0.3), points, latents)
    assert value.shape == points.shape
    assert not np.allclose(value, one(crn, jnp.array(0.6), points, latents)[0])
    assert np.all(np.isfinite(tangent))
    if latents is not None:
        assert not np.allclose(value, one(crn, jnp.array(0.3), points, latents + 1)[0])
    times = jnp.array([0.1, 0.3])
    batch = call(jax.vmap(crn, in_axes=(0, None, None)), times, points, latents)
    np.testing.assert_allclose(batch[1], value, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CRNS if not name.startswith("dit")])
def test_pointwise_networks_move_each_point_on_its_own(name):
    network = cloudwise(name, 2)
    points = cloud(2)
    moved = points.at[3].add(1.0)
    change = np.any(np.asarray(call(network, points) != call(network, moved)), axis=1)
    assert change.tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize("name", CRNS)
def test_crn_takes_clouds_of_one_point_and_numpy(name):
    crn, latents = drawn(CRNS[name], 2, KEY), latents_for(name)
    latents = None if latents is None else np.asarray(latents)[: 1 if name in LOCAL_CRNS else None]
    one = call(crn, np.float32(0.3), np.asarray(cloud(2, 1)), latents)
    assert one.shape == (1, 2)
    assert one.dtype == jnp.float32
    assert np.all(np.isfinite(one))


def test_conditioners_agree_where_they_meet():
    # One latent for all points is the same, said once, once for each point, or as the mean of equal ones.
    make = lambda conditioner: drawn(lambda: nn.AdaLNMLP(2, 8, **SMALL, conditioner=conditioner, key=KEY))
    latent = jr.normal(KEY, (1, 8))
    many = jnp.tile(latent, (6, 1))
    expected = call(make(nn.Broadcast()), 0.3, cloud(2), latent)
    np.testing.assert_allclose(call(make(nn.PerPoint()), 0.3, cloud(2), many), expected, atol=1e-5)
    np.testing.assert_allclose(call(make(nn.Pool(nn.mean_pool)), 0.3, cloud(2), many), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "latents", "message"),
    [
        ("adaln_mlp", jnp.zeros((2, 8)), "2 rows.*Broadcast.*Pool"),
        ("adaln_mlp_per_point", jnp.zeros((2, 8)), "2 rows and `points` has 6"),
        ("adaln_mlp", jnp.zeros((1, 7)), "size 7.*latent_size=8"),
        ("adaln_mlp", None, "`latents` is None.*latent_size=8"),
        ("adaln_mlp_unconditional", jnp.zeros((1, 7)), "unconditional: build it with latent_size=7"),
    ],
)
def test_crn_refuses_wrong_latents(name, latents, message):
    with pytest.raises(ValueError, match=message):
        drawn(CRNS[name], 2, KEY)(0.5, cloud(2), latents)


def test_a_vector_is_one_latent():
    network = cloudwise("adaln_mlp", 2)
    np.testing.assert_array_equal(network.crn(0.3, cloud(2), network.latents[0]), network(cloud(2)))


@pytest.mark.parametrize("make", BACKBONES)
def test_crn_has_another_out_size_if_asked(make):
    crn = drawn(lambda: make(2, 8, out_size=5, key=KEY))
    assert crn.out_size == 5
    assert call(crn, 0.3, cloud(2), jnp.ones((1, 8)), MASK).shape == (6, 5)


@pytest.mark.parametrize("make", BACKBONES)
def test_crn_over_slots_is_a_velocity_network_of_latents(make):
    # What a flow prior asks of it: (t, z) -> dz/dt for z of shape (k, c), without a condition.
    crn = drawn(lambda: make(5, 0, width_size=16, depth=2, key=KEY))
    slots = jnp.asarray(np.random.default_rng(2).normal(size=(4, 5)).astype(np.float32))
    assert_permutation_equivariant(lambda z, _: crn(0.3, z), slots, key=KEY)


def test_shared_conditioning_is_computed_once():
    # With one latent no product over the points has the conditioning's width: 17 appears in vectors of one row only.
    crn = nn.AdaLNMLP(2, 8, cond_size=17, key=KEY)
    jaxpr = jax.make_jaxpr(lambda x, z: crn(0.3, x, z))(jnp.zeros((50, 2)), jnp.zeros((1, 8)))
    shapes = [v.aval.shape for equation in jaxpr.jaxpr.eqns for v in equation.outvars]
    assert (1, 17) in shapes
    assert (50, 17) not in shapes
