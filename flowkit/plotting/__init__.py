"""Figures: arrays in, a `matplotlib.figure.Figure` out, saved if a `path` is given. No global state, no display.

The explorer alone is a page in HTML.
"""

from flowkit._namespace import public_names as _public_names
from flowkit.plotting._animation import animate as animate
from flowkit.plotting._clouds import (
    point_clouds as point_clouds,
    samples_2d as samples_2d,
)
from flowkit.plotting._comparison import (
    comparison as comparison,
    comparison_frames as comparison_frames,
    Frame as Frame,
    latent_map as latent_map,
    LatentMap as LatentMap,
)
from flowkit.plotting._explorer import (
    explorer as explorer,
    ExplorerStage as ExplorerStage,
)
from flowkit.plotting._flows import (
    density_1d as density_1d,
    density_2d as density_2d,
    snapshots as snapshots,
    vector_field as vector_field,
)
from flowkit.plotting._latents import (
    embedding as embedding,
    latent_statistics as latent_statistics,
)
from flowkit.plotting._pairs import (
    masked_examples as masked_examples,
    reconstructions as reconstructions,
    segmentations as segmentations,
)
from flowkit.plotting._style import colors as colors
from flowkit.plotting._training import (
    explained_velocity as explained_velocity,
    loss_trajectory as loss_trajectory,
)
from flowkit.plotting._trajectories import Paths as Paths, trajectories as trajectories


__dir__ = _public_names(globals())
