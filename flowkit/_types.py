"""Array types shared by the whole package.

Shapes are those of **one example**: a vector `(d,)`, a point cloud `(n, d)`, an image
`(h, w, c)`, a time `()`. NumPy arrays are accepted wherever a JAX array is.
"""

from collections.abc import Callable
from typing import Any, TYPE_CHECKING, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Key, PyTree, Real


if TYPE_CHECKING:
    AnyArray: TypeAlias = Array | np.ndarray
    Number: TypeAlias = float | int | np.floating | np.integer
else:
    # Classes instead of unions, which signatures would show in full: `help()` prints
    # `Float[AnyArray, 'n d']`, and a check has one case instead of two.

    class _Kind(type):
        """The type of a class whose instances are those of several others."""

        def __instancecheck__(cls, value):
            return isinstance(value, cls.members)

    class AnyArray(metaclass=_Kind):
        """A JAX or NumPy array."""

        members = (Array, np.ndarray)

    class Number(metaclass=_Kind):
        """A number that is a constant of the program."""

        members = (float, int, np.floating, np.integer)


FloatArray: TypeAlias = Float[AnyArray, "..."]
"""A real floating-point array of any shape."""

Scalar: TypeAlias = Number | Real[AnyArray, ""]
"""A number, or an array of shape `()`."""

Times: TypeAlias = Scalar | Float[AnyArray, " 2"]
"""What networks see of time: one time, or the two of a flow map."""

Points: TypeAlias = Float[AnyArray, "n d"]
"""A point cloud of `n` points in `d` dimensions."""

Mask: TypeAlias = Bool[AnyArray, " n"]
"""Which points of a cloud are valid."""

PRNGKey: TypeAlias = Key[Array, ""]
"""One new-style key, as `jax.random.key` makes it."""

Cond: TypeAlias = PyTree[Any]
"""What a network is conditioned on: any pytree, `None` if nothing."""

VelocityField: TypeAlias = Callable[..., Any]
"""`(t, x, cond) -> dx/dt`, the shape of `x`; also Diffrax's `(t, y, args)`."""


class Constant(eqx.Module):
    """An array that belongs to a model and is saved with it, but is never trained.

    A gradient of zero is not enough: weight decay would still shrink it.
    """

    value: Array


def is_traced(*values: Any) -> bool:
    """Whether any leaf is a tracer, whose value cannot be looked at."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def sum_dtype(dtype: Any) -> Any:
    """The type to sum in: float32 for half precision, whose sums overflow or lose digits."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def numbers_as_arrays(tree: Any) -> Any:
    """`tree` with its Python numbers as arrays: as numbers they would be constants of a
    compiled program, and every new value would compile it again. Booleans stay as they
    are: they switch between two programs."""

    def convert(leaf):
        number = isinstance(leaf, int | float | complex) and not isinstance(leaf, bool)
        return jnp.asarray(leaf) if number else leaf

    return jax.tree.map(convert, tree)


def floats_as_arrays(tree: Any) -> Any:
    """`tree` with its Python floats as arrays, see `numbers_as_arrays`; integers and
    booleans stay, as sizes and switches."""

    def convert(leaf):
        # A Python float becomes a weakly typed array, which promotes no other.
        return jnp.asarray(float(leaf)) if isinstance(leaf, float) else leaf

    return jax.tree.map(convert, tree)
