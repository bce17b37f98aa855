"""A model in words: its arrays by type and shape, and all else by name.

The description is stored with a checkpoint and compared when it is read. It must be the
same in every process, so it holds no addresses, and in every release, so it holds no
module paths: a class or a function is described by its name alone, a lambda function by
the word `<lambda>`. Functions of the same name are not told apart.
"""

import dataclasses
import functools as ft
import hashlib
import re
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array on a device, or stands for one."""
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def describe_arrays(tree: PyTree[Any]) -> list[list[str]]:
    """`[path, dtype and shape]` of every array."""
    return [
        [jax.tree_util.keystr(path), f"{leaf.dtype}{list(leaf.shape)}"]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if is_array(leaf)
    ]


def describe_static(tree: PyTree[Any]) -> dict[str, str]:
    """What stands at every path of `tree`, except for arrays.

    A node is described by its type, a leaf and a static field by its value.
    """
    found: dict[str, str] = {}
    _walk(tree, "", found)
    return found


def _walk(node: Any, path: str, found: dict[str, str]) -> None:
    # Arrays are described elsewhere. A tracer has no value yet.
    if is_array(node) or isinstance(node, Tracer):
        return

    children = _children(node)
    if children is None:
        found[path] = _text(node)
        return
    found[path] = _name(type(node))
    for part, child in children:
        _walk(child, path + part, found)


def _children(node: Any) -> list[tuple[str, Any]] | None:
    """The parts of a node with their paths; `None` for a leaf."""
    if isinstance(node, eqx.Module):
        # Static fields are not leaves of the tree, but they are fields of the class.
        fields = [field.name for field in dataclasses.fields(node)]
        return [(f".{name}", getattr(node, name, None)) for name in fields]
    if isinstance(node, dict):
        return [(f"[{key!r}]", value) for key, value in node.items()]
    names = getattr(node, "_fields", None)
    if isinstance(node, tuple) and names is not None:
        return [(f".{name}", getattr(node, name)) for name in names]
    if isinstance(node, list | tuple):
        items = [(f"[{i}]", value) for i, value in enumerate(node)]
        # Only paths that two descriptions share are compared, so the length is stated.
        return [(".length", len(node)), *items]
    return _registered_children(node)


def _registered_children(node: Any) -> list[tuple[str, Any]] | None:
    """Those of any other node that JAX knows, such as `jax.tree_util.Partial`."""
    flattened = jax.tree_util.default_registry.flatten_one_level(node)
    if flattened is None or node is None:
        return None
    children, auxiliary = flattened
    numbered = [(f"[{i}]", child) for i, child in enumerate(children)]
    return [*numbered, (".static", _text(auxiliary))]


def _text(value: Any) -> str:
    """A value that has no parts."""
    if isinstance(value, ft.partial):
        named = [f"{name}={_text(one)}" for name, one in value.keywords.items()]
        parts = [_text(value.func), *map(_text, value.args), *named]
        return f"partial({', '.join(parts)})"
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype}{list(value.shape)} {digest[:16]}"
    if isinstance(value, float | np.floating):
        # 1, 1.0 and np.float32(1) are one number.
        return repr(float(value)).removesuffix(".0")
    if isinstance(value, np.integer | np.bool_):
        return repr(value.item())
    if callable(value) and hasattr(value, "__qualname__"):
        return _name(value)
    if type(value).__repr__ is object.__repr__:
        return _name(type(value))
    return _ADDRESS.sub("", repr(value))


def _name(named: Any) -> str:
    """The name of a class or function, without the function that it was made in."""
    return named.__qualname__.rpartition("<locals>.")[2]
