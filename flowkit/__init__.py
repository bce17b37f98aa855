"""Flow matching in JAX.

A flow is a network, a path and a prediction; a loss trains it, a solver samples it.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

# Before the hook, which slows the import of everything after it.
import diffrax as _diffrax  # noqa: F401
import optax as _optax  # noqa: F401
from jaxtyping import install_import_hook as _install_import_hook

from flowkit import _typecheck as _typecheck


# Stays installed, so that the namespaces which are loaded on first use are checked too.
_install_import_hook("flowkit", f"{_typecheck.__name__}.checked_when_called")

from flowkit._batch_couplings import (
    ConditionalAssignment as ConditionalAssignment,
    EntropicCoupling as EntropicCoupling,
    Plan as Plan,
    UnbalancedCoupling as UnbalancedCoupling,
)
from flowkit._couplings import (
    assignment as assignment,
    ChainedCouplings as ChainedCouplings,
    independent as independent,
    Paired as Paired,
    Pairing as Pairing,
)
from flowkit._distributions import (
    AbstractDistribution as AbstractDistribution,
    Empirical as Empirical,
    GaussianMixture as GaussianMixture,
    Normal as Normal,
)
from flowkit._flow import Flow as Flow
from flowkit._guidance import drop_condition as drop_condition, guided as guided
from flowkit._heads import (
    AbstractHead as AbstractHead,
    Components as Components,
    MixtureHead as MixtureHead,
    PointHead as PointHead,
)
from flowkit._integrate import encode as encode, integrate as integrate, RK4 as RK4
from flowkit._likelihood import (
    log_prob as log_prob,
    sample_and_log_prob as sample_and_log_prob,
)
from flowkit._losses import (
    Errors as Errors,
    explained_velocity as explained_velocity,
    ExplainedVelocity as ExplainedVelocity,
    flow_matching_errors as flow_matching_errors,
    flow_matching_loss as flow_matching_loss,
    likelihood_weighting as likelihood_weighting,
)
from flowkit._oracles import exact_flow as exact_flow, marginal as marginal
from flowkit._paths import (
    AbstractPath as AbstractPath,
    AffinePath as AffinePath,
    Coefficients as Coefficients,
    CosinePath as CosinePath,
    LinearPath as LinearPath,
    PolynomialPath as PolynomialPath,
    VariancePreservingPath as VariancePreservingPath,
)
from flowkit._plans import Pairs as Pairs, planned_pairs as planned_pairs
from flowkit._point_couplings import (
    AlignedAssignment as AlignedAssignment,
    EntropicPointAssignment as EntropicPointAssignment,
    point_assignment as point_assignment,
    superset_pairs as superset_pairs,
)
from flowkit._predictions import (
    AbstractPrediction as AbstractPrediction,
    convert as convert,
    Noise as Noise,
    Score as Score,
    Target as Target,
    Velocity as Velocity,
)
from flowkit._sampling import sample as sample, Samples as Samples, Stats as Stats
from flowkit._times import (
    ArctanLogNormal as ArctanLogNormal,
    Beta as Beta,
    cosmap as cosmap,
    LogitNormal as LogitNormal,
    stratified as stratified,
    uniform as uniform,
)


__version__ = "0.2.0"

if _TYPE_CHECKING:
    from flowkit import (
        data as data,
        few_step as few_step,
        latent as latent,
        metrics as metrics,
        nn as nn,
        plotting as plotting,
        testing as testing,
        training as training,
    )

_LOADED_ON_FIRST_USE = (
    "data",
    "few_step",
    "latent",
    "metrics",
    "nn",
    "plotting",
    "testing",
    "training",
)


def __getattr__(name):
    if name in _LOADED_ON_FIRST_USE:
        return _importlib.import_module(f"flowkit.{name}")
    raise AttributeError(f"module 'flowkit' has no attribute '{name}'")


def __dir__():
    return sorted({*globals(), *_LOADED_ON_FIRST_USE})
