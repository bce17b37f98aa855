r"""Flow matching: regression of a conditional target along a path.

For a pair $(x_0, x_1)$ of the coupling and a time $t$ of its law, $x_t = \alpha x_1 + \sigma x_0$ and the network
is trained towards $a x_1 + b x_0$, the row of its prediction. With $e$ the error of a prediction of row $(a, b)$ at
the same network output,

$$e \propto a \sigma - b \alpha, \qquad\text{so}\qquad
e_v : e_0 : e_1 = D : -\alpha : \sigma, \qquad D = \alpha' \sigma - \alpha \sigma',$$

which turns the squared error of the network into that of any other prediction by an exact factor.

**Reference:** Lipman et al., Flow Matching for Generative Modeling (2023), arXiv 2210.02747; Kingma and Gao,
Understanding Diffusion Objectives as the ELBO (2023), arXiv 2303.00848, for the weights.
"""

import functools as ft
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._blocks import check_block, mean_over_batch
from flowkit._checks import check_data, check_rows
from flowkit._couplings import Coupling, independent, pair
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import Flow, zero_masked
from flowkit._paths import AbstractPath, as_time, Coefficients
from flowkit._predictions import AbstractPrediction, CUT, same_prediction, Velocity
from flowkit._times import stays_inside, stratified, uniform
from flowkit._types import AnyArray, Cond, PRNGKey, Scalar, VelocityField


Weighting = Callable[[AbstractPath, Array], Array]
"""`(path, t) -> ()`, multiplies the squared error of the velocity."""


class Errors(NamedTuple):
    """The loss of each example, and its time as the law drew it (see `fk.Flow` for cuts); both `(batch,)`."""

    values: Float[Array, " batch"]
    times: Float[Array, " batch"]


class ExplainedVelocity(NamedTuple):
    r"""$R^2$ of the velocity: per time bin, and over all."""

    times: Float[Array, " bins"]
    """The middle of each bin."""
    r2: Float[Array, " bins"]
    """NaN for a bin whose examples have no variance, or none at all."""
    total: Float[Array, ""]


def likelihood_weighting(path: AbstractPath, t: Scalar) -> Float[Array, ""]:
    r"""The "optimal" weight $\alpha / (\sigma D)$ of the velocity error, for which the loss bounds the likelihood.

    The same weight is $D / (\alpha \sigma)$ on the noise and $\alpha D / \sigma^3$ on the target error. It diverges at
    $t = 1$, and is evaluated at $t = 1 - 10^{-3}$ at the latest (and at $t = 10^{-5}$ at the earliest, where it is 0/0
    on some paths).

    **Reference:** Kingma and Gao (2023), arXiv 2303.00848; Song et al., Maximum Likelihood Training of Score-Based
    Diffusion Models (2021), arXiv 2101.09258.
    """
    t = jnp.clip(as_time(t), 1e-5, 1 - CUT)
    c = path.coefficients(t)
    return c.alpha / (c.sigma * _scale(Velocity(), c))


def flow_matching_loss(
    flow: Flow,
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
    block: int | None = None,
) -> Float[Array, ""]:
    r"""The flow-matching loss of a batch, a scalar.

    $$L = \frac1B \sum_i \sum_j \mathrm{mean}\, \| e_j(t_i) \|^2$$

    over the examples and the listed `targets`, the inner mean over all valid entries of an example. It does not go to
    zero: its floor is the variance of the target given $x_t$. See `fk.explained_velocity` for a readable number.

    ```python
    loss = fk.flow_matching_loss(flow, x1, key=key, coupling=fk.assignment)
    ```

    **Arguments:**

    - `flow`: the flow.
    - `x1`: the data, `(batch, ...)`.
    - `cond`: a pytree with the same leading axis.
    - `source`: the law of `x0`.
    - `coupling`: how noise and data are paired: `fk.independent`, `fk.assignment`, within clouds
      `fk.point_assignment`, or any `(x0, x1, cond, *, key)`, with `mask=` if it is in the signature, to a `fk.Pairing`.
    - `times`: the law of `t`, `(num, *, key) -> (num,)`.
    - `targets`: whose errors are summed, whatever the network predicts; the factors between them are exact. The
      velocity error is $1/t^2$ times that of a `fk.Noise()` and $1/(1-t)^2$ times that of a `fk.Target()` network, up
      to $10^6$: train these with `targets=(fk.Noise(),)` or `targets=(fk.Target(),)`.
    - `weighting`: `(path, t) -> ()`. It multiplies the squared velocity error, once per listed target, in place of
      their factors; `fk.likelihood_weighting` is the "optimal" one.
    - `mask`: `(batch, n)`, which points of each cloud are valid. The others influence neither loss nor gradient.
    - `block`: how many examples are worked on at a time, after times, noise and coupling are drawn for the whole
      batch. The same result in a fraction of the memory, and on a CPU several times as fast. Reverse mode only.

    **Raises:** `ValueError` for batches that do not fit together, and, where the values are known, for non-finite
    data and clouds without a valid point.
    """
    _check(x1, cond, mask, targets)
    check_targets(flow, targets, weighting)
    check_block(block, x1.shape[0])
    return _loss(
        flow,
        x1,
        cond,
        key,
        source,
        coupling,
        times,
        tuple(targets),
        weighting,
        mask,
        block,
    )


def flow_matching_errors(
    flow: Flow,
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
    block: int | None = None,
) -> Errors:
    """The terms whose mean is `fk.flow_matching_loss`, with their times; same arguments, same draws."""
    _check(x1, cond, mask, targets)
    check_targets(flow, targets, weighting)
    check_block(block, x1.shape[0])
    return _errors(
        flow,
        x1,
        cond,
        key,
        source,
        coupling,
        times,
        tuple(targets),
        weighting,
        mask,
        block,
    )


def explained_velocity(
    flow: Flow,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    bins: int = 10,
    floor: VelocityField | None = None,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    mask: Bool[AnyArray, "batch n"] | None = None,
) -> ExplainedVelocity:
    r"""How much of the velocity the flow explains, per time bin: is it converged?

    With $v_c$ the conditional velocities of a bin, $\bar v_c$ their mean for each coordinate (the last axis), and all
    sums running over its examples and valid entries,

    $$R^2 = 1 - \frac{\sum \|v_\theta - v_c\|^2 - F}{\sum \|v_c - \bar v_c\|^2 - F}.$$

    Without a `floor` $F = 0$, and even a perfect flow stays below 1 by the variance of the target given $x_t$. With
    the exact flow as the `floor`, $F = \sum \|v_* - v_c\|^2$, and a perfect flow has $R^2 = 1$ in every bin. Ratios
    of sums, not means of ratios. Times are stratified.

    **Arguments:**

    - `flow`, `x1`, `cond`, `source`, `coupling`, `mask`: as in `fk.flow_matching_loss`.
    - `bins`: the number of equal time bins.
    - `floor`: the exact velocity field, for instance `fk.exact_flow(...)`; called `(t, x, cond)`, without the mask.
    """
    _check(x1, cond, mask, (Velocity(),))
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1, got {bins}.")
    return _explained_velocity(flow, x1, cond, key, bins, floor, source, coupling, mask)


def _check(x1, cond, mask, targets) -> None:
    check_data("x1", x1, mask)
    check_rows("cond", cond, x1.shape[0], "example of `x1`")
    if not targets:
        raise ValueError(
            "`targets` must list at least one prediction, for instance `(fk.Velocity(),)`."
        )


def check_targets(
    flow: Flow, targets: Sequence[AbstractPrediction], weighting: Weighting | None
) -> None:
    """Raises for targets and weightings of squared errors if the flow is trained by another one."""
    own = len(targets) == 1 and same_prediction(targets[0], flow.prediction)
    if not flow.head.squared and (weighting is not None or not own):
        raise ValueError(
            f"`targets` and `weighting` convert squared errors, but the flow is trained by that of {flow.head}; leave "
            "`weighting` out and give `targets=(flow.prediction,)`."
        )


class Example(NamedTuple):
    """What the loss draws for one example, or, with a leading axis, for a batch."""

    x0: Array
    x1: Array
    t: Array
    cond: Cond
    mask: Array | None
    weight: Array | None
    key: Array | None


def draw_examples(flow, x1, cond, key, source, coupling, times, mask) -> Example:
    skey, ckey, tkey, nkey = jr.split(key, 4)
    # What stands at a masked point may be NaN, which would reach the gradient through a product with zero.
    x1 = jnp.asarray(x1) if mask is None else jax.vmap(zero_masked)(x1, mask)
    num = x1.shape[0]
    x0 = source.sample(x1.shape, key=skey).astype(x1.dtype)
    t = draw_times(times, num, x1.dtype, tkey)
    x0, (x1, cond, mask), weights = pair(coupling, x0, (x1, cond, mask), key=ckey)
    keys = jr.split(nkey, num) if flow.takes_key else None
    return Example(x0, x1, t, cond, mask, weights, keys)


def draw_times(times, num: int, dtype, key) -> Float[Array, " num"]:
    t = times(num, key=key)
    if t.shape != (num,):
        raise ValueError(
            f"`times` must return shape {(num,)} when asked for {num} times, but returned {t.shape}."
        )
    if not stays_inside(times):
        t = eqx.error_if(
            t,
            jnp.any((t < 0) | (t > 1)),
            "`times` drew a time outside [0, 1] (0 is noise, 1 is data).",
        )
    return t.astype(dtype)


def _scale(prediction: AbstractPrediction, c: Coefficients) -> Array:
    a, b = prediction.row(c)
    return a * c.sigma - b * c.alpha


def _example_error(
    targets, weighting, flow: Flow, example: Example
) -> Float[Array, ""]:
    x0, x1, t, cond, mask, weight, key = example
    end = 1 - CUT if any(target.infinite_end for target in targets) else 1.0
    t = jnp.clip(t, flow.t_start, min(flow.t_end, end))
    c = flow.path.coefficients(t)
    x_t = c.alpha * x1 + c.sigma * x0
    output = flow.output(t, x_t, cond, mask=mask, key=key)
    error = flow.head.error(output, flow.prediction.evaluate(c, x0, x1), mask)
    error = error * _factor(targets, weighting, flow, t, c)
    return error if weight is None else weight * error


def _factor(targets, weighting, flow: Flow, t: Array, c: Coefficients) -> Array:
    """Turns the squared error of the network into the weighted sum of the squared errors of the targets."""

    def squared_ratio(target):
        if same_prediction(target, flow.prediction):
            return jnp.ones_like(t)
        return (_scale(target, c) / _scale(flow.prediction, c)) ** 2

    if weighting is not None:
        return len(targets) * weighting(flow.path, t) * squared_ratio(Velocity())
    return ft.reduce(jnp.add, map(squared_ratio, targets))


class ExampleError(eqx.Module):
    """The error of one example as a function of `(flow, example)`, with the options as fields: it closes over none."""

    targets: tuple[AbstractPrediction, ...]
    weighting: Weighting | None

    def __call__(self, flow: Flow, example: Example) -> tuple[Float[Array, ""], None]:
        return _example_error(self.targets, self.weighting, flow, example), None


@eqx.filter_jit
def _loss(
    flow, x1, cond, key, source, coupling, times, targets, weighting, mask, block
):
    examples = draw_examples(flow, x1, cond, key, source, coupling, times, mask)
    return mean_over_batch(
        ExampleError(targets, weighting), flow, examples, block=block
    )[0]


@eqx.filter_jit
def _errors(
    flow, x1, cond, key, source, coupling, times, targets, weighting, mask, block
):
    examples = draw_examples(flow, x1, cond, key, source, coupling, times, mask)
    error = lambda example: _example_error(targets, weighting, flow, example)
    return Errors(
        jax.lax.map(error, examples, batch_size=block or examples.t.shape[0]),
        examples.t,
    )


@eqx.filter_jit
def _explained_velocity(flow, x1, cond, key, bins, floor, source, coupling, mask):
    flow = eqx.nn.inference_mode(flow)
    examples = draw_examples(flow, x1, cond, key, source, coupling, stratified, mask)
    index = jnp.clip((examples.t * bins).astype(int), 0, bins - 1)
    in_bins = ft.partial(jax.ops.segment_sum, segment_ids=index, num_segments=bins)

    def target_and_validity(example: Example):
        target = Velocity().evaluate(
            flow.path.coefficients(example.t), example.x0, example.x1
        )
        valid = (
            jnp.ones(target.shape[:1], bool) if example.mask is None else example.mask
        )
        return target, jnp.broadcast_to(
            jnp.reshape(valid, valid.shape + (1,) * (target.ndim - 1)), target.shape
        )

    def features(example: Example):
        target, valid = target_and_validity(example)
        per_feature = lambda value: jnp.sum(
            jnp.reshape(value, (-1, value.shape[-1])), axis=0
        )
        return per_feature(jnp.where(valid, target, 0)), per_feature(
            valid.astype(target.dtype)
        )

    # The means first, then the squares around them: their difference would lose all digits far from the origin.
    first, count = map(in_bins, jax.vmap(features)(examples))
    means = first / jnp.maximum(count, 1)

    def squares(example: Example, mean: Array):
        target, valid = target_and_validity(example)
        x_t = flow.path.interpolate(example.t, example.x0, example.x1)
        total = lambda value: jnp.sum(jnp.where(valid, value**2, 0))
        error = total(flow(example.t, x_t, example.cond, example.mask) - target)
        exact = (
            jnp.zeros_like(error)
            if floor is None
            else total(floor(example.t, x_t, example.cond) - target)
        )
        return error - exact, total(target - mean) - exact

    error, variance = map(in_bins, jax.vmap(squares)(examples, means[index]))
    ratio = lambda error, variance: jnp.where(
        variance > 0, 1 - error / jnp.where(variance > 0, variance, 1), jnp.nan
    )
    times = (jnp.arange(bins, dtype=error.dtype) + 0.5) / bins
    return ExplainedVelocity(
        times, ratio(error, variance), ratio(jnp.sum(error), jnp.sum(variance))
    )
