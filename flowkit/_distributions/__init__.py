"""Distributions that can be sampled and, where a density exists, evaluated."""

from flowkit._distributions.base import (
    AbstractDistribution as AbstractDistribution,
    AbstractExactDistribution as AbstractExactDistribution,
)
from flowkit._distributions.empirical import Empirical as Empirical
from flowkit._distributions.mixture import GaussianMixture as GaussianMixture
from flowkit._distributions.normal import Normal as Normal
