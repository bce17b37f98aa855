"""Solvers by name, for command lines; in code, name the class."""

from collections.abc import Mapping
from types import MappingProxyType

import diffrax as dfx

from flowkit.solvers import RK4


SOLVERS: Mapping[str, dfx.AbstractSolver] = MappingProxyType(
    {
        "euler": dfx.Euler(),
        "midpoint": dfx.Midpoint(),
        "heun": dfx.Heun(),
        "rk4": RK4(),
        "tsit5": dfx.Tsit5(),
        "dopri5": dfx.Dopri5(),
    }
)
"""Name -> solver of differential equations, for a grid of equal steps."""
