"""The transformer on patches."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowkit as fk
from flowkit import nn


SMALL = {"width_size": 16, "depth": 2, "num_heads": 2}


def shaken(network, key):
    """The network with every weight drawn anew, since it starts as zero."""
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)
    leaves, treedef = jax.tree.flatten(arrays)
    keys = jr.split(key, len(leaves))
    drawn = [
        0.2 * jr.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(treedef, drawn), rest)


def test_starts_as_zero_and_mixes_all_patches(key):
    network = nn.PatchDiT(3, 2, patch_size=2, **SMALL, key=key)
    x = jr.normal(key, (6, 4, 3))
    run = eqx.filter_jit(lambda network, x: network(0.3, x))
    assert run(network, x).shape == (6, 4, 2)
    assert not np.any(run(network, x))

    network = shaken(network, key)
    y = run(network, x)
    assert np.all(run(network, x.at[0, 0, 0].add(1.0)) != y)


def test_patches_keep_their_place(key):
    """With gates of zero, a patch of the result depends on the same patch of the image."""
    network = shaken(nn.PatchDiT(1, patch_size=2, **SMALL, key=key), key)
    zeros = jax.tree.map(jnp.zeros_like, network.modulation.linear)
    network = eqx.tree_at(lambda network: network.modulation.linear, network, zeros)
    x = jr.normal(key, (6, 4, 1))
    jacobian = jax.jacobian(lambda x: network(0.3, x)[..., 0])(x)[..., 0]
    rows, columns = np.indices((6, 4)) // 2
    patch = rows * 2 + columns
    same = patch[:, :, None, None] == patch[None, None]
    np.testing.assert_array_equal(np.asarray(jacobian) != 0, same)


def test_positions_tell_patches_apart(key):
    """On a constant image, patches differ by their positions alone."""
    network = shaken(nn.PatchDiT(1, patch_size=2, **SMALL, key=key), key)
    y = np.asarray(network(0.3, jnp.ones((6, 6, 1))))[::2, ::2, 0].ravel()
    assert len(np.unique(y)) == 9


def test_trains_by_every_kind_of_derivative(key):
    """The loss of MeanFlow takes the gradient of a forward derivative, with a condition."""
    classes = nn.ClassEmbedding(2, 8, key=key)
    embedding = nn.TwoTimes(nn.SinusoidalTime(8))
    network = nn.PatchDiT(
        1, patch_size=2, **SMALL, cond_embedding=classes, time_embedding=embedding,
        key=key,
    )  # fmt: skip
    flow_map = fk.few_step.FlowMap(shaken(network, key))
    x = jr.normal(key, (4, 4, 4, 1))
    loss = lambda flow_map: fk.few_step.mean_flow_loss(
        flow_map, x, np.arange(4) % 2, key=key
    )
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(loss))(flow_map)
    assert np.isfinite(value)
    leaves = jax.tree.leaves(eqx.filter(gradient, eqx.is_inexact_array))
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
    assert np.any(gradient.network.conditioning.cond_embedding.vectors[:2])


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda key: nn.PatchDiT(1, patch_size=0, key=key), "`patch_size` must"),
        (lambda key: nn.PatchDiT(1, width_size=6, key=key), "divisible by 4"),
        (lambda key: nn.PatchDiT(1, depth=0, key=key), "`depth` must be at least 1"),
        (
            lambda key: nn.PatchDiT(1, **SMALL, key=key)(0.3, jnp.zeros((5, 4, 1))),
            "divisible by 2 for the patches",
        ),
    ],
)
def test_misuse(call, fragment, key):
    with pytest.raises(ValueError, match=fragment):
        call(key)
