"""Options out of range and options without effect are refused, not ignored."""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeAlias


class Within(NamedTuple):
    """The range that the value of an option must lie in, for `check_options`.

    ```python
    @dataclasses.dataclass(frozen=True)
    class Config:
        num_steps: fk.pipelines.Count = 1000
        radius: Annotated[float, fk.pipelines.Within(above=0, at_most=2)] = 1.0

    fk.pipelines.check_options(config, {"radius": "there is no mask"})
    ```

    Values are finite. A tuple must have all its entries in the range; `None` is not checked.
    """

    at_least: float = -math.inf
    at_most: float = math.inf
    above: float = -math.inf

    def holds(self, value: float) -> bool:
        """Whether a value is finite and lies in the range."""
        return (
            math.isfinite(value)
            and self.at_least <= value <= self.at_most
            and value > self.above
        )

    def __str__(self) -> str:
        words = {
            "at least": self.at_least,
            "above": self.above,
            "at most": self.at_most,
        }
        known = [
            f"{word} {bound}" for word, bound in words.items() if math.isfinite(bound)
        ]
        return " and ".join(known) or "finite"


Natural: TypeAlias = Annotated[int, Within(at_least=0)]
"""An integer that is at least 0."""

Count: TypeAlias = Annotated[int, Within(at_least=1)]
"""An integer that is at least 1."""

NonNegative: TypeAlias = Annotated[float, Within(at_least=0)]
"""A number that is at least 0."""

Positive: TypeAlias = Annotated[float, Within(above=0)]
"""A number above 0."""

Fraction: TypeAlias = Annotated[float, Within(at_least=0, at_most=1)]
"""A number from 0 to 1."""


def check_options(
    config: Any,
    without_effect: Mapping[str, str] = MappingProxyType({}),
    *,
    flags: bool = True,
) -> None:
    """Raises a `ValueError` for an option out of its range, or one that would be ignored.

    **Arguments:**

    - `config`: a dataclass of options, which may hold groups that are dataclasses. The
        ranges are the `Within` of the types.
    - `without_effect`: names of options or of groups, each with the reason why it has no
        effect next to the others. An option of a group has a dot in its name. It is refused
        if its value is not the default.
    - `flags`: whether errors name options as on a command line, `--num-steps`, or as in
        code.
    """
    for option in _options(config, without_effect):
        name = f"`{option.name}`"
        if flags:
            name = f"--{option.name.replace('_', '-')}"
        _check(option, name)


class _Option(NamedTuple):
    name: str
    value: Any
    default: Any
    ranges: list[Within]
    # Why it has no effect.
    reason: str | None


def _options(
    config: Any,
    without_effect: Mapping[str, str],
    prefix: str = "",
    of_group: str | None = None,
) -> Iterator[_Option]:
    """All options, those of groups too. What holds for a group holds for each of them."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name
        reason = without_effect.get(name, of_group)
        # A group: its options are checked on their own, with the group's reason if they
        # have none.
        if dataclasses.is_dataclass(value):
            yield from _options(value, without_effect, f"{name}.", reason)
        else:
            ranges = _ranges(hints[field.name])
            yield _Option(name, value, field.default, ranges, reason)


def _check(option: _Option, name: str) -> None:
    values = option.value
    if not isinstance(values, tuple | list):
        values = (values,)
    for limits in option.ranges:
        wrong = [one for one in values if one is not None and not limits.holds(one)]
        if wrong:
            raise ValueError(f"{name} must be {limits}, got {wrong[0]}.")
    if option.reason is not None and option.value != option.default:
        raise ValueError(f"{name} has no effect here: {option.reason}. Leave it out.")


def _ranges(hint: Any) -> list[Within]:
    """The ranges in a type, also in parts of it: `tuple[Count, ...]`, `Positive | None`."""
    found = [
        one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Within)
    ]
    for part in typing.get_args(hint):
        found += _ranges(part)
    return found
