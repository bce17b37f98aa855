from flowkit.nn._attention import Attention as Attention
from flowkit.nn._concat_squash import ConcatSquashLinear as ConcatSquashLinear, SquashSum as SquashSum
from flowkit.nn._coordinates import (
    AbstractFeatures as AbstractFeatures,
    banded as banded,
    FourierFeatures as FourierFeatures,
    log_spaced as log_spaced,
    PointEmbedding as PointEmbedding,
    SinusoidalFeatures as SinusoidalFeatures,
)
from flowkit.nn._feed_forward import FeedForward as FeedForward, SwiGLU as SwiGLU
from flowkit.nn._layer_norm import LayerNorm as LayerNorm
from flowkit.nn._linear import Linear as Linear
from flowkit.nn._mlp import MLP as MLP
from flowkit.nn._modulation import modulate as modulate, Modulation as Modulation
from flowkit.nn._pooling import max_mean_pool as max_mean_pool, max_pool as max_pool, mean_pool as mean_pool
from flowkit.nn._time_embeddings import (
    AbstractTimeEmbedding as AbstractTimeEmbedding,
    LearnedTime as LearnedTime,
    RawTime as RawTime,
    SinusoidalTime as SinusoidalTime,
    ZeroToOneTime as ZeroToOneTime,
)
from flowkit.nn._transformer import AttentionBlock as AttentionBlock, Residual as Residual
from flowkit.nn.crn import (
    AbstractConditioner as AbstractConditioner,
    AbstractCRN as AbstractCRN,
    AdaLNMLP as AdaLNMLP,
    Broadcast as Broadcast,
    ConcatSquashMLP as ConcatSquashMLP,
    CrossAttend as CrossAttend,
    CrossAttentionCRN as CrossAttentionCRN,
    DiT as DiT,
    PerPoint as PerPoint,
    Pool as Pool,
    Select as Select,
)
from flowkit.nn.encoders import AbstractEncoder as AbstractEncoder, PointNet as PointNet
