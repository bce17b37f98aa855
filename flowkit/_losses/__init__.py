"""A loss trains a flow: what it draws, what it regresses, and how well that went."""

from flowkit._losses.draw import (
    Batch as Batch,
    check_batch as check_batch,
    Draw as Draw,
    draw_endpoints as draw_endpoints,
    draw_examples as draw_examples,
    draw_times as draw_times,
    Example as Example,
)
from flowkit._losses.explained import (
    explained_velocity as explained_velocity,
    ExplainedVelocity as ExplainedVelocity,
)
from flowkit._losses.flow_matching import (
    check_targets as check_targets,
    Errors as Errors,
    ExampleError as ExampleError,
    flow_matching_errors as flow_matching_errors,
    flow_matching_loss as flow_matching_loss,
)
from flowkit._losses.times import (
    ArctanLogNormal as ArctanLogNormal,
    Beta as Beta,
    cosmap as cosmap,
    LogitNormal as LogitNormal,
    stratified as stratified,
    uniform as uniform,
)
from flowkit._losses.weighting import (
    likelihood_weighting as likelihood_weighting,
    Weighting as Weighting,
)
