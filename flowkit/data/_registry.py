"""All toys by name, for command lines and loops; in code, call the functions."""

import difflib
import functools as ft
from collections.abc import Callable, Mapping
from types import MappingProxyType

from flowkit.data import _drawings, _gaussians, _papers, _toys, _trex
from flowkit.data._datasaurus import DATASAURUS, datasaurus


def _by_name(*samplers: Callable) -> dict[str, Callable]:
    return {sampler.__name__: sampler for sampler in samplers}


TOYS_1D: Mapping[str, Callable] = MappingProxyType(_by_name(_toys.mixture_1d))
"""The toys on the line: name -> `(num, *, key) -> (num, 1)`."""

TOYS_2D: Mapping[str, Callable] = MappingProxyType(
    _by_name(
        _trex.trex,
        _trex.trex_parametric,
        _gaussians.two_gaussians,
        _gaussians.shifted_gaussians,
        _gaussians.two_centers,
        _toys.three_modes,
        _toys.eight_gaussians,
        _toys.moons,
        _toys.shifted_moons,
        _toys.circles,
        _toys.s_curve,
        _toys.spiral,
        _toys.pinwheel,
        _toys.checkerboard,
        _drawings.concentric,
        _drawings.smiley,
        _papers.tong_eight_gaussians,
        _papers.tong_moons,
        _papers.tong_s_curve,
        _papers.tong_wide_moons,
        _papers.tong_wide_gaussians,
        _papers.c2ot_eight_gaussians,
        _papers.c2ot_moons,
    )
    | {
        f"datasaurus_{shape}": ft.partial(datasaurus, shape=shape)
        for shape in DATASAURUS[1:]
    }
)
"""The toys in the plane: name -> `(num, *, key) -> (num, 2)`.

Those named `datasaurus_` need a file: see `load_datasaurus`.
"""


def toy(name: str) -> Callable:
    """The sampler of that name in `TOYS_1D` or `TOYS_2D`.

    **Raises:** `ValueError`, with all names, if there is none.
    """
    known = {**TOYS_1D, **TOYS_2D}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"`name` must be one of {', '.join(known)}, got {name!r}{hint}"
        )
    return known[name]
