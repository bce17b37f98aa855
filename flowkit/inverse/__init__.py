"""Linear inverse problems: reconstruction from any observation, with any trained flow."""

from flowkit._namespace import public_names as _public_names
from flowkit.inverse._d_flow import DFlow as DFlow
from flowkit.inverse._dps import DPS as DPS
from flowkit.inverse._exact import exact_posterior as exact_posterior
from flowkit.inverse._gaussian_process import GaussianProcess as GaussianProcess
from flowkit.inverse._method import AbstractMethod as AbstractMethod
from flowkit.inverse._operators import (
    AbstractOperator as AbstractOperator,
    Blur as Blur,
    Composed as Composed,
    gaussian_kernel as gaussian_kernel,
    LinearMap as LinearMap,
    Matrix as Matrix,
    PixelMask as PixelMask,
    Subsample as Subsample,
)
from flowkit.inverse._ot_ode import OTODE as OTODE
from flowkit.inverse._pigdm import PiGDM as PiGDM
from flowkit.inverse._pnp_flow import PnPFlow as PnPFlow
from flowkit.inverse._problem import (
    Problem as Problem,
    Reconstruction as Reconstruction,
)
from flowkit.inverse._reconstruct import reconstruct as reconstruct
from flowkit.inverse._repaint import RePaint as RePaint
from flowkit.inverse._twisted_smc import TwistedSMC as TwistedSMC


__dir__ = _public_names(globals())
