"""Solvers that Diffrax does not have, as Diffrax solvers."""

from flowkit._namespace import public_names as _public_names
from flowkit.solvers._rk4 import (
    RK4 as RK4,
)


__dir__ = _public_names(globals())
