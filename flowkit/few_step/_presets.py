"""Options of the losses as their sources chose them: `mean_flow_loss(flow_map, x1, key=key, **MEAN_FLOW_TOY)`.

Laws that a source states for a time from data to noise are turned round. Optimisers, schedules and networks are not
part of them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from flowkit._times import ArctanLogNormal, LogitNormal, uniform
from flowkit.few_step._pairs import any_order, DyadicPairs, end_after_start, TimePairs
from flowkit.few_step._weights import AdaptiveWeight, cosine_decay


def _preset(**options: Any) -> Mapping[str, Any]:
    return MappingProxyType(options)


MEAN_FLOW_TOY = _preset(pairs=TimePairs(uniform, equal=0.5), reduction=jnp.mean)
"""`mean_flow_loss` and `improved_mean_flow_loss` in one and two dimensions: uniform pairs, half of them equal, and the
plain mean square."""

MEAN_FLOW_IMAGENET = _preset(pairs=TimePairs(LogitNormal(0.4, 1.0), equal=0.75), weight=AdaptiveWeight(1.0, 1e-2))
"""`mean_flow_loss` on ImageNet: Geng et al. (2025), arXiv 2505.13447."""

MEAN_FLOW_CIFAR10 = _preset(pairs=TimePairs(LogitNormal(2.0, 2.0), equal=0.25), weight=AdaptiveWeight(0.75, 1e-3))
"""`mean_flow_loss` on CIFAR-10, the published recipe: Geng et al. (2025), arXiv 2505.13447."""

MEAN_FLOW_CIFAR10_V1 = _preset(
    pairs=TimePairs(LogitNormal(0.6, 1.6), LogitNormal(4.0, 1.6), end_after_start, equal=0.25),
    weight=AdaptiveWeight(0.75, 1e-3),
)
"""`mean_flow_loss` on CIFAR-10, the later recipe of the same authors, with a law of its own for the end."""

IMPROVED_MEAN_FLOW_IMAGENET = _preset(
    pairs=TimePairs(LogitNormal(0.4, 1.0), equal=0.5), weight=AdaptiveWeight(1.0, 1e-2)
)
"""`improved_mean_flow_loss` on ImageNet: Geng et al. (2025), arXiv 2512.02012."""

FACM_TOY = _preset(times=uniform, weight=None, clamp=None, relaxation=0.5, time_weight=cosine_decay, cosine=False)
"""`facm_loss` in one and two dimensions: without what biases it on data with separate modes."""

FACM_IMAGENET = _preset(
    times=ArctanLogNormal(0.8, 1.6),
    weight=AdaptiveWeight(0.5, 1e-3),
    clamp=1.0,
    relaxation=0.5,
    time_weight=cosine_decay,
    cosine=True,
)
"""`facm_loss` on ImageNet: Peng et al. (2025), arXiv 2507.03738."""

BACK_FLOW_TOY = _preset(pairs=TimePairs(uniform, order=any_order, equal=0.25), reduction=jnp.mean)
"""`back_flow_loss` in one and two dimensions: uniform pairs, so that whole jumps are seen, and the plain mean
square."""

BACK_FLOW_CIFAR10 = _preset(
    pairs=TimePairs(LogitNormal(2.0, 2.0), order=any_order, equal=0.25), weight=AdaptiveWeight(0.75, 1e-3)
)
"""`back_flow_loss` with the law and the weight that mean flow has on CIFAR-10."""

CONSISTENCY_TOY = _preset(times=uniform, relaxation=None, time_weight=cosine_decay)
"""`consistency_loss` in one and two dimensions, without bounds on the residual."""

CONSISTENCY_NORMALIZED = _preset(normalize=0.1)
"""`consistency_loss` with the normalised residuals of Lu and Song (2024), arXiv 2410.11081."""

SHORTCUT_TOY = _preset(pairs=TimePairs(uniform, equal=0.75))
"""`shortcut_loss` in one and two dimensions: steps of any length."""

SHORTCUT_IMAGES = _preset(pairs=DyadicPairs(7, equal=0.75), smallest_step=2.0**-6)
"""`shortcut_loss` with steps that are powers of two: Frans et al. (2024), arXiv 2410.12557."""
