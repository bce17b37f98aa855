"""Scores of a collection of generated clouds against a collection of real ones.

A score means nothing by itself: it depends on the distance, on the number of clouds,
and on the number of points. Its floor is the score of real clouds in place of the
generated ones, with everything else equal.
"""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from flowkit._types import AnyArray
from flowkit.metrics._chamfer import chamfer
from flowkit.metrics._inputs import check_values
from flowkit.metrics._pairwise import matrix_of
from flowkit.metrics._scores import coverage, mmd, one_nna


class SetScores(NamedTuple):
    """Scores of samples against a reference."""

    one_nna: Float[Array, ""]
    mmd: Float[Array, ""]
    coverage: Float[Array, ""]


class ScoresWithFloor(NamedTuple):
    """Scores of samples, and those of real clouds in their place.

    `print` shows them as a table.
    """

    samples: SetScores
    floor: SetScores

    def as_dict(self, suffix: str = "") -> dict[str, float]:
        """Plain numbers: `one_nna`, `one_nna_floor`, `mmd`, and so on.

        **Arguments:**

        - `suffix`: a suffix for every name, such as `"_emd"`: `one_nna_emd_floor`.
        """
        numbers = {}
        for name, value in self.samples._asdict().items():
            numbers[f"{name}{suffix}"] = float(value)
            numbers[f"{name}{suffix}_floor"] = float(getattr(self.floor, name))
        return numbers

    def __str__(self) -> str:
        lines = [f"{'':8}  {'samples':>10}  {'floor':>10}"]
        for name, value in self.samples._asdict().items():
            floor = getattr(self.floor, name)
            lines.append(f"{name:8}  {float(value):10.4g}  {float(floor):10.4g}")
        return "\n".join(lines)


def set_scores(
    samples: Float[AnyArray, "a n d"],
    reference: Float[AnyArray, "b m d"],
    *,
    distance: Callable[..., Any] = chamfer,
    mask_samples: Bool[AnyArray, "a n"] | None = None,
    mask_reference: Bool[AnyArray, "b m"] | None = None,
    mesh: Mesh | None = None,
) -> SetScores:
    """`one_nna`, `mmd` and `coverage` of samples, from one set of distances.

    **Arguments:**

    - `samples (a, n, d)`, `reference (a, m, d)`: equally many clouds, at least two,
        with masks of their valid points. Normalize both in the same way and give them
        the same number of points; otherwise such differences alone tell them apart.
    - `distance`: `(x, y) -> ()`, symmetric, as in `pairwise`. About `2 a^2` distances
        are computed.
    - `mesh`: devices that share the distances, as in `pairwise`.

    **Returns:** `SetScores(one_nna, mmd, coverage)`. Compare them with the scores of
    other real clouds in place of the samples: `scores_with_floor`.
    """
    if len(samples) != len(reference) or len(samples) < 2:
        raise ValueError(
            f"`samples` holds {len(samples)} clouds and `reference` {len(reference)}; "
            "1-NNA needs two equally long lists of at least two clouds. Take as many "
            "samples, or `mmd` and `coverage` on their own."
        )

    check_values("samples", samples, mask_samples)
    check_values("reference", reference, mask_reference)

    matrix = ft.partial(matrix_of, distance, mesh=mesh)
    within = matrix(reference, mask_xs=mask_reference)
    return _scores(matrix, reference, mask_reference, within, samples, mask_samples)


def scores_with_floor(
    samples: Float[AnyArray, "a n d"],
    reference: Float[AnyArray, "b m d"],
    floor: Float[AnyArray, "c k d"],
    *,
    distance: Callable[..., Any] = chamfer,
    mask_samples: Bool[AnyArray, "a n"] | None = None,
    mask_reference: Bool[AnyArray, "b m"] | None = None,
    mask_floor: Bool[AnyArray, "c k"] | None = None,
    mesh: Mesh | None = None,
) -> ScoresWithFloor:
    """`set_scores` of generated clouds and, as their floor, of other real clouds.

    Both are cut into collections as long as the reference, and their scores are means
    over these collections, which reduces their fluctuations: a single `one_nna`
    fluctuates by about `0.5 / sqrt(b)`. Clouds beyond the last full collection are left
    out.

    **Arguments:**

    - `samples (a, n, d)`: generated clouds, at least `b` of them.
    - `reference (b, m, d)`: held-out clouds, at least two.
    - `floor (c, k, d)`: real clouds that are not in the reference, at least `b` of
        them: training clouds, or another part of the held-out ones.
    - `distance`: `(x, y) -> ()`, symmetric, as in `pairwise`.
    - `mask_samples`, `mask_reference`, `mask_floor`: the valid points.
    - `mesh`: devices that share the distances, as in `pairwise`.

    **Returns:** `ScoresWithFloor(samples, floor)`, two `SetScores`. It prints as a
    table, and `as_dict()` makes plain numbers of it.
    """
    size = len(reference)
    if size < 2:
        raise ValueError(
            f"`reference` holds {size} cloud(s); 1-NNA needs at least two of them."
        )

    both = {"samples": (samples, mask_samples), "floor": (floor, mask_floor)}
    for name, (clouds, mask) in both.items():
        if len(clouds) < size:
            raise ValueError(
                f"`{name}` holds {len(clouds)} clouds and `reference` {size}; give at "
                "least as many clouds as the reference has, or cut the reference."
            )
        check_values(name, clouds, mask)
    check_values("reference", reference, mask_reference)

    # Once, for the collections of the samples and of the floor alike.
    matrix = ft.partial(matrix_of, distance, mesh=mesh)
    within = matrix(reference, mask_xs=mask_reference)
    score = ft.partial(_scores, matrix, reference, mask_reference, within)
    scores = {name: _mean_scores(score, size, *one) for name, one in both.items()}
    return ScoresWithFloor(**scores)


def _mean_scores(
    score: Callable[[AnyArray, Any], SetScores], size: int, clouds: AnyArray, mask: Any
) -> SetScores:
    """The means over collections of `size` clouds."""
    scores = []
    for start in range(0, len(clouds) - size + 1, size):
        part = slice(start, start + size)
        part_mask = None if mask is None else mask[part]
        scores.append(score(clouds[part], part_mask))

    return jax.tree.map(lambda *values: jnp.mean(jnp.stack(values)), *scores)


def _scores(
    matrix: Callable[..., Array],
    reference: AnyArray,
    mask_reference: AnyArray | None,
    within_reference: Array,
    samples: AnyArray,
    mask_samples: AnyArray | None,
) -> SetScores:
    within = matrix(samples, mask_xs=mask_samples)
    across = matrix(samples, reference, mask_xs=mask_samples, mask_ys=mask_reference)
    accuracy = one_nna(within, across, within_reference)
    return SetScores(accuracy, mmd(across), coverage(across))
