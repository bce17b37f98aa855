r"""Flow matching: regression of a conditional target along a path.

For a pair $(x_0, x_1)$ of the coupling and a time $t$, $x_t = \alpha x_1 +
\sigma x_0$ and the network is trained towards $a x_1 + b x_0$, the row of its
prediction. With $e$ the error of a prediction of row $(a, b)$ at the same network
output,

$$e \propto a \sigma - b \alpha, \qquad\text{so}\qquad
e_v : e_0 : e_1 = D : -\alpha : \sigma, \qquad D = \alpha' \sigma - \alpha \sigma',$$

which turns the squared error of the network into that of any other prediction by an
exact factor.

**Reference:** Lipman et al., Flow Matching for Generative Modeling (2023), arXiv
2210.02747; Kingma and Gao, Understanding Diffusion Objectives as the ELBO (2023), arXiv
2303.00848, for the weights.
"""

import functools as ft
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._blocks import (
    AutomaticBlock,
    Block,
    check_block,
    map_over_batch,
    mean_over_batch,
)
from flowkit._checks import check_instance
from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import (
    AbstractPrediction,
    away_from_poles,
    bare,
    clip_time,
    Coefficients,
    CUT,
    Flow,
    same_prediction,
    standardize,
    Standardized,
    Velocity,
)
from flowkit._losses.draw import Batch, check_batch, Draw, draw_examples, Example
from flowkit._losses.times import uniform
from flowkit._losses.weighting import error_scale, likelihood_weighting, Weighting
from flowkit._types import AnyArray, Cond, PRNGKey, sum_dtype


class Errors(NamedTuple):
    """The loss of each example, `(batch,)`, and its time.

    A time is the one that was drawn; see `fk.Flow` for where the network is evaluated.
    """

    values: Float[Array, " batch"]
    times: Float[Array, " batch"]


def flow_matching_loss(
    flow: Flow | Standardized,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    times: Callable = uniform,
    targets: Sequence[AbstractPrediction] = (Velocity(),),
    weighting: Weighting | None = None,
    mask: Bool[AnyArray, "batch n"] | None = None,
    block: Block = AutomaticBlock(),
) -> Float[Array, ""]:
    r"""The flow-matching loss of a batch, a scalar.

    $$L = \frac1B \sum_i \sum_j \mathrm{mean}\, \| e_j(t_i) \|^2$$

    over the examples and the listed `targets`, the inner mean over all valid entries of
    an example. It does not go to zero: its floor is the variance of the target given
    $x_t$. See `fk.explained_velocity` for a readable number.

    ```python
    loss = fk.flow_matching_loss(flow, x1, key=key, coupling=fk.assignment)
    ```

    **Arguments:**

    - `flow`: the flow.
    - `x1`: the data, `(batch, ...)`.
    - `cond`: a pytree with the same leading axis.
    - `source`: the distribution of `x0`.
    - `coupling`: how noise and data are paired: `fk.independent`, `fk.assignment`,
      within clouds `fk.point_assignment`, or any function `(x0, x1, cond, *, key) ->
      fk.Pairing`, which also gets `mask=` if it takes one.
    - `times`: the distribution of `t`, a function `(num, *, key) -> (num,)`.
    - `targets`: the predictions whose errors are summed, whatever the network predicts; the factors
      between them are exact, and taken $10^{-3}$ away from an end where they are infinite. On
      the linear path the squared velocity error is $1/t^2$ times that of a `fk.Noise()` and
      $1/(1-t)^2$ times that of a `fk.Target()` network, up to $10^6$: train these with
      `targets=(fk.Noise(),)` or `targets=(fk.Target(),)`.
    - `weighting`: `(path, t) -> ()`. It multiplies the squared velocity error, once per
      listed target, in place of their factors; `fk.likelihood_weighting` is the
      "optimal" one.
    - `mask`: `(batch, n)`, which points of each cloud are valid. The others influence
      neither loss nor gradient.
    - `block`: the number of examples that are worked on at a time, after times, noise and
      pairs are drawn for the whole batch: `None` for all of them, or a divisor of the batch.
      It changes time and memory, never the result. The default chooses while tracing.

    **Raises:** `ValueError` for batches that do not fit together, and, where the values
    are known, for non-finite data and clouds without a valid point.
    """
    check_batch(x1, cond, mask)
    x1 = standardize(flow, x1)
    inner: Flow = bare(flow)
    check_targets(inner, targets, weighting)
    check_block(block, x1.shape[0])
    batch = Batch(x1, cond, mask)
    draw = Draw(source, coupling, times)
    error = ExampleError(tuple(targets), weighting)
    return _loss(inner, batch, draw, key, error, block)


def flow_matching_errors(
    flow: Flow | Standardized,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    times: Callable = uniform,
    targets: Sequence[AbstractPrediction] = (Velocity(),),
    weighting: Weighting | None = None,
    mask: Bool[AnyArray, "batch n"] | None = None,
    block: Block = AutomaticBlock(),
) -> Errors:
    """The terms that `fk.flow_matching_loss` averages, with their times.

    Arguments and draws are the same.
    """
    check_batch(x1, cond, mask)
    x1 = standardize(flow, x1)
    inner: Flow = bare(flow)
    check_targets(inner, targets, weighting)
    check_block(block, x1.shape[0])
    batch = Batch(x1, cond, mask)
    draw = Draw(source, coupling, times)
    error = ExampleError(tuple(targets), weighting)
    return _errors(inner, batch, draw, key, error, block)


def check_targets(
    flow: Flow, targets: Sequence[AbstractPrediction], weighting: Weighting | None
) -> None:
    """Raises for no targets, and for targets and weightings that convert squared errors if
    the flow is trained with another loss."""
    check_instance("weighting", weighting)
    if not targets:
        raise ValueError(
            "`targets` must list at least one prediction, such as `(fk.Velocity(),)`."
        )
    own = len(targets) == 1 and same_prediction(targets[0], flow.prediction)
    if not flow.head.squared and (weighting is not None or not own):
        raise ValueError(
            "`targets` and `weighting` convert squared errors, but the flow is trained with "
            f"the error of {flow.head}; leave `weighting` out and give "
            "`targets=(flow.prediction,)`."
        )


class ExampleError(eqx.Module):
    """The error of one example, `(flow, example) -> (error, None)`."""

    targets: tuple[AbstractPrediction, ...]
    weighting: Weighting | None

    def __call__(self, flow: Flow, example: Example) -> tuple[Float[Array, ""], None]:
        t = self.time(flow, example.t)
        c = flow.path.coefficients(t)
        x_t = c.alpha * example.x1 + c.sigma * example.x0
        target = flow.prediction.evaluate(c, example.x0, example.x1)

        output = flow.output(t, x_t, example.cond, mask=example.mask, key=example.key)
        # In at least float32: squares of 300 are infinite in float16, and so are factors.
        wide = sum_dtype(t.dtype)
        error = flow.head.error(output.astype(wide), target.astype(wide), example.mask)

        t = t.astype(wide)
        error = error * self.factor(flow, t, flow.path.coefficients(t))
        if example.weight is not None:
            error = example.weight * error
        # The loss has the type of the data.
        return error.astype(example.x1.dtype), None

    def time(self, flow: Flow, t: Array) -> Array:
        """Where the network is evaluated: away from ends at which an error is infinite."""
        t = clip_time(t, flow.t_start, flow.t_end)
        own = flow.prediction
        for target in self.targets:
            if not same_prediction(target, own):
                t = away_from_poles(t, flow.path, own, target, CUT)
        return t

    def factor(self, flow: Flow, t: Array, c: Coefficients) -> Array:
        """What turns the squared error of the network into the weighted sum of the squared
        errors of the targets."""
        if self.weighting is not None:
            ratio = _squared_ratio(Velocity(), flow.prediction, c)
            return len(self.targets) * self.weighting(flow.path, t) * ratio

        ratios = [_squared_ratio(target, flow.prediction, c) for target in self.targets]
        return ft.reduce(jnp.add, ratios)

    def with_checked_weights(self, flow: Flow, examples: Example) -> Example:
        """The examples of a batch, with an error at run time for weights that are not finite."""
        if self.weighting is None or self.weighting is likelihood_weighting:
            return examples
        weighting = self.weighting
        weigh = lambda t: weighting(flow.path, self.time(flow, t))
        weights = jax.vmap(weigh)(examples.t)
        if weights.shape != examples.t.shape:
            raise ValueError(
                "`weighting` must return one number for each time, shape (), but returned "
                f"shape {weights.shape[1:]}."
            )
        message = "`weighting` returned NaN or infinity at a time that was drawn."
        invalid = jnp.any(~jnp.isfinite(weights))
        # The check has to hang on a value that is used, or the compiler would drop it.
        return examples._replace(t=eqx.error_if(examples.t, invalid, message))


def _squared_ratio(
    target: AbstractPrediction, own: AbstractPrediction, c: Coefficients
) -> Array:
    """The squared error of `target` over that of a network which predicts `own`."""
    if same_prediction(target, own):
        return jnp.ones_like(c.alpha)
    return (error_scale(target, c) / error_scale(own, c)) ** 2


@eqx.filter_jit
def _loss(flow, batch, draw, key, error, block):
    examples = error.with_checked_weights(flow, draw_examples(flow, batch, draw, key))
    return mean_over_batch(error, flow, examples, block=block)[0]


@eqx.filter_jit
def _errors(flow, batch, draw, key, error, block):
    examples = error.with_checked_weights(flow, draw_examples(flow, batch, draw, key))
    values, _ = map_over_batch(error, flow, examples, block=block)
    return Errors(values, examples.t)
