"""Distances between sets and distributions, and scores made from them: arrays in, arrays out.

Pairs are ordered `(samples, reference)` everywhere. Values have the type of the first argument, but
half precision is summed, and returned, in float32.
"""

from flowkit._namespace import public_names as _public_names
from flowkit.metrics._assignment import emd as emd, w2 as w2
from flowkit.metrics._bits import bits_per_dimension as bits_per_dimension
from flowkit.metrics._calibration import (
    crps as crps,
    interval_coverage as interval_coverage,
    rank_histogram as rank_histogram,
)
from flowkit.metrics._chamfer import chamfer as chamfer, chamfer_l1 as chamfer_l1
from flowkit.metrics._collections import (
    scores_with_floor as scores_with_floor,
    ScoresWithFloor as ScoresWithFloor,
    set_scores as set_scores,
    SetScores as SetScores,
)
from flowkit.metrics._diagnostics import (
    latent_statistics as latent_statistics,
    LatentStatistics as LatentStatistics,
    straightness as straightness,
)
from flowkit.metrics._energy import energy_distance as energy_distance
from flowkit.metrics._expected_coverage import (
    ExpectedCoverage as ExpectedCoverage,
    highest_density_coverage as highest_density_coverage,
    tarp_coverage as tarp_coverage,
)
from flowkit.metrics._frechet import frechet_distance as frechet_distance
from flowkit.metrics._gaussian import gaussian_w2 as gaussian_w2
from flowkit.metrics._importance import (
    effective_sample_size as effective_sample_size,
    normalized_log_weights as normalized_log_weights,
)
from flowkit.metrics._occupancy import jsd as jsd
from flowkit.metrics._pairwise import pairwise as pairwise
from flowkit.metrics._repeated import (
    repeated_distance as repeated_distance,
    RepeatedDistance as RepeatedDistance,
)
from flowkit.metrics._sbc import (
    RankTest as RankTest,
    simulation_based_calibration as simulation_based_calibration,
)
from flowkit.metrics._scores import (
    coverage as coverage,
    mmd as mmd,
    one_nna as one_nna,
)
from flowkit.metrics._similarity import (
    GaussianWindow as GaussianWindow,
    psnr as psnr,
    ssim as ssim,
    UniformWindow as UniformWindow,
)
from flowkit.metrics._sinkhorn import (
    Bounds as Bounds,
    emd_bounds as emd_bounds,
    sinkhorn_divergence as sinkhorn_divergence,
)
from flowkit.metrics._support import (
    restrict_to_support as restrict_to_support,
    Restricted as Restricted,
)
from flowkit.metrics._tracker import Tracker as Tracker
from flowkit.metrics._two_sample import (
    classifier_two_sample as classifier_two_sample,
    ClassifierAccuracy as ClassifierAccuracy,
)
from flowkit.metrics._wasserstein import (
    sliced_w2 as sliced_w2,
    wasserstein_1d as wasserstein_1d,
)


__dir__ = _public_names(globals())
