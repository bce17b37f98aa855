"""A flow: a network, a path and a prediction; and the exact flows of known distributions."""

from flowkit._flow.exact import (
    exact_flow as exact_flow,
    marginal as marginal,
)
from flowkit._flow.flow import (
    Flow as Flow,
    network_keywords as network_keywords,
)
from flowkit._flow.heads import (
    AbstractHead as AbstractHead,
    Components as Components,
    MixtureHead as MixtureHead,
    PointHead as PointHead,
)
from flowkit._flow.on_path import on_path as on_path
from flowkit._flow.paths import (
    AbstractPath as AbstractPath,
    AffinePath as AffinePath,
    as_time as as_time,
    clip_time as clip_time,
    Coefficients as Coefficients,
    CosinePath as CosinePath,
    LinearPath as LinearPath,
    PolynomialPath as PolynomialPath,
    VariancePreservingPath as VariancePreservingPath,
)
from flowkit._flow.predictions import (
    AbstractPrediction as AbstractPrediction,
    away_from_poles as away_from_poles,
    convert as convert,
    CUT as CUT,
    Noise as Noise,
    same_prediction as same_prediction,
    Score as Score,
    Target as Target,
    Velocity as Velocity,
)
from flowkit._flow.standardized import (
    bare as bare,
    check_bare as check_bare,
    log_scale as log_scale,
    same_units as same_units,
    standardize as standardize,
    Standardized as Standardized,
    unstandardize as unstandardize,
)
