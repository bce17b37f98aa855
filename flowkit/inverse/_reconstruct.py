"""One call for every linear inverse problem, flow and method."""

import operator as op

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._flow import bare, Flow, Standardized, unstandardize
from flowkit._types import (
    Cond,
    FloatArray,
    floats_as_arrays,
    is_traced,
    numbers_as_arrays,
    PRNGKey,
    Scalar,
)
from flowkit.inverse._method import AbstractMethod
from flowkit.inverse._operators import (
    AbstractOperator,
    check_operator,
    shape_behind,
    zero_unobserved,
)
from flowkit.inverse._pigdm import PiGDM
from flowkit.inverse._problem import Problem, Reconstruction


def reconstruct(
    flow: Flow | Standardized,
    operator: AbstractOperator,
    observed: FloatArray,
    cond: Cond = None,
    *,
    noise_std: Scalar,
    method: AbstractMethod = PiGDM(),
    num_samples: int = 1,
    key: PRNGKey,
) -> Reconstruction:
    r"""Samples of the data given $y = A x_1 + s\, \epsilon$, from any trained flow.

    ```python
    operator = fk.inverse.PixelMask(mask)
    result = fk.inverse.reconstruct(flow, operator, operator(image), noise_std=0.05,
                                    num_samples=16, key=key)
    result.mean, result.std
    ```

    The flow is not retrained, and it knows nothing about the operator. It must have
    been trained with the source `fk.Normal()`, paired with the data independently:
    after couplings or reflow the noise of a point depends on its data. Every method
    except `TwistedSMC` is an approximation, which its documentation states.

    **Arguments:**

    - `flow`: the flow of the data.
    - `operator`: $A$, such as `PixelMask`, `Subsample`, `Blur`, `Matrix`, `LinearMap` of any
      function, or `Composed` of several.
    - `observed`: $y$, of one example. Solve a batch of problems with `jax.vmap`.
    - `cond`: the condition of the flow.
    - `noise_std`: $s$, the standard deviation of the noise in the observation.
    - `method`: `PiGDM`, `OTODE`, `DPS`, `PnPFlow`, `DFlow`, `RePaint` or `TwistedSMC`.
    - `num_samples`: how many samples.
    - `key`: the random seed.

    **Returns:** a `Reconstruction`.

    **Raises:** `ValueError` for an observation that is not finite or has another shape than
    `operator` gives, for an operator that is not linear or whose adjoint fails the
    dot-product test, and for problems that the method cannot solve.
    """
    num_samples = op.index(num_samples)
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be positive, got {num_samples}.")
    _check_noise(noise_std, method)

    observed = jnp.asarray(observed)
    shape = shape_behind(operator, observed)
    problem = _problem(
        flow, operator, observed, jnp.asarray(noise_std, observed.dtype), cond
    )
    if not is_traced(problem):
        check_operator(operator, shape, observed.dtype)

    method = floats_as_arrays(method)
    result = _sample_all(problem, method, num_samples, key)
    if not isinstance(flow, Standardized):
        return result
    in_units = jax.vmap(lambda z: unstandardize(flow, z))
    return result._replace(values=in_units(result.values))


class InUnits(AbstractOperator):
    """An operator on data in their units, seen by the standardized flow of these data."""

    operator: AbstractOperator
    flow: Standardized

    def __call__(self, x: FloatArray) -> Float[Array, "..."]:
        origin = unstandardize(self.flow, jnp.zeros_like(x))
        return self.operator(unstandardize(self.flow, jnp.asarray(x)) - origin)

    def in_shape(self, observed_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.operator.in_shape(observed_shape)

    def adjoint(self, y: FloatArray) -> Float[Array, "..."]:
        x = self.operator.adjoint(y)
        origin = unstandardize(self.flow, jnp.zeros_like(x))
        return x * (unstandardize(self.flow, jnp.ones_like(x)) - origin)


def _problem(
    flow: Flow | Standardized,
    operator: AbstractOperator,
    observed: Array,
    noise_std: Array,
    cond: Cond,
) -> Problem:
    shape = operator.in_shape(observed.shape)
    observed = zero_unobserved(operator, observed)
    if isinstance(flow, Standardized):
        origin = unstandardize(flow, jnp.zeros(shape, observed.dtype))
        observed = observed - operator(origin)
        operator = InUnits(operator, flow)
    # Nothing is dropped while solving.
    inner = eqx.nn.inference_mode(bare(flow))
    cond = numbers_as_arrays(cond)
    return Problem(inner, operator, observed, noise_std, cond, shape)


def _check_noise(noise_std: Scalar, method: AbstractMethod) -> None:
    if is_traced(noise_std):
        return
    if not float(noise_std) >= 0:
        raise ValueError(f"`noise_std` must not be negative, got {noise_std}.")
    if method.needs_noise and float(noise_std) == 0:
        name = type(method).__name__
        raise ValueError(
            f"`noise_std` must be positive for `{name}`, which divides by it."
        )


@eqx.filter_jit
def _sample_all(problem, method, num_samples, key):
    return method.sample_all(problem, num_samples, key=key)
