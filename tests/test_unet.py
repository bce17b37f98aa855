"""The U-Net: its sizes, its conditions, and every way to train and sample with it."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import flowkit as fk
from flowkit import nn


SMALL = {"width_size": 8, "multipliers": (1, 2), "num_heads": 2, "num_groups": 4}


def num_parameters(build, *arguments):
    shapes = eqx.filter_eval_shape(build, *arguments)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes) if hasattr(leaf, "size"))


def level_unet(channels, width_size, time_size):
    """One skip and one attention per level, and two blocks per level on the way up."""
    time_embedding = nn.LearnedTime(
        time_size,
        embedding=nn.SinusoidalTime(time_size),
        width_size=4 * time_size,
        key=jr.key(1),
    )
    return nn.UNet(
        channels,
        width_size=width_size,
        multipliers=(1, 2, 4, 8),
        layout=nn.SkipEveryLevel(),
        attention_levels=(2, 3),
        num_heads=1,
        dropout=0.1,
        time_embedding=time_embedding,
        vector_activation=lambda vector: vector,
        resize=nn.bilinear_2x,
        zero_init=False,
        key=jr.key(0),
    )


@pytest.mark.parametrize(
    ("arguments", "count"),
    [((1, 16, 256), 3_213_697), ((3, 32, 512), 12_830_595), ((3, 64, 512), 42_978_563)],
)
def test_sizes_with_one_skip_per_level(arguments, count):
    assert num_parameters(lambda: level_unet(*arguments)) == count


def test_size_with_a_skip_per_block():
    """The U-Net of torchcfm's example on MNIST."""
    build = lambda: nn.UNet(1, attention_levels=(0,), num_heads=1, key=jr.key(0))
    assert num_parameters(build) == 1_075_361


@eqx.filter_jit
def run(network, x, cond=None, key=None):
    """The network at one time; eagerly, every operation would be compiled alone."""
    return network(0.3, x, cond, key=key)


def random_unet(key, **options):
    return nn.UNet(3, **(SMALL | options), zero_init=False, key=key)


@pytest.mark.parametrize("layout", [nn.SkipEveryBlock(2), nn.SkipEveryLevel(2, 3)])
def test_every_pixel_sees_time_and_image(layout, key):
    """A change anywhere is seen everywhere: through the levels and through attention."""
    network = random_unet(key, layout=layout, attention_levels=(1,))
    x = jr.normal(key, (8, 12, 3))
    at = eqx.filter_jit(network)
    y = at(0.3, x)
    assert y.shape == x.shape
    assert np.all(at(0.4, x) != y)
    assert np.all(at(0.3, x.at[0, 0, 0].add(1.0)) != y)


def test_starts_as_zero_and_takes_two_times(key):
    network = nn.UNet(1, 2, **SMALL, key=key)
    assert not np.any(network(0.3, jnp.ones((4, 4, 1))))
    embedding = nn.TwoTimes(nn.SinusoidalTime(8))
    of_two = nn.UNet(1, **SMALL, time_embedding=embedding, key=key)
    assert of_two(jnp.array([0.1, 0.4]), jnp.ones((4, 4, 1))).shape == (4, 4, 1)


def test_patches_are_channels(key):
    """The network on patches is one on a smaller image, with a channel for each pixel."""
    x = np.asarray(jr.normal(key, (8, 12, 3)))
    small = np.zeros((4, 6, 12), np.float32)
    for i, j in np.ndindex(2, 2):
        channels = 3 * (2 * i + j) + np.arange(3)
        small[:, :, channels] = x[i::2, j::2]

    y = run(random_unet(key, patch_size=2), x)
    options = SMALL | {"zero_init": False}
    expected = run(nn.UNet(12, **options, key=key), small)
    for i, j in np.ndindex(2, 2):
        channels = 3 * (2 * i + j) + np.arange(3)
        assert np.allclose(y[i::2, j::2], expected[:, :, channels], atol=1e-5)


def test_conditions(key):
    """Classes with one that stands for none, vectors, and a class with an image."""
    x = jr.normal(key, (4, 4, 3))
    image = jr.normal(key, (4, 4, 2))
    classes = nn.ClassEmbedding(10, 6, key=key)
    by_class = random_unet(key, cond_embedding=classes)
    labels = np.array([0, 1, 10, 11])
    outputs = eqx.filter_vmap(run, in_axes=(None, None, 0))(by_class, x, labels)
    assert len(np.unique(outputs[:3, 0, 0, 0])) == 3
    assert np.all(np.isnan(outputs[3]))

    many = nn.ClassEmbedding(300, 6, key=key)
    np.testing.assert_array_equal(many(jnp.uint8(50)), many(50))

    by_vector = random_unet(key, cond_embedding=nn.Linear(5, 6, key=key))
    assert np.all(run(by_vector, x, jnp.ones(5)) != run(by_vector, x, jnp.zeros(5)))

    by_both = random_unet(key, cond_embedding=classes, cond_image_size=2)
    expected = run(by_both, x, (jnp.array(3), image))
    assert np.any(run(by_both, x, (jnp.array(4), image)) != expected)
    assert np.any(run(by_both, x, (jnp.array(3), 2 * image)) != expected)


def test_dropout_precision_and_memory(key):
    x = jr.normal(key, (4, 4, 3))
    plain = random_unet(key, multipliers=(1,))
    dropped = random_unet(key, multipliers=(1,), dropout=0.5)
    expected = run(plain, x)
    np.testing.assert_array_equal(run(dropped, x), expected)
    assert np.any(run(dropped, x, key=key) != expected)

    half = random_unet(key, multipliers=(1,), dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention promotes
        in_half = run(half, x)
    assert in_half.dtype == jnp.float32
    assert 0 < np.max(np.abs(in_half - expected)) < 0.1

    remade = random_unet(key, multipliers=(1,), rematerialize=True)
    gradient = eqx.filter_grad(lambda network: jnp.sum(run(network, x) ** 2))
    pairs = zip(*map(jax.tree.leaves, map(gradient, (plain, remade))), strict=True)
    assert all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


def test_gradients_of_forward_derivatives(key):
    """What few-step losses take: the derivative along the flow, and its gradient."""
    embedding = nn.TwoTimes(nn.SinusoidalTime(8))
    network = random_unet(key, multipliers=(1,), time_embedding=embedding)
    flow_map = fk.few_step.FlowMap(network)
    x = jr.normal(key, (2, 4, 4, 3))
    loss = lambda flow_map: fk.few_step.mean_flow_loss(flow_map, x, key=key)
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(loss))(flow_map)
    leaves = jax.tree.leaves(eqx.filter(gradient, eqx.is_inexact_array))
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf) for leaf in leaves)


def test_trains_and_samples_images_of_a_class(key):
    """Two classes, a dark and a bright image: samples are those of their class."""
    embedding_key, network_key, fit_key, sample_key = jr.split(key, 4)
    classes = nn.ClassEmbedding(2, 8, key=embedding_key)
    layout = nn.SkipEveryLevel(1, 1)
    network = nn.UNet(
        1, **SMALL, layout=layout, cond_embedding=classes, key=network_key
    )
    flow = fk.Flow(network)
    labels = np.arange(64) % 2
    images = np.where(labels == 1, 0.8, -0.8)[:, None, None, None]
    batches = (np.broadcast_to(images, (64, 4, 4, 1)).astype(np.float32), labels)

    def loss(flow, batch, key):
        x, labels = batch
        drop_key, loss_key = jr.split(key)
        labels = fk.drop_condition(labels, 0.1, null=2, key=drop_key)
        return fk.flow_matching_loss(flow, x, labels, key=loss_key)

    result = fk.training.fit(
        loss, flow, batches, batch_size=32, optimizer=optax.adam(3e-3),
        num_steps=150, steps_per_call=10, key=fit_key, progress=False,
    )  # fmt: skip
    guided = fk.guided(result.model, 1.5, null=2)
    samples = fk.sample(
        guided, (4, 4, 1), num_samples=8, cond=np.arange(8) % 2, key=sample_key,
        solver=dfx.Euler(), num_steps=16,
    )  # fmt: skip
    means = np.mean(samples.values, axis=(1, 2, 3))
    np.testing.assert_allclose(means, [-0.8, 0.8] * 4, atol=0.3)


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda u, key: u(0.3, jnp.zeros((5, 4, 3))), "divisible by 2"),
        (lambda u, key: u(0.3, jnp.zeros((4, 4, 1))), "channels last"),
        (lambda u, key: u(0.3, jnp.zeros((2, 4, 4, 3))), "jax.vmap"),
        (lambda u, key: u(0.3, jnp.zeros((4, 4, 3)), 1), "`cond` must be given"),
        (lambda u, key: nn.UNet(1, multipliers=(), key=key), "`multipliers` must"),
        (
            lambda u, key: nn.UNet(1, attention_levels=(3,), key=key),
            "must lie in 0 ... 2",
        ),
        (lambda u, key: nn.UNet(1, width_size=12, key=key), "`num_groups` must divide"),
        (lambda u, key: nn.UNet(1, patch_size=0, key=key), "`patch_size` must be"),
        (lambda u, key: nn.UNet(1, cond_image_size=-1, key=key), "`cond_image_size`"),
        (lambda u, key: nn.UNet(1, dropout=2.0, key=key), "`dropout` is a probability"),
        (lambda u, key: nn.SkipEveryBlock(-1), "`num_blocks` must be at least 1"),
        (lambda u, key: nn.SkipEveryLevel(0), "`num_down` must be at least 1"),
        (lambda u, key: nn.SkipEveryLevel(1, 0), "`num_up` must be at least 1"),
        (
            lambda u, key: nn.UNet(1, cond_embedding=lambda c: c, key=key),
            "must have an `out_size`",
        ),
        (lambda u, key: nn.ClassEmbedding(3, 4, key=key)(4), "3 for none"),
        (
            lambda u, key: random_unet(key, cond_embedding=nn.Linear(2, 4, key=key))(
                0.3, jnp.zeros((4, 4, 3)), jnp.zeros((1, 2))
            ),
            r"one vector of size 4 of `cond`, got shape \(1, 4\)",
        ),
        (lambda u, key: nn.GroupNorm(8, 4)(jnp.zeros((4, 4, 4))), "built with size=8"),
        (
            lambda u, key: random_unet(key, cond_image_size=1)(
                0.3, jnp.zeros((4, 4, 3)), jnp.zeros((8, 8, 1))
            ),
            "must have the shape",
        ),
    ],
)
def test_misuse(call, fragment, key):
    with pytest.raises(ValueError, match=fragment):
        call(random_unet(key), key)
