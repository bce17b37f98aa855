r"""The classical Runge-Kutta method.

$$x_{n+1} = x_n + \tfrac h6 (k_1 + 2 k_2 + 2 k_3 + k_4).$$
"""

import diffrax as dfx
import numpy as np


class RK4(dfx.AbstractERK):
    """The classical Runge-Kutta method.

    It has order 4, four evaluations per step, and no error estimate.

    For uniform grids, `num_steps=n`, or `diffrax.StepTo`.

    **Reference:** Kutta, Beitrag zur näherungsweisen Integration totaler
    Differentialgleichungen (1901).
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
