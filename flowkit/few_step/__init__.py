"""Few-step models: one network of the average velocity between two times, trained by any of several losses."""

from flowkit.few_step._facm import consistency_loss as consistency_loss, facm_loss as facm_loss
from flowkit.few_step._flow_map import (
    both_times as both_times,
    expanded_interval as expanded_interval,
    FlowMap as FlowMap,
    jump as jump,
    total_derivative as total_derivative,
    velocity_of as velocity_of,
)
from flowkit.few_step._guidance import Guidance as Guidance
from flowkit.few_step._mean_flow import (
    back_flow_loss as back_flow_loss,
    improved_mean_flow_loss as improved_mean_flow_loss,
    mean_flow_loss as mean_flow_loss,
)
from flowkit.few_step._oracles import exact_flow_map as exact_flow_map
from flowkit.few_step._pairs import (
    any_order as any_order,
    DyadicPairs as DyadicPairs,
    end_after_start as end_after_start,
    in_order as in_order,
    TimePairs as TimePairs,
)
from flowkit.few_step._presets import (
    BACK_FLOW_CIFAR10 as BACK_FLOW_CIFAR10,
    BACK_FLOW_TOY as BACK_FLOW_TOY,
    CONSISTENCY_NORMALIZED as CONSISTENCY_NORMALIZED,
    CONSISTENCY_TOY as CONSISTENCY_TOY,
    FACM_IMAGENET as FACM_IMAGENET,
    FACM_TOY as FACM_TOY,
    IMPROVED_MEAN_FLOW_IMAGENET as IMPROVED_MEAN_FLOW_IMAGENET,
    MEAN_FLOW_CIFAR10 as MEAN_FLOW_CIFAR10,
    MEAN_FLOW_CIFAR10_V1 as MEAN_FLOW_CIFAR10_V1,
    MEAN_FLOW_IMAGENET as MEAN_FLOW_IMAGENET,
    MEAN_FLOW_TOY as MEAN_FLOW_TOY,
    SHORTCUT_IMAGES as SHORTCUT_IMAGES,
    SHORTCUT_TOY as SHORTCUT_TOY,
)
from flowkit.few_step._reflow import reflow_pairs as reflow_pairs, ReflowPairs as ReflowPairs
from flowkit.few_step._sampling import encode as encode, sample as sample
from flowkit.few_step._shortcut import shortcut_loss as shortcut_loss
from flowkit.few_step._weights import AdaptiveWeight as AdaptiveWeight, cosine_decay as cosine_decay
