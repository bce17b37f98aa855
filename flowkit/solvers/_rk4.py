"""The classical Runge-Kutta method."""

import diffrax as dfx
import numpy as np


class RK4(dfx.AbstractERK):
    """The classical Runge-Kutta method: order 4, four evaluations per step, no error estimate.

    For uniform grids, `num_steps=n`, or `diffrax.StepTo`.

    **Reference:** Kutta, Beitrag zur näherungsweisen Integration totaler Differentialgleichungen (1901).
    """

    tableau = dfx.ButcherTableau(
        c=np.array([0.5, 0.5, 1.0]),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.zeros(4),
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
    )
    interpolation_cls = dfx.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        del terms
        return 4
