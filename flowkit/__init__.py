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

from flowkit._blocks import AutomaticBlock as AutomaticBlock
from flowkit._couplings import (
    AlignedAssignment as AlignedAssignment,
    assignment as assignment,
    ChainedCouplings as ChainedCouplings,
    ConditionalAssignment as ConditionalAssignment,
    EntropicCoupling as EntropicCoupling,
    EntropicPointAssignment as EntropicPointAssignment,
    independent as independent,
    Paired as Paired,
    Pairing as Pairing,
    Pairs as Pairs,
    Plan as Plan,
    planned_pairs as planned_pairs,
    point_assignment as point_assignment,
    superset_pairs as superset_pairs,
    UnbalancedCoupling as UnbalancedCoupling,
)
from flowkit._distributions import (
    AbstractDistribution as AbstractDistribution,
    AbstractExactDistribution as AbstractExactDistribution,
    Empirical as Empirical,
    GaussianMixture as GaussianMixture,
    Normal as Normal,
)
from flowkit._flow import (
    AbstractHead as AbstractHead,
    AbstractPath as AbstractPath,
    AbstractPrediction as AbstractPrediction,
    AffinePath as AffinePath,
    Coefficients as Coefficients,
    Components as Components,
    convert as convert,
    CosinePath as CosinePath,
    exact_flow as exact_flow,
    Flow as Flow,
    LinearPath as LinearPath,
    marginal as marginal,
    MixtureHead as MixtureHead,
    Noise as Noise,
    on_path as on_path,
    PointHead as PointHead,
    PolynomialPath as PolynomialPath,
    Score as Score,
    Standardized as Standardized,
    Target as Target,
    VariancePreservingPath as VariancePreservingPath,
    Velocity as Velocity,
)
from flowkit._losses import (
    ArctanLogNormal as ArctanLogNormal,
    Beta as Beta,
    cosmap as cosmap,
    Errors as Errors,
    explained_velocity as explained_velocity,
    ExplainedVelocity as ExplainedVelocity,
    flow_matching_errors as flow_matching_errors,
    flow_matching_loss as flow_matching_loss,
    likelihood_weighting as likelihood_weighting,
    LogitNormal as LogitNormal,
    stratified as stratified,
    uniform as uniform,
)
from flowkit._namespace import public_names as _public_names
from flowkit._solve import (
    Certificate as Certificate,
    certify as certify,
    encode as encode,
    export_sampler as export_sampler,
    ExportedSampler as ExportedSampler,
    integrate as integrate,
    load_sampler as load_sampler,
    log_prob as log_prob,
    log_prob_with_error as log_prob_with_error,
    LogProb as LogProb,
    sample as sample,
    sample_and_log_prob as sample_and_log_prob,
    sample_sde as sample_sde,
    Samples as Samples,
    SamplesAndLogProbs as SamplesAndLogProbs,
    Stats as Stats,
)
from flowkit.guidance import drop_condition as drop_condition, guided as guided
from flowkit.solvers import RK4 as RK4


__version__ = "0.2.0"

if _TYPE_CHECKING:
    from flowkit import (
        data as data,
        few_step as few_step,
        interop as interop,
        inverse as inverse,
        latent as latent,
        metrics as metrics,
        nn as nn,
        pipelines as pipelines,
        plotting as plotting,
        testing as testing,
        training as training,
    )

_LOADED_ON_FIRST_USE = (
    "data",
    "few_step",
    "interop",
    "inverse",
    "latent",
    "metrics",
    "nn",
    "pipelines",
    "plotting",
    "testing",
    "training",
)


def __getattr__(name):
    if name in _LOADED_ON_FIRST_USE:
        return _importlib.import_module(f"flowkit.{name}")
    raise AttributeError(f"module 'flowkit' has no attribute '{name}'")


__dir__ = _public_names(globals(), *_LOADED_ON_FIRST_USE)

_typecheck.turn_on()
