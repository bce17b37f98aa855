"""Solvers that Diffrax does not have, solvers fitted to a flow, and ways through a batch."""

from flowkit._namespace import public_names as _public_names
from flowkit._solve.batching import (
    AbstractBatching as AbstractBatching,
    Lockstep as Lockstep,
)
from flowkit.solvers._adams_bashforth import AdamsBashforth as AdamsBashforth
from flowkit.solvers._fit_grid import fit_grid as fit_grid
from flowkit.solvers._fit_steps import fit_steps as fit_steps
from flowkit.solvers._learned_steps import LearnedSteps as LearnedSteps
from flowkit.solvers._refilled_slots import RefilledSlots as RefilledSlots
from flowkit.solvers._rk4 import RK4 as RK4
from flowkit.solvers._shared_step import SharedStep as SharedStep


__dir__ = _public_names(globals())
