from flowkit.nn.crn._adaln_mlp import AdaLNMLP as AdaLNMLP
from flowkit.nn.crn._attentive import CrossAttend as CrossAttend, Select as Select
from flowkit.nn.crn._concat_squash_mlp import ConcatSquashMLP as ConcatSquashMLP
from flowkit.nn.crn._conditioners import (
    AbstractConditioner as AbstractConditioner,
    Broadcast as Broadcast,
    PerPoint as PerPoint,
    Pool as Pool,
)
from flowkit.nn.crn._crn import AbstractCRN as AbstractCRN
from flowkit.nn.crn._cross_attention import CrossAttentionCRN as CrossAttentionCRN
from flowkit.nn.crn._dit import DiT as DiT
