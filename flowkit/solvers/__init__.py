"""Solvers that Diffrax does not have, solvers fitted to a flow, and ways to solve a batch."""

from flowkit._namespace import public_names as _public_names
from flowkit._solve.batching import (
    AbstractBatching as AbstractBatching,
    Lockstep as Lockstep,
)
from flowkit._solve.noise_scales import (
    AbstractNoiseScale as AbstractNoiseScale,
    ConstantNoise as ConstantNoise,
    DecreasingNoise as DecreasingNoise,
    DiffusionNoise as DiffusionNoise,
    LinearNoise as LinearNoise,
    SigmaNoise as SigmaNoise,
    SineNoise as SineNoise,
)
from flowkit._solve.traces import (
    AbstractTrace as AbstractTrace,
    ExactTrace as ExactTrace,
    gaussian as gaussian,
    Hutchinson as Hutchinson,
    HutchPlusPlus as HutchPlusPlus,
    orthogonal as orthogonal,
    rademacher as rademacher,
)
from flowkit.solvers._adams_bashforth import AdamsBashforth as AdamsBashforth
from flowkit.solvers._exponential import Exponential as Exponential
from flowkit.solvers._fit_grid import fit_grid as fit_grid
from flowkit.solvers._fit_steps import fit_steps as fit_steps
from flowkit.solvers._grids import (
    edm_grid as edm_grid,
    power_grid as power_grid,
    shifted_grid as shifted_grid,
)
from flowkit.solvers._learned_steps import LearnedSteps as LearnedSteps
from flowkit.solvers._over_devices import OverDevices as OverDevices
from flowkit.solvers._refilled_slots import RefilledSlots as RefilledSlots
from flowkit.solvers._rk4 import RK4 as RK4
from flowkit.solvers._shared_step import SharedStep as SharedStep


__dir__ = _public_names(globals())
