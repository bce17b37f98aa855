"""Flow maps: networks of two times that jump along a flow, in one step or a few.

All of them rest on one derivative: that of the average velocity along the flow.
"""

from flowkit._namespace import public_names as _public_names
from flowkit.few_step._adaptive_weight import AdaptiveWeight as AdaptiveWeight
from flowkit.few_step._average_velocity import (
    back_flow_loss as back_flow_loss,
    Guidance as Guidance,
    improved_mean_flow_loss as improved_mean_flow_loss,
    mean_flow_loss as mean_flow_loss,
)
from flowkit.few_step._consistency import (
    consistency_loss as consistency_loss,
    facm_loss as facm_loss,
)
from flowkit.few_step._exact import exact_flow_map as exact_flow_map
from flowkit.few_step._flow_map import (
    both_times as both_times,
    expanded_interval as expanded_interval,
    FlowMap as FlowMap,
    jump as jump,
    total_derivative as total_derivative,
    velocity_of as velocity_of,
)
from flowkit.few_step._presets import (
    BACK_FLOW as BACK_FLOW,
    BACK_FLOW_TOY as BACK_FLOW_TOY,
    FACM as FACM,
    FACM_TOY as FACM_TOY,
    IMPROVED_MEAN_FLOW as IMPROVED_MEAN_FLOW,
    MEAN_FLOW as MEAN_FLOW,
    MEAN_FLOW_CIFAR10 as MEAN_FLOW_CIFAR10,
    MEAN_FLOW_TOY as MEAN_FLOW_TOY,
)
from flowkit.few_step._reflow import (
    reflow_pairs as reflow_pairs,
    ReflowPairs as ReflowPairs,
)
from flowkit.few_step._sampling import encode as encode, sample as sample
from flowkit.few_step._shortcut import shortcut_loss as shortcut_loss
from flowkit.few_step._time_pairs import TimePairs as TimePairs


__dir__ = _public_names(globals())
