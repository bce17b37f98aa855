"""The options that the papers use for their losses, by name.

```python
fk.few_step.mean_flow_loss(flow_map, x1, key=key, **fk.few_step.MEAN_FLOW_TOY)
```

Papers with data at `t = 0` have the sign of the mean of their times changed here. The toy
presets have no weight, clamp or cosine, so that the exact average velocity is their fixed
point for every distribution of data.
"""

from typing import Any

from flowkit._losses import ArctanLogNormal, LogitNormal, uniform
from flowkit.few_step._adaptive_weight import AdaptiveWeight
from flowkit.few_step._time_pairs import TimePairs


MEAN_FLOW_TOY: dict[str, Any] = {"pairs": TimePairs(uniform, equal=0.5)}
"""`mean_flow_loss` and `improved_mean_flow_loss` for points in few dimensions."""

MEAN_FLOW: dict[str, Any] = {
    "pairs": TimePairs(LogitNormal(0.4, 1.0), equal=0.75),
    "weight": AdaptiveWeight(1.0, 1e-2),
}
"""`mean_flow_loss` for ImageNet (arXiv 2505.13447)."""

MEAN_FLOW_CIFAR10: dict[str, Any] = {
    "pairs": TimePairs(LogitNormal(2.0, 2.0), equal=0.25),
    "weight": AdaptiveWeight(0.75, 1e-3),
}
"""`mean_flow_loss` for CIFAR-10 (arXiv 2505.13447)."""

IMPROVED_MEAN_FLOW: dict[str, Any] = {
    "pairs": TimePairs(LogitNormal(0.4, 1.0), equal=0.5),
    "weight": AdaptiveWeight(1.0, 1e-2),
}
"""`improved_mean_flow_loss` for ImageNet (arXiv 2512.02012)."""

FACM_TOY: dict[str, Any] = {"times": uniform}
"""`facm_loss` for points in few dimensions."""

FACM: dict[str, Any] = {
    "times": ArctanLogNormal(),
    "weight": AdaptiveWeight(0.5, 1e-3, summed=False),
    "clamp": 1.0,
    "cosine": True,
}
"""`facm_loss` for images (arXiv 2507.03738)."""

BACK_FLOW_TOY: dict[str, Any] = {"pairs": TimePairs(uniform, equal=0.25, ordered=False)}
"""`back_flow_loss` for points in few dimensions: long jumps are drawn as often as short
ones."""

BACK_FLOW: dict[str, Any] = {
    "pairs": TimePairs(LogitNormal(2.0, 2.0), equal=0.25, ordered=False),
    "weight": AdaptiveWeight(0.75, 1e-3),
}
"""`back_flow_loss` with the times and weights of MeanFlow on CIFAR-10."""
