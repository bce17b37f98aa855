"""Figures: arrays in, a `matplotlib.figure.Figure` out, saved if a `path` is given.

Figures are not registered with pyplot, look the same under every style of matplotlib,
and are displayed when they are the last line of a notebook cell. The explorer is the
exception: it writes an HTML page.
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
)
from flowkit.plotting._densities import (
    density_1d as density_1d,
    density_2d as density_2d,
)
from flowkit.plotting._explorer import (
    explorer as explorer,
    ExplorerStage as ExplorerStage,
)
from flowkit.plotting._flows import (
    snapshots as snapshots,
    vector_field as vector_field,
)
from flowkit.plotting._frames import write_frames as write_frames
from flowkit.plotting._gallery import flow_gallery as flow_gallery
from flowkit.plotting._image_rows import (
    image_errors as image_errors,
    image_reconstructions as image_reconstructions,
)
from flowkit.plotting._images import image_grid as image_grid
from flowkit.plotting._latent_map import (
    latent_map as latent_map,
    LatentMap as LatentMap,
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
from flowkit.plotting._pixels import pixel_flow as pixel_flow
from flowkit.plotting._style import colors as colors
from flowkit.plotting._training import (
    explained_velocity as explained_velocity,
    loss_trajectory as loss_trajectory,
)
from flowkit.plotting._trajectories import (
    curvature as curvature,
    Paths as Paths,
    trajectories as trajectories,
)


__dir__ = _public_names(globals())
