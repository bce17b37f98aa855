"""Metrics over the batches of an evaluation."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Real

from flowkit._types import AnyArray, is_traced, Number


Values: TypeAlias = Real[AnyArray, "..."] | Number | None


class Tracker(NamedTuple):
    """Values of metrics over batches, with their means and deviations.

    A record that never changes: `add` returns a new one. `print` shows a table.

    ```python
    tracker = fk.metrics.Tracker()
    for truth, found in batches:
        errors = jnp.mean(jnp.square(found - truth), axis=(1, 2, 3))
        ratios = jax.vmap(fk.metrics.psnr)(found, truth)
        tracker = tracker.add(mse=errors, psnr=ratios)
    print(tracker)
    ```

    **Arguments:** `values`: name -> the arrays that were added. All values are kept, one
    number per example, so batches of different sizes are weighted correctly.
    """

    values: Mapping[str, tuple[np.ndarray, ...]] = MappingProxyType({})

    def add(self, **values: Values) -> "Tracker":
        """This record with the values of another batch.

        **Arguments:** for each name an array, such as one value per example, `(b,)`, or
        a number. `None` adds nothing, so a metric may be missing from some batches, or
        from all of them.
        """
        joined = dict(self.values)
        for name, value in values.items():
            if value is None:
                continue
            if is_traced(value):
                raise ValueError(
                    f"`{name}` must be known: return it from the compiled function, and "
                    "add it outside."
                )
            # On the host, so that no array of a device is kept alive.
            flat = np.asarray(value).astype(np.float64).reshape(-1)
            joined[name] = (*joined.get(name, ()), flat)
        return Tracker(MappingProxyType(joined))

    def means(self) -> dict[str, float]:
        """The mean of each metric over all its values; infinite if one of them is."""
        return {name: float(np.mean(all_)) for name, all_ in self._joined().items()}

    def stds(self) -> dict[str, float]:
        """The standard deviation of each metric, which divides by the number of values.

        NaN for values that are not finite, such as the `psnr` of equal images.
        """
        # The deviation from an infinite mean is not defined, which is no error.
        with np.errstate(invalid="ignore"):
            return {name: float(np.std(all_)) for name, all_ in self._joined().items()}

    def counts(self) -> dict[str, int]:
        """The number of values of each metric."""
        return {name: len(all_) for name, all_ in self._joined().items()}

    def __str__(self) -> str:
        width = max([6, *map(len, self.values)])
        lines = [f"{'metric':{width}}  {'mean':>10}  {'std':>10}  {'count':>7}"]
        stds = self.stds()
        counts = self.counts()
        for name, mean in self.means().items():
            numbers = f"{mean:10.4g}  {stds[name]:10.4g}  {counts[name]:7d}"
            lines.append(f"{name:{width}}  {numbers}")
        return "\n".join(lines)

    def _joined(self) -> dict[str, np.ndarray]:
        joined = {name: np.concatenate(parts) for name, parts in self.values.items()}
        # A batch without examples adds nothing, and the mean of nothing would warn.
        return {name: values for name, values in joined.items() if len(values)}
