"""Checks of numbers that several parts share."""

import operator
from typing import Any


def positive(name: str, value: Any) -> int:
    """`value` as a Python integer, which must be at least 1."""
    number = operator.index(value)
    if number < 1:
        raise ValueError(f"`{name}` must be at least 1, got {number}.")
    return number


def not_negative(name: str, value: Any) -> int:
    """`value` as a Python integer, which must be at least 0."""
    number = operator.index(value)
    if number < 0:
        raise ValueError(f"`{name}` must not be negative, got {number}.")
    return number
