r"""A flow in the terms of NumPyro: its source, moved by a transform.

The density of the result is known from one solve, $\log p_1(x_1)$ of `fk.log_prob`, so the
Jacobian of the transform is $\log p_0(x_0) - \log p_1(x_1)$.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from flowkit._distributions import AbstractDistribution
from flowkit._solve import encode, log_prob, sample
from flowkit._solve.watch import nan_if_failed
from flowkit._types import Cond, VelocityField


class Solves(eqx.Module):
    """The solves of a flow, for any leading axes before those of an event."""

    flow: VelocityField
    cond: Cond
    source: AbstractDistribution
    probes: dict[str, Any]
    options: dict[str, Any]
    shape: tuple[int, ...] = eqx.field(static=True)
    batch: tuple[int, ...] = eqx.field(static=True)

    def decode(self, x0: Any) -> Array:
        """The data that the flow makes of noise."""

        def one(x0, cond):
            samples = sample(
                self.flow,
                self.shape,
                num_samples=1,
                x0=x0[None],
                cond=cond,
                cond_axes=None,
                **self.options,
            )
            ends = jax.vmap(nan_if_failed)(samples.values, samples.stats.result)
            return ends[0]

        return self._each(one, x0)

    def encode(self, x1: Any) -> Array:
        """The noise that the flow carries to data."""
        one = lambda x1, cond: encode(self.flow, x1, cond, **self._backward())
        return self._each(one, x1)

    def log_prob(self, x1: Any) -> Array:
        """The log-density of data."""
        options = {"source": self.source, **self.probes, **self._backward()}
        one = lambda x1, cond: log_prob(self.flow, x1, cond, **options)
        return self._each(one, x1)

    def _backward(self) -> dict[str, Any]:
        """The options of solves from data to noise, which go back along the same grid."""
        controller = self.options["stepsize_controller"]
        if not isinstance(controller, dfx.StepTo):
            return self.options
        grid = dataclasses.replace(controller, ts=controller.ts[::-1])
        return self.options | {"stepsize_controller": grid}

    def source_log_prob(self, x0: Any) -> Array:
        """The log-density of noise."""
        return self._each(lambda x0, cond: self.source.log_prob(x0), x0)

    def broadcast(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of values of that shape, with the axes of the batch."""
        cut = len(shape) - len(self.shape)
        if shape[max(cut, 0) :] != self.shape:
            raise ValueError(
                f"`value` must end in the event shape {self.shape}, got shape {shape}."
            )
        return (*jnp.broadcast_shapes(shape[:cut], self.batch), *self.shape)

    def _each(self, one: Callable[[Array, Cond], Array], x: Any) -> Array:
        """`one(x, cond)` for every event; the last of the leading axes are the batch."""
        x = jnp.broadcast_to(x, self.broadcast(jnp.shape(x)))
        num = len(self.batch)
        end = x.ndim - len(self.shape)
        # Axes of 1 in the batch may be longer in `x`.
        batch = x.shape[end - num : end]
        cond = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (*batch, *leaf.shape[num:])),
            self.cond,
        )
        fn = one
        for i in range(end):
            fn = jax.vmap(fn, in_axes=(0, 0 if i < num else None))
        return fn(x, cond)


class FlowTransform(Transform):
    """From noise to data, along a flow."""

    # Apart, since a network also holds functions, which are no leaves for NumPyro.
    arrays: Solves
    rest: Solves

    def __init__(self, solves: Solves):
        self.arrays, self.rest = eqx.partition(solves, eqx.is_array)

    @property
    def solves(self) -> Solves:
        return eqx.combine(self.arrays, self.rest)

    @property
    def domain(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.rest.shape))

    @property
    def codomain(self) -> constraints.Constraint:
        return self.domain

    def __call__(self, x: Any) -> Array:
        return self.solves.decode(x)

    def _inverse(self, y: Any) -> Array:
        return self.solves.encode(y)

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Array:
        del intermediates
        return self.solves.source_log_prob(x) - self.solves.log_prob(y)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.rest.broadcast(shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.rest.broadcast(shape)

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.arrays,), (("arrays",), {"rest": self.rest})


class FlowDistribution(dist.TransformedDistribution):
    """A source moved by a flow, with a density from one solve."""

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        # The inverse and its Jacobian, as NumPyro asks for them, are two solves.
        del intermediates
        transform: Any = self.transforms[0]
        return transform.solves.log_prob(value)


class SourceDistribution(dist.Distribution):
    """A distribution of flowkit as one of NumPyro."""

    arg_constraints = {}
    pytree_data_fields = ("arrays",)
    pytree_aux_fields = ("rest",)

    def __init__(self, source: AbstractDistribution, shape: tuple[int, ...]):
        self.arrays, self.rest = eqx.partition(source, eqx.is_array)
        super().__init__((), shape)

    @property
    def source(self) -> AbstractDistribution:
        return eqx.combine(self.arrays, self.rest)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        # NumPyro also takes keys of the old style.
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jr.wrap_key_data(key)
        return self.source.sample(self.shape(sample_shape), key=key)

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        del intermediates
        fn = self.source.log_prob
        for _ in range(jnp.ndim(value) - self.event_dim):
            fn = jax.vmap(fn)
        return fn(value)


def flow_distribution(solves: Solves) -> FlowDistribution:
    """The flow as a distribution of NumPyro."""
    source = SourceDistribution(solves.source, solves.shape)
    return FlowDistribution(source, FlowTransform(solves))
