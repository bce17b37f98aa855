"""A process whose mean a network corrects, against the process and plain arithmetic."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import flowkit as fk
from flowkit.pipelines import RefinedProcess


IMAGES = np.random.default_rng(0).random((4, 4, 6, 2)).astype(np.float32)
PIXELS = fk.data.sparse_pixels(IMAGES, input_ratio=0.25, output_ratio=0, key=jr.key(0))
PROCESS = fk.inverse.GaussianProcess(0.3)
SEEN = (PIXELS.input_coords[0], PIXELS.input_values[0])


def refined():
    return RefinedProcess(
        (4, 6, 2), process=PROCESS, width_size=8, multipliers=(1,), key=jr.key(1)
    )


def with_constant(value):
    """A network that predicts one value for every pixel."""
    network = lambda t, x, cond: jnp.full_like(x, value)
    return eqx.tree_at(lambda process: process.network.network, refined(), network)


def hidden():
    indices = np.asarray(PIXELS.input_indices[0])
    return ~np.isin(np.arange(24), indices)[:, None]


def test_new_ones_are_the_process():
    found = refined().sample_image(*SEEN, 4, 6, key=jr.key(2))
    expected = PROCESS.sample_image(*SEEN, 4, 6, key=jr.key(2))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_mean_and_draw_are_corrected_where_nothing_was_observed():
    """By a third of what the network says, in standard deviations of the observed pixels."""
    values = np.asarray(PIXELS.input_values[0])
    process = with_constant(0.9 / np.std(values - np.mean(values, axis=0)))
    draw, mean = process.sample_image(*SEEN, 4, 6, key=jr.key(2))
    expected = PROCESS.sample_image(*SEEN, 4, 6, key=jr.key(2))
    np.testing.assert_allclose(draw, expected[0] + 0.3 * hidden(), atol=1e-6)
    np.testing.assert_allclose(mean, expected[1] + 0.3 * hidden(), atol=1e-6)
    np.testing.assert_allclose(process.mean(*SEEN), mean, atol=1e-6)


def test_light_and_contrast_pass_through():
    """`a x + b` is seen, so `a x + b` is expected."""
    coords, values = SEEN
    options = {"width_size": 8, "multipliers": (1,), "key": jr.key(1)}
    process = RefinedProcess((4, 6, 2), process=PROCESS, **options)
    # The end of a new network is zero.
    move = lambda leaf: leaf + 0.1 if eqx.is_inexact_array(leaf) else leaf
    process = eqx.tree_at(
        lambda p: p.network, process, jax.tree.map(move, process.network)
    )
    light = jnp.array([0.2, -0.1])
    found = process.mean(coords, 0.5 * values + light)
    expected = 0.5 * process.mean(coords, values) + light
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.max(np.abs(process.mean(coords, values) - refined().mean(*SEEN))) > 0.01


def test_a_uniform_image_stays_uniform():
    coords, values = SEEN
    mean = with_constant(1.0).mean(coords, jnp.full_like(values, 0.3))
    np.testing.assert_allclose(mean, 0.3, atol=1e-3)


@pytest.mark.parametrize("block", [None, 2])
def test_loss_is_the_squared_error_of_the_mean(block):
    process = with_constant(-1.0)
    means = jax.vmap(process.mean)(PIXELS.input_coords, PIXELS.input_values)
    expected = np.mean((np.asarray(means) - IMAGES.reshape(4, 24, 2)) ** 2)
    loss = process.loss(IMAGES, PIXELS, block=block)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_training_reaches_the_expected_image():
    """All images are one, so that its pixels can be known."""
    images = np.broadcast_to(IMAGES[:1], IMAGES.shape)
    pixels = fk.data.sparse_pixels(images, output_ratio=0, key=jr.key(3))
    loss = lambda process, images, key: process.loss(images, pixels)
    before = refined().loss(images, pixels)
    trained = fk.training.fit(
        loss,
        refined(),
        images,
        batch_size=4,
        num_steps=200,
        optimizer=optax.adam(1e-2),
        progress=False,
        key=jr.key(4),
    ).model
    assert trained.loss(images, pixels) < 0.01 * before


def test_flows_leave_it_as_it_is():
    config = fk.pipelines.SparseFlowConfig(
        shape=(4, 6, 2), network="unet", width_size=8, multipliers=(1,)
    )
    model = config.build(process=refined())
    grads = eqx.filter_grad(lambda m: m.loss(IMAGES, PIXELS, key=jr.key(5)))(model)
    largest = lambda tree: max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(tree))
    assert largest(grads.process) == 0
    assert largest(grads.flow) > 0


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="`h` and `w` are 6 and 4.*built for .* 4 x 6"):
        refined().sample_image(*SEEN, 6, 4, key=jr.key(0))
