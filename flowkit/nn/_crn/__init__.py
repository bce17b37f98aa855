"""Conditional networks (CRNs) for clouds, and how latents reach their points."""

from flowkit.nn._crn.adaln_mlp import AdaLNMLP as AdaLNMLP
from flowkit.nn._crn.attentive import CrossAttend as CrossAttend, Select as Select
from flowkit.nn._crn.base import AbstractCRN as AbstractCRN
from flowkit.nn._crn.concat_squash_mlp import ConcatSquashMLP as ConcatSquashMLP
from flowkit.nn._crn.conditioners import (
    AbstractConditioner as AbstractConditioner,
    Broadcast as Broadcast,
    PerPoint as PerPoint,
    Pool as Pool,
)
from flowkit.nn._crn.cross_attention import CrossAttentionCRN as CrossAttentionCRN
from flowkit.nn._crn.dit import DiT as DiT
