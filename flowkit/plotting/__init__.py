"""Figures: arrays in, a `matplotlib.figure.Figure` out, saved if a `path` is given. No global state, no display."""

from ._clouds import point_clouds as point_clouds, reconstructions as reconstructions, samples_2d as samples_2d
from ._flows import density_1d as density_1d, trajectories as trajectories, vector_field as vector_field
from ._style import colors as colors
from ._training import explained_velocity as explained_velocity, loss_trajectory as loss_trajectory
