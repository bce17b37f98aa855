"""How decoders and autoencoders map latents and examples to each other, as pairs."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from flowkit._types import AnyArray
from flowkit.plotting._style import (
    box,
    colors,
    finish,
    Limits,
    new_figure,
    own_look,
    PathLike,
    require,
    style_axes,
    style_legend,
    style_space,
)
from flowkit.plotting._trajectories import Dots, dots_for


class LatentMap(NamedTuple):
    """Pairs of latents and examples, a panel of `comparison`.

    Each pair is a tuple of two arrays of one shape `(n, d)`.

    - `train`: `(z, x)`, latents of the prior and the data they were paired with in
      training.
    - `infer`: `(z, output)`, latents of the prior and what the decoder makes of them.
    - `encode`: `(x, latents)`, data and its latents.
    - `decode`: `(latents, output)`, these latents and what the decoder makes of them.
    """

    train: tuple[Float[AnyArray, "n d"], Float[AnyArray, "n d"]] | None = None
    infer: tuple[Float[AnyArray, "n d"], Float[AnyArray, "n d"]] | None = None
    encode: tuple[Float[AnyArray, "n d"], Float[AnyArray, "n d"]] | None = None
    decode: tuple[Float[AnyArray, "n d"], Float[AnyArray, "n d"]] | None = None


class _Look(NamedTuple):
    """Roles and labels of the line, the latents and the examples of a kind of pair."""

    line: tuple[str, str]
    latents: tuple[str, str]
    examples: tuple[str, str]


_PRIOR = ("prior_z", "latents of the prior")
_LATENT = ("latent_z_hat", "encoded latents")
_DATA = ("data_x", "data")
_OUTPUT = ("output_x_hat", "output")
_LOOKS = {
    "train": _Look(("coupling_train", "training pairs"), _PRIOR, _DATA),
    "infer": _Look(("coupling_infer", "inference"), _PRIOR, _OUTPUT),
    "encode": _Look(("encode_line", "encode"), _LATENT, _DATA),
    "decode": _Look(("decode_line", "decode"), _LATENT, _OUTPUT),
}


@own_look()
def latent_map(
    panel: LatentMap, *, limits: Limits = None, title: str = "", path: PathLike = None
) -> Figure:
    """What a decoder or an autoencoder maps to what, in one or two dimensions.

    In one dimension latents are the left column and examples the right one, with lines
    between them. In two dimensions both lie in the same axes.

    **Arguments:**

    - `panel`: the pairs.
    - `limits`: `(low, high)` of every spatial axis.
    - `title`: the title of the figure.
    """
    pairs = as_pairs("panel", panel)
    size = size_of(pairs)
    lows, highs = box(clouds_of(pairs), size, limits, padding=0.1)

    figure = new_figure(5.6, 3.9 if size == 1 else 4.7)
    axes = figure.add_subplot()
    style_axes(axes, title)
    counts = [len(cloud) for cloud in clouds_of(pairs)]
    draw_map(axes, pairs, lows, highs, dots_for([], 4, counts))
    style_legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return finish(figure, path)


def as_pairs(name: str, panel: LatentMap) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The finite pairs of each kind, latents first and examples second."""
    pairs = {}
    for kind, pair in panel._asdict().items():
        if pair is None:
            continue
        first = np.asarray(pair[0], np.float64)
        second = np.asarray(pair[1], np.float64)
        require(
            first.shape == second.shape and first.ndim == 2,
            f"`{kind}` of `{name}` has shapes {first.shape} and {second.shape}; both are (n, d).",
        )
        keep = np.isfinite(first).all(1) & np.isfinite(second).all(1)
        pairs[kind] = (first[keep], second[keep])
        # Encoding goes from data to latents, but all pairs have their latents first.
        if kind == "encode":
            pairs[kind] = (second[keep], first[keep])
    require(bool(pairs), f"`{name}` has no pairs; there is nothing to draw.")

    return pairs


def size_of(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> int:
    """The dimension of latents and examples."""
    sizes = {latents.shape[1] for latents, _ in pairs.values()}
    require(
        len(sizes) == 1 and sizes <= {1, 2},
        f"pairs have dimensions {sorted(sizes)}; all must have 1 or all 2.",
    )
    return sizes.pop()


def clouds_of(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """All latents and examples."""
    return [cloud for pair in pairs.values() for cloud in pair]


def draw_map(
    axes: Any, pairs: dict, lows: np.ndarray, highs: np.ndarray, dots: Dots
) -> None:
    """Draws lines between the pairs, and dots at their ends."""
    on_line = len(lows) == 1
    # Columns are widened to show points of equal value, the same way in every frame.
    jitter = np.random.default_rng(0)
    for kind, (latents, examples) in pairs.items():
        look = _LOOKS[kind]
        if on_line:
            shifts = jitter.uniform(-0.02, 0.02, (2, len(latents), 1))
            latents = np.concatenate([shifts[0], latents], 1)
            examples = np.concatenate([1 + shifts[1], examples], 1)

        role, label = look.line
        segments = list(np.stack([latents, examples], 1))
        style = {"colors": colors[role], "linewidths": 0.5, "alpha": 0.3}
        axes.add_collection(LineCollection(segments, label=label, **style))
        _draw_ends(axes, latents, *look.latents, dots)
        _draw_ends(axes, examples, *look.examples, dots)

    if on_line:
        axes.set_xlim(-0.1, 1.1)
        axes.set_xticks([0, 1], ["latent", "data"])
        axes.set_ylim(lows[0], highs[0])
    else:
        style_space(axes, lows, highs)


def _draw_ends(axes: Any, cloud: np.ndarray, role: str, label: str, dots: Dots) -> None:
    style = {"s": dots.front, "alpha": 0.7, "linewidths": 0, "zorder": 3}
    if role == "data_x":
        style |= {"marker": "x", "linewidths": 0.6}
    # The legend names each kind of point once.
    known = axes.get_legend_handles_labels()[1]
    axes.scatter(
        *cloud.T, color=colors[role], label=None if label in known else label, **style
    )
