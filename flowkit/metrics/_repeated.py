"""Distances that are measured several times, so that they come with an error.

A distance between two samples of one distribution is not zero. That value is the floor, and
a distance is meaningful only in comparison with it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from flowkit._types import AnyArray
from flowkit.metrics._assignment import w2


class RepeatedDistance(NamedTuple):
    """Distances `values (k,)` of `k` independent draws, with their mean and its error."""

    values: Float[np.ndarray, " k"]

    @property
    def mean(self) -> float:
        """The mean over the draws."""
        return float(np.mean(self.values))

    @property
    def standard_error(self) -> float:
        """The standard error of the mean."""
        return _standard_error(self.values)

    def over(self, floor: "RepeatedDistance") -> tuple[float, float]:
        """The ratio of the means of this distance and of a floor, and its standard error.

        The floor must have been measured against the same references: the error, to first
        order that of `d - ratio * floor`, then leaves out what both have in common.
        """
        if len(self.values) != len(floor.values):
            raise ValueError(
                f"`floor` has {len(floor.values)} draws and this distance has "
                f"{len(self.values)}; measure both against the same references."
            )
        ratio = self.mean / floor.mean
        # Both distances have the same references and vary together, so a ratio is more
        # certain than its parts: this is its error to first order.
        remainder = self.values - ratio * floor.values
        return ratio, _standard_error(remainder) / floor.mean


def repeated_distance(
    samples: Sequence[Float[AnyArray, "n d"]] | Float[AnyArray, "k n d"],
    reference: Sequence[Float[AnyArray, "m d"]] | Float[AnyArray, "k m d"],
    *,
    distance: Callable[..., Any] = w2,
) -> RepeatedDistance:
    """The distance of each set of samples from the reference of the same number.

    ```python
    floor = fk.metrics.repeated_distance(fresh[:20], fresh[20:])
    found = fk.metrics.repeated_distance(samples, fresh[20:])
    ratio, error = found.over(floor)
    ```

    **Arguments:**

    - `samples`, `reference`: `k` sets each, drawn independently; at least two.
    - `distance`: `(x, y) -> ()` of two sets, by default the exact 2-Wasserstein distance.
    """
    if len(samples) != len(reference) or len(samples) < 2:
        raise ValueError(
            f"`samples` and `reference` must hold equal numbers of sets, at least two; got "
            f"{len(samples)} and {len(reference)}."
        )
    # Assignments are solved on the host, so threads help if there are several cores.
    with ThreadPoolExecutor() as pool:
        values = list(pool.map(lambda x, y: float(distance(x, y)), samples, reference))
    return RepeatedDistance(np.asarray(values))


def _standard_error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5)
