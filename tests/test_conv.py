"""Convolutions, against XLA's own in every mode of differentiation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from flowkit import nn


CASES = {
    "plain": {},
    "one pixel": {"kernel_size": 1},
    "stride": {"stride": 2},
    "dilation": {"dilation": 2},
    "no padding": {"padding": 0},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4},
    "even kernel": {"kernel_size": 2},
    "all": {"kernel_size": 5, "stride": 2, "dilation": 2, "padding": 5, "groups": 2},
}


def by_layer(conv, x, weight):
    return eqx.tree_at(lambda conv: conv.weight, conv, weight)(x)


def by_xla(conv, x, weight):
    geometry = conv.geometry
    y = jax.lax.conv_general_dilated(
        x[None],
        weight,
        window_strides=[geometry.stride] * 2,
        padding=[geometry.padding] * 2,
        rhs_dilation=[geometry.dilation] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=geometry.groups,
    )
    return y[0] + conv.bias[None, None]


def in_every_mode(conv, convolve):
    """Values, reverse mode, forward mode, reverse over forward mode, gradients per example."""

    @jax.jit
    def modes(x, dx, d_weight):
        batched = jax.vmap(lambda x, weight: convolve(conv, x, weight), (0, None))
        loss = lambda x, weight: jnp.sum(jnp.sin(batched(x, weight)))

        def rate(x, weight):
            _, rates = jax.jvp(lambda x: batched(x, weight), (x,), (dx,))
            return jnp.sum(jnp.cos(rates) + batched(x, weight) * rates)

        weight = conv.weight
        return (
            batched(x, weight),
            jax.grad(loss, (0, 1))(x, weight),
            jax.jvp(batched, (x, weight), (dx, d_weight))[1],
            jax.grad(rate, (0, 1))(x, weight),
            jax.vmap(jax.grad(loss, 1), (0, None))(x[:, None], weight),
        )

    return modes


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_exact_in_every_mode(options, key):
    with jax.enable_x64(True):
        conv_key, xkey, dxkey, wkey = jr.split(key, 4)
        conv = nn.Conv(4, 8, **options, key=conv_key)
        conv = eqx.tree_at(lambda conv: conv.bias, conv, jnp.arange(8.0))
        x = jr.normal(xkey, (3, 9, 8, 4))
        arguments = (
            x,
            jr.normal(dxkey, x.shape),
            jr.normal(wkey, conv.weight.shape),
        )
        actual = jax.tree.leaves(in_every_mode(conv, by_layer)(*arguments))
        expected = jax.tree.leaves(in_every_mode(conv, by_xla)(*arguments))
        assert len(actual) == len(expected) == 7
        for value, wanted in zip(actual, expected, strict=True):
            np.testing.assert_allclose(value, wanted, atol=1e-10)


def test_sides(key):
    """A stride of 1 keeps the sides, a stride of 2 halves them, rounded up."""

    def shape(side, kernel_size, **options):
        conv = nn.Conv(2, 5, kernel_size, **options, key=key)
        return eqx.filter_eval_shape(conv, jnp.zeros((side, side, 2))).shape

    for side in (7, 8):
        for kernel_size in (1, 2, 3, 4):
            kept = (side, side, 5)
            assert shape(side, kernel_size) == kept
            assert shape(side, kernel_size, dilation=3) == kept
            assert shape(side, kernel_size, stride=2) == (4, 4, 5)


def test_half_precision_and_initial_values(key):
    conv = nn.Conv(64, 128, key=key)
    assert conv(jnp.zeros((4, 4, 64), jnp.bfloat16)).dtype == jnp.bfloat16
    # LeCun: variance 1 / (9 * 64); the estimate of 73,728 draws has a relative error of
    # sqrt(2 / 73,728) = 0.5%.
    assert abs(9 * 64 * jnp.var(conv.weight) - 1) < 5 * 0.0052
    zero = nn.Conv(2, 3, zero_init=True, key=key)
    assert not np.any(zero(jnp.ones((4, 4, 2))))
    assert nn.Conv(2, 3, use_bias=False, key=key).bias is None


def test_a_loop_of_steps_has_no_convolution(key):
    """XLA's gradient of a convolution takes tens of times as long inside a loop on a CPU."""
    conv = nn.Conv(4, 4, key=key)
    x = jnp.zeros((2, 8, 8, 4))
    loss = lambda conv: jnp.sum(jax.vmap(conv)(x) ** 2)

    @jax.jit
    def steps(conv):
        step = lambda conv, _: (
            jax.tree.map(lambda a, b: a - b, conv, jax.grad(loss)(conv)),
            None,
        )
        return jax.lax.scan(step, conv, None, length=3)[0]

    text = steps.lower(conv).as_text()
    assert "stablehlo.convolution" not in text
    assert "stablehlo.dot_general" in text
    alone = jax.jit(lambda conv, x: conv(x))
    assert "stablehlo.convolution" in alone.lower(conv, x[0]).as_text()


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda key: nn.Conv(3, 4, groups=2, key=key), "`groups` must divide"),
        (lambda key: nn.Conv(0, 4, key=key), "`in_size` must be positive"),
        (lambda key: nn.Conv(2, 4, padding=-1, key=key), "`padding` must not"),
        (lambda key: nn.Conv(2, 4, key=key)(jnp.zeros((5, 5, 3))), "channels last"),
        (lambda key: nn.Conv(2, 4, key=key)(jnp.zeros((9, 5, 5, 2))), "jax.vmap"),
        (
            lambda key: nn.Conv(2, 4, 5, padding=0, key=key)(jnp.zeros((4, 9, 2))),
            "smaller than the kernel",
        ),
    ],
)
def test_misuse(call, fragment, key):
    with pytest.raises(ValueError, match=fragment):
        call(key)
