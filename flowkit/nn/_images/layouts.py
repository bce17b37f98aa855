"""How the parts of a U-Net are arranged, and which of them are joined by skips."""

import abc
import operator
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx

from flowkit._checks import as_size
from flowkit.nn._images.parts import Parts, Stage


class Stages(NamedTuple):
    """A U-Net: the way down, the middle, the way up, and the output."""

    down: tuple[Stage, ...]
    middle: Stage
    up: tuple[Stage, ...]
    out: Stage


class AbstractLayout(eqx.Module):
    """The arrangement of a U-Net."""

    @abc.abstractmethod
    def stages(
        self, parts: Parts, sizes: Sequence[int], attention_levels: Sequence[int]
    ) -> Stages:
        """The stages, from the image to the result.

        **Arguments:**

        - `parts`: makes the parts.
        - `sizes`: the channels of each level, from the full sides to the smallest.
        - `attention_levels`: the levels with attention.
        """


class SkipEveryBlock(AbstractLayout):
    """A skip from every block, and attention after every block of the attention levels.

    The way up has one block more at each level. The middle is a block, attention, and a
    block.

    **Arguments:** `num_blocks`, the blocks at each level on the way down.

    **Reference:** Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020
    (arXiv 2006.11239).
    """

    num_blocks: int = eqx.field(static=True, default=1, converter=operator.index)

    def __check_init__(self):
        as_size("num_blocks", self.num_blocks)

    def stages(
        self, parts: Parts, sizes: Sequence[int], attention_levels: Sequence[int]
    ) -> Stages:
        size = sizes[0]
        down = [Stage(parts.input(size))]
        kept = [size]
        for level, level_size in enumerate(sizes):
            for _ in range(self.num_blocks):
                down.append(_block(parts, size, level_size, level in attention_levels))
                size = level_size
                kept.append(size)
            if level < len(sizes) - 1:
                down.append(Stage(parts.down(size, size)))
                kept.append(size)

        middle = Stage(
            parts.convs(size, size),
            parts.attention(size),
            parts.convs(size, size),
            skips=False,
        )

        up = []
        for level in reversed(range(len(sizes))):
            for _ in range(self.num_blocks + 1):
                in_size = size + kept.pop()
                size = sizes[level]
                up.append(_block(parts, in_size, size, level in attention_levels))
            if level > 0:
                up.append(Stage(parts.up(size, size), skips=False))
        out = Stage(parts.output(size), skips=False)
        return Stages(tuple(down), middle, tuple(up), out)


class SkipEveryLevel(AbstractLayout):
    """One skip from each level, and attention at the end of the attention levels.

    A change of resolution also changes the number of channels. The middle is two blocks
    and attention, and the output is linear.

    **Arguments:**

    - `num_down`: the blocks at each level on the way down.
    - `num_up`: the blocks at each level on the way up.

    **Reference:** Ronneberger, Fischer, Brox, U-Net, 2015 (arXiv 1505.04597).
    """

    num_down: int = eqx.field(static=True, default=1, converter=operator.index)
    num_up: int = eqx.field(static=True, default=2, converter=operator.index)

    def __check_init__(self):
        as_size("num_down", self.num_down)
        as_size("num_up", self.num_up)

    def stages(
        self, parts: Parts, sizes: Sequence[int], attention_levels: Sequence[int]
    ) -> Stages:
        down = []
        for level, size in enumerate(sizes):
            first = parts.down(sizes[level - 1], size) if level else parts.input(size)
            convs = [parts.convs(size, size) for _ in range(self.num_down)]
            attention = [parts.attention(size)] if level in attention_levels else []
            down.append(Stage(first, *convs, *attention))

        size = sizes[-1]
        middle = Stage(
            parts.convs(size, size),
            parts.convs(size, size),
            parts.attention(size),
            skips=False,
        )

        up = []
        for level in reversed(range(len(sizes))):
            size = sizes[level]
            first = parts.convs(2 * size, size)
            convs = [parts.convs(size, size) for _ in range(self.num_up - 1)]
            attention = [parts.attention(size)] if level in attention_levels else []
            larger = [parts.up(size, sizes[level - 1])] if level else []
            up.append(Stage(first, *convs, *attention, *larger))
        out = Stage(parts.plain_output(size), skips=False)
        return Stages(tuple(down), middle, tuple(up), out)


def _block(parts: Parts, in_size: int, out_size: int, has_attention: bool) -> Stage:
    convs = parts.convs(in_size, out_size)
    if has_attention:
        return Stage(convs, parts.attention(out_size))
    return Stage(convs)
