"""Whole jobs made of the other namespaces: models from configurations, and reports on them."""

from flowkit._namespace import public_names as _public_names
from flowkit.pipelines._flow_maps import (
    flow_map_distances as flow_map_distances,
    flow_map_stages as flow_map_stages,
    flow_paths as flow_paths,
)
from flowkit.pipelines._folders import (
    checkpoint_steps as checkpoint_steps,
    open_run as open_run,
    restore_stages as restore_stages,
    stored_run as stored_run,
)
from flowkit.pipelines._image_flow_config import ImageFlowConfig as ImageFlowConfig
from flowkit.pipelines._image_flow_training import (
    fit_image_flow as fit_image_flow,
    ImageFlowTraining as ImageFlowTraining,
)
from flowkit.pipelines._image_flows import (
    held_out_loss as held_out_loss,
    image_flow_loss as image_flow_loss,
    load_image_flow as load_image_flow,
    sample_images as sample_images,
)
from flowkit.pipelines._limits import (
    check_options as check_options,
    Count as Count,
    Fraction as Fraction,
    Natural as Natural,
    NonNegative as NonNegative,
    Positive as Positive,
    Within as Within,
)
from flowkit.pipelines._misuse import exit_on_misuse as exit_on_misuse, parse as parse
from flowkit.pipelines._outputs import (
    model_outputs as model_outputs,
    output_distances as output_distances,
    OUTPUT_NAMES as OUTPUT_NAMES,
    OUTPUT_TIMES as OUTPUT_TIMES,
    record_outputs as record_outputs,
)
from flowkit.pipelines._pictures import (
    draw_flow_map as draw_flow_map,
    explore_training as explore_training,
)
from flowkit.pipelines._refined_process import RefinedProcess as RefinedProcess
from flowkit.pipelines._runs import (
    continued as continued,
    load_set_flow as load_set_flow,
)
from flowkit.pipelines._set_flow_config import SetFlowConfig as SetFlowConfig
from flowkit.pipelines._set_flow_report import SetFlowReport as SetFlowReport
from flowkit.pipelines._set_flow_stages import set_flow_stages as set_flow_stages
from flowkit.pipelines._set_flow_training import SetFlowTraining as SetFlowTraining
from flowkit.pipelines._side_by_side import SideBySide as SideBySide
from flowkit.pipelines._solvers import SOLVERS as SOLVERS
from flowkit.pipelines._sparse_flow import SparseFlow as SparseFlow
from flowkit.pipelines._sparse_flow_config import SparseFlowConfig as SparseFlowConfig
from flowkit.pipelines._sparse_flow_report import SparseFlowReport as SparseFlowReport
from flowkit.pipelines._sparse_images import (
    found_images as found_images,
    small_images as small_images,
)


__dir__ = _public_names(globals())
