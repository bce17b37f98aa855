"""What a U-Net is made of."""

from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import check_sizes
from flowkit._types import PRNGKey
from flowkit.nn._images.conv import Conv
from flowkit.nn._images.group_norm import GroupNorm
from flowkit.nn._layers.attention import Attention
from flowkit.nn._layers.linear import Linear
from flowkit.nn._layers.transformer import check_rate, split_or_none


# Sides and channels change from part to part, so their names would not agree.
Image = Float[Array, "_ _ _"]
Vector = Float[Array, " _"]


def check_image(x: Array, in_size: int, divisor: int, reason: str) -> None:
    """Raises unless `x` is one image with `in_size` channels and divisible sides."""
    if x.ndim != 3 or x.shape[-1] != in_size:
        raise ValueError(
            f"`x` must be one image (h, w, {in_size}), channels last, got shape "
            f"{x.shape}; for a batch use `jax.vmap`."
        )
    if x.shape[0] % divisor or x.shape[1] % divisor:
        raise ValueError(
            f"the sides of `x` must be divisible by {divisor} for {reason}, got "
            f"{x.shape[0]} x {x.shape[1]}; pad or resize the images."
        )


def nearest_2x(h: Image) -> Image:
    """Doubles height and width by repeating every pixel four times."""
    return jnp.repeat(jnp.repeat(h, 2, axis=0), 2, axis=1)


def bilinear_2x(h: Image) -> Image:
    """Doubles height and width by linear interpolation between pixel centers."""
    height, width, size = h.shape
    return jax.image.resize(h, (2 * height, 2 * width, size), "bilinear")


class ResidualConvs(eqx.Module):
    """Two convolutions, with the vector of time and condition between them.

    `h + conv(dropout(silu(norm(conv(silu(norm(h))) + Linear(vector)))))`, where `h` goes
    through a linear map if the number of channels changes.
    """

    first_norm: GroupNorm
    first: Conv
    from_vector: Linear
    second_norm: GroupNorm
    dropout: eqx.nn.Dropout
    second: Conv
    shortcut: Linear | None

    def __init__(
        self,
        in_size: int,
        out_size: int,
        vector_size: int,
        *,
        num_groups: int,
        dropout: float,
        key: PRNGKey,
    ):
        check_rate("dropout", dropout)
        first_key, vector_key, second_key, shortcut_key = jr.split(key, 4)
        self.first_norm = GroupNorm(in_size, num_groups)
        self.first = Conv(in_size, out_size, key=first_key)
        self.from_vector = Linear(vector_size, out_size, key=vector_key)
        self.second_norm = GroupNorm(out_size, num_groups)
        self.dropout = eqx.nn.Dropout(dropout)
        self.second = Conv(out_size, out_size, key=second_key)
        self.shortcut = None
        if in_size != out_size:
            self.shortcut = Linear(in_size, out_size, key=shortcut_key)

    def __call__(self, h: Image, vector: Vector, key: PRNGKey | None = None) -> Image:
        update = self.first(jax.nn.silu(self.first_norm(h)))
        update = update + self.from_vector(vector)[None, None]
        update = jax.nn.silu(self.second_norm(update))
        if key is not None:
            update = self.dropout(update, key=key)
        update = self.second(update)
        return update + (h if self.shortcut is None else self.shortcut(h))


class PixelAttention(eqx.Module):
    """`h + Attention(norm(h))`, where all pixels attend to each other."""

    norm: GroupNorm
    attention: Attention

    def __init__(self, size: int, *, num_heads: int, num_groups: int, key: PRNGKey):
        self.norm = GroupNorm(size, num_groups)
        self.attention = Attention(size, num_heads=num_heads, use_bias=True, key=key)

    def __call__(self, h: Image) -> Image:
        rows = self.norm(h).reshape(-1, h.shape[-1])
        return h + self.attention(rows).reshape(h.shape)


class Upsample(eqx.Module):
    """Doubles height and width with `resize`, then applies a convolution."""

    resize: Callable[[Image], Image]
    conv: Conv

    def __call__(self, h: Image) -> Image:
        return self.conv(self.resize(h))


class Output(eqx.Module):
    """`conv(silu(norm(h)))`, which starts at zero."""

    norm: GroupNorm
    conv: Conv

    def __call__(self, h: Image) -> Image:
        return self.conv(jax.nn.silu(self.norm(h)))


class Stage(eqx.Module):
    """Parts in a row, at one end of a skip connection if `skips`.

    On the way down the result of the stage is kept; on the way up the last result that
    was kept is joined to its input.
    """

    parts: tuple[Callable[..., Image], ...]
    skips: bool = eqx.field(static=True)

    def __init__(self, *parts: Callable[..., Image], skips: bool = True):
        self.parts = parts
        self.skips = skips

    def __call__(self, h: Image, vector: Vector, key: PRNGKey | None = None) -> Image:
        keys = split_or_none(key, len(self.parts))
        for part, part_key in zip(self.parts, keys, strict=True):
            if isinstance(part, ResidualConvs):
                h = part(h, vector, part_key)
            else:
                h = part(h)
        return h


class Parts:
    """Builds the parts of one U-Net, each with a key of its own."""

    def __init__(
        self,
        in_size: int,
        out_size: int,
        vector_size: int,
        *,
        num_heads: int = 4,
        num_groups: int = 8,
        dropout: float = 0.0,
        resize: Callable[[Image], Image] = nearest_2x,
        zero_init: bool = True,
        key: PRNGKey,
    ):
        check_sizes(in_size=in_size, out_size=out_size)
        self.in_size = in_size
        self.out_size = out_size
        self.vector_size = vector_size
        self.num_heads = num_heads
        self.num_groups = num_groups
        self.dropout = dropout
        self.resize = resize
        self.zero_init = zero_init
        self._keys = _key_stream(key)

    def input(self, size: int) -> Conv:
        """The convolution applied to the input image."""
        return Conv(self.in_size, size, key=next(self._keys))

    def convs(self, in_size: int, out_size: int) -> ResidualConvs:
        return ResidualConvs(
            in_size,
            out_size,
            self.vector_size,
            num_groups=self.num_groups,
            dropout=self.dropout,
            key=next(self._keys),
        )

    def attention(self, size: int) -> PixelAttention:
        return PixelAttention(
            size,
            num_heads=self.num_heads,
            num_groups=self.num_groups,
            key=next(self._keys),
        )

    def down(self, in_size: int, out_size: int) -> Conv:
        return Conv(in_size, out_size, stride=2, key=next(self._keys))

    def up(self, in_size: int, out_size: int) -> Upsample:
        return Upsample(self.resize, Conv(in_size, out_size, key=next(self._keys)))

    def output(self, size: int) -> Output:
        conv = Conv(
            size,
            self.out_size,
            zero_init=self.zero_init,
            key=next(self._keys),
        )
        return Output(GroupNorm(size, self.num_groups), conv)

    def plain_output(self, size: int) -> Linear:
        return Linear(
            size, self.out_size, zero_init=self.zero_init, key=next(self._keys)
        )


def _key_stream(key: PRNGKey) -> Iterator[PRNGKey]:
    while True:
        key, part_key = jr.split(key)
        yield part_key
