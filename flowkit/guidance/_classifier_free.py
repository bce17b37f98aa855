r"""Classifier-free guidance: the condition is strengthened or weakened.

$v_\omega = v_\varnothing + \omega (v_c - v_\varnothing)$, from a network that has seen both.
"""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowkit._checks import check_rows
from flowkit._flow import Flow, PointHead, Standardized
from flowkit._types import Cond, FloatArray, is_traced, Mask, PRNGKey, Scalar


def guided(
    flow: Flow | Standardized,
    scale: Scalar,
    *,
    null: Cond = None,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Flow | Standardized:
    r"""A flow with classifier-free guidance, for samplers.

    $$v_\omega(t, x, c)
        = v(t, x, \varnothing) + \omega \left(v(t, x, c) - v(t, x, \varnothing)\right)$$

    and the same for whatever the network predicts, since all predictions are affine in the
    velocity. Scale 1 is the flow itself, scale 0 the flow without a condition; above 1 samples
    fit their condition better and vary less. They then follow no known distribution: the
    densities of a guided flow are those of its own samples, not of the data. Every evaluation
    runs the network twice, in one batch.

    ```python
    flow = fk.guided(flow, 2.0)
    fk.sample(flow, shape, num_samples=16, cond=classes, key=key)
    ```

    **Arguments:**

    - `flow`: a flow trained with conditions left out at times, see `fk.drop_condition`. Its
      weights do not show whether it was. A network that has never seen `null` returns
      arbitrary values for it, which guidance amplifies; `fk.certify` detects this, see
      below.
    - `scale`: $\omega$.
    - `null`: the condition of one example that stands for none, $\varnothing$, or a function
        that makes it of the condition. By default zeros, and `fk.nn.Observed.as_null` for an
        `fk.nn.Observed`. Integers and booleans need it, since 0 is a class.
    - `interval`: the first and the last time at which the scale holds; it is 1 elsewhere. Guidance
        in the middle alone keeps more variety.

    **Raises:** `ValueError` for an interval outside [0, 1] and for a head other than
    `fk.PointHead()`, whose output is not a value that could be extrapolated; at the first
    evaluation, for a missing condition, and for integers and booleans without `null`.

    With `null`, a flow must have the velocity of all data, regardless of their conditions.
    You can check this before you guide it:

    ```python
    unconditional = fk.certify(flow, shape, data=x1, cond=null, cond_axes=None, key=key)
    assert not unconditional.problems
    ```

    **References:** Ho and Salimans, Classifier-Free Diffusion Guidance, 2022 (arXiv 2207.12598);
    Kynkäänniemi et al., Applying Guidance in a Limited Interval, 2024 (arXiv 2404.07724), for the
    interval.
    """
    if isinstance(flow, Standardized):
        # Guidance extrapolates standardized velocities; the units stay outside.
        inner = guided(cast(Flow, flow.flow), scale, null=null, interval=interval)
        return eqx.tree_at(lambda flow: flow.flow, flow, inner)
    check_head("flow", flow)
    check_interval(interval)
    return Flow(
        _Guided(flow, jnp.asarray(scale, float), null, interval),
        flow.path,
        flow.prediction,
    )


class _Guided(eqx.Module):
    """The network of a flow with and without its condition, extrapolated."""

    flow: Flow
    scale: Float[Array, ""]
    null: Any
    interval: tuple[float, float] = eqx.field(static=True)

    def __call__(
        self,
        t: Scalar,
        x: FloatArray,
        cond: Cond = None,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "..."]:
        if not jax.tree.leaves(cond):
            raise ValueError(
                "`cond` is missing; a guided flow needs the condition that it leaves out."
            )

        # Both conditions go through the network in one batch.
        both = jax.tree.map(
            lambda *rows: jnp.stack(rows), cond, null_of(cond, self.null)
        )

        def output(cond):
            return self.flow.output(t, x, cond, mask=mask, key=key)

        conditional, unconditional = jax.vmap(output)(both)
        scale = scale_within(self.scale, self.interval, t, conditional)
        return unconditional + scale * (conditional - unconditional)


def check_head(name: str, flow: Flow) -> None:
    """Raises for outputs that cannot be extrapolated."""
    if not isinstance(flow.head, PointHead):
        raise ValueError(
            f"`{name}` must have the head `fk.PointHead()` to be guided, got {flow.head!r}."
        )


def check_interval(interval: tuple[float, float]) -> None:
    """Raises unless these are two times in their order."""
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(
            f"`interval` must be two times in [0, 1] in their order, got {interval}."
        )


def scale_within(
    scale: Array, interval: tuple[float, float], t: Scalar, like: Array
) -> Float[Array, ""]:
    """The scale within the interval and 1 elsewhere, in the type of the output."""
    inside = (interval[0] <= t) & (t <= interval[1])
    return jnp.where(inside, scale, 1.0).astype(like.dtype)


def null_of(cond: Cond, null: Cond) -> Cond:
    """The condition that stands for none, in the type and the shape of `cond`."""
    if callable(null):
        null = null(cond)
    elif null is None:
        null = jax.tree.map(_default_null, cond, is_leaf=_knows_none)
    try:
        matched = jax.tree.map(_like, null, cond)
    except (TypeError, ValueError) as error:
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (cond, null)]
        raise ValueError(
            "`null` must be the condition of one example, of shape "
            f"{shapes[0]}, got {shapes[1]}."
        ) from error
    jax.tree.map(_check_label, null, cond)
    return matched


def _like(leaf: Any, like: Any) -> Array:
    array = jnp.asarray(leaf).astype(jnp.result_type(like))
    return jnp.broadcast_to(array, jnp.shape(like))


def _check_label(leaf: Any, like: Any) -> None:
    """Raises for a known number that would become another label in the type of `cond`."""
    dtype = jnp.result_type(like)
    if jnp.issubdtype(dtype, jnp.inexact):
        return
    if is_traced(leaf):
        return
    label = np.asarray(leaf)
    held = label.astype(dtype)
    if np.any(held != label):
        raise ValueError(
            f"`null` is {leaf}, not a value of the type of `cond`, "
            f"{dtype}; give the number of classes, "
            "or labels of a larger type."
        )


def _knows_none(part: Any) -> bool:
    return hasattr(part, "as_null")


def _default_null(part: Any) -> Any:
    # The query coordinates are part of the question: zeros would query a corner.
    if _knows_none(part):
        return part.as_null()

    dtype = jnp.result_type(part)
    # Zero is a class like any other where classes are numbered.
    if jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            "`null` is missing: `cond` holds integers, for which 0 is a label; give the label "
            "that stands for no condition, such as the number of classes, and let the network "
            "embed one label more."
        )
    if jnp.issubdtype(dtype, jnp.bool_):
        raise ValueError(
            "`null` is missing: `cond` holds booleans, for which false is a value like true; "
            "give the condition that stands for none, or a function that makes it of `cond`."
        )
    return jnp.zeros_like(part)


def drop_condition(
    cond: Cond, probability: float = 0.1, *, null: Cond = None, key: PRNGKey
) -> Cond:
    """A batch of conditions, each replaced by `null` with the given probability, for training.

    ```python
    def loss(flow, batch, key):
        drop_key, key = jr.split(key)
        cond = fk.drop_condition(batch.cond, key=drop_key)
        return fk.flow_matching_loss(flow, batch.x, cond, key=key)
    ```

    **Arguments:**

    - `cond`: a pytree of arrays with one leading axis, the batch. Its rows are replaced as a whole.
    - `probability`: the probability that one is left out. A tenth is usual.
    - `null`: the condition of one example that stands for none, or a function that makes it of
        the condition of one example. The default is zeros, which no one-hot label equals. For
        an `fk.nn.Observed`, it is that object without observations, which requires a mask.
        Integers and booleans need it, since 0 is a class.
    - `key`: the random seed.

    **Reference:** Ho and Salimans, Classifier-Free Diffusion Guidance, 2022 (arXiv 2207.12598).
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"`probability` must be in [0, 1], got {probability}.")
    leaves = jax.tree.leaves(cond)
    if not leaves:
        raise ValueError(
            "`cond` holds no arrays; leave out the call where there is no condition."
        )
    if np.ndim(leaves[0]) == 0:
        raise ValueError(
            "`cond` must be a batch, of arrays with one row per example, but holds "
            f"{leaves[0]!r}."
        )
    num = len(leaves[0])
    check_rows("cond", cond, num, "example")
    dropped = jr.bernoulli(key, probability, (num,))

    def replace(dropped, example):
        choose = lambda leaf, none: jnp.where(dropped, none, leaf)
        return jax.tree.map(choose, example, null_of(example, null))

    return jax.vmap(replace)(dropped, cond)
