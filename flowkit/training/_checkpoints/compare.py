"""How a checkpoint differs from a run or a model, in words."""

from typing import Any

from jaxtyping import PyTree

from flowkit.training._checkpoints.describe import describe_arrays, describe_static


def model_differences(name: str, meta: Any, tree: PyTree[Any]) -> list[str]:
    """Where the item `name` of a checkpoint and `tree` differ, static parts included."""
    stored = meta["arrays"].get(name, [])
    given = describe_arrays(tree)
    if name == "ema":
        # Until 0.2.0 the average had the types of the weights; now it has at least 32
        # bits. Reading converts it.
        stored = [[path, _widened(what)] for path, what in stored]
        given = [[path, _widened(what)] for path, what in given]

    differences = _array_differences(name, stored, given)
    if name != "training" and "static" in meta:
        found = _static_differences(meta["static"], describe_static(tree))
        differences += [f"model{difference}" for difference in found]
    return differences


def config_differences(stored: Any, given: Any) -> list[str]:
    """Which entries of two configurations differ."""
    if stored == given:
        return []
    if not isinstance(stored, dict) or not isinstance(given, dict):
        return [f"config is {stored!r} there and {given!r} here"]

    differences = []
    for key in stored | given:
        there = stored.get(key)
        here = given.get(key)
        if there != here or (key in stored) != (key in given):
            differences.append(f"config[{key!r}] is {there!r} there and {here!r} here")
    return differences


def shortened(differences: list[str]) -> str:
    """The first four, without repetitions."""
    unique = list(dict.fromkeys(differences))
    more = f"; and {len(unique) - 4} more" if len(unique) > 4 else ""
    return "; ".join(unique[:4]) + more


def _array_differences(
    name: str, stored: list[list[str]], given: list[list[str]]
) -> list[str]:
    stored_at = {path: what for path, what in stored}
    given_at = {path: what for path, what in given}
    differences = []
    for path in stored_at | given_at:
        there = stored_at.get(path, "absent")
        here = given_at.get(path, "absent")
        if there != here:
            differences.append(f"{name}{path} is {there} there and {here} here")
    return differences


def _static_differences(stored: dict[str, str], given: dict[str, str]) -> list[str]:
    """Only paths that both have: a later release may add an option to a network."""
    differences = []
    changed = []
    for path, there in stored.items():
        here = given.get(path, there)
        # Below a node that already differs, nothing can be compared.
        below = any(path.startswith((f"{one}.", f"{one}[")) for one in changed)
        if there != here and not below:
            changed.append(path)
            differences.append(f"{path} is {there} there and {here} here")
    return differences


def _widened(description: str) -> str:
    for narrow in ("bfloat16[", "float16["):
        if description.startswith(narrow):
            return description.replace(narrow, "float32[")
    return description
