"""A tree split into its arrays and its static part, which is hashable.

The state goes through `jax.jit` as a flat list of its arrays. That list is all that the
dispatcher has to look at, which makes a call several times cheaper than one that
flattens and hashes a model each time.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import PyTree


class Static:
    """A value as part of a cache key, compared by type and value.

    A value that cannot be hashed is compared by identity.
    """

    __slots__ = ("key", "value")

    def __init__(self, value: Any):
        self.value = value
        try:
            hash(value)
        except TypeError:
            self.key = (type(value), id(value))
        else:
            self.key = (type(value), value)

    def __hash__(self):
        return hash(self.key)

    def __eq__(self, other):
        return isinstance(other, Static) and self.key == other.key


class StaticPart(NamedTuple):
    """The structure of a tree and its leaves that are no arrays.

    `leaves` holds `None` in the place of every array.
    """

    treedef: Any
    leaves: tuple[Static | None, ...]

    def combine(self, arrays: list[Any]) -> PyTree[Any]:
        """The tree with `arrays` in their places."""
        rest = iter(arrays)
        leaves = []
        for static in self.leaves:
            leaves.append(next(rest) if static is None else static.value)
        return jax.tree.unflatten(self.treedef, leaves)

    def arrays(self, tree: PyTree[Any]) -> list[Any]:
        """The arrays of another tree of this structure."""
        pairs = zip(self.treedef.flatten_up_to(tree), self.leaves, strict=True)
        return [leaf for leaf, static in pairs if static is None]


def partition(tree: PyTree[Any]) -> tuple[list[Any], StaticPart]:
    """The arrays of `tree`, and all else of it."""
    leaves, treedef = jax.tree.flatten(tree)
    arrays = [leaf for leaf in leaves if eqx.is_array(leaf)]
    static = tuple(None if eqx.is_array(leaf) else Static(leaf) for leaf in leaves)
    return arrays, StaticPart(treedef, static)
