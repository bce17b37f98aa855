"""Momentum settings of Adam and its kind."""

from collections.abc import Mapping
from types import MappingProxyType


DEFAULT_MOMENTUM: Mapping[str, float] = MappingProxyType({"b1": 0.9, "b2": 0.999})
"""Adam's usual decays, averages over about 10 and 1000 steps:
`optax.adam(1e-3, **DEFAULT_MOMENTUM)`."""

DOUBLED_MOMENTUM: Mapping[str, float] = MappingProxyType({"b1": 0.95, "b2": 0.9995})
"""Averages over twice as many steps, for noisy gradients:
`optax.adam(1e-3, **DOUBLED_MOMENTUM)`."""
