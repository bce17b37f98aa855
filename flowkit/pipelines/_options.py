"""Options that have no effect next to others are refused, not ignored."""

import dataclasses
from collections.abc import Mapping
from typing import Any


def refuse_without_effect(config: Any, reasons: Mapping[str, str]) -> None:
    """Raises a `ValueError` for an option that is given but would be ignored.

    **Arguments:**

    - `config`: a dataclass of options. An option counts as given if its value is not the
        default.
    - `reasons`: the names of the options without effect, each with the reason.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in reasons and value != field.default:
            reason = reasons[field.name]
            raise ValueError(
                f"`{field.name}` is {value!r}, but {reason}: leave it out."
            )
