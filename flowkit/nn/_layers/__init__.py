"""Layers that every network here is built from; they act on the last axis or on a set."""

from flowkit.nn._layers.attention import Attention as Attention
from flowkit.nn._layers.concat_squash import (
    ConcatSquashLinear as ConcatSquashLinear,
    SquashSum as SquashSum,
)
from flowkit.nn._layers.feature_mlp import FeatureMLP as FeatureMLP
from flowkit.nn._layers.features import (
    AbstractFeatures as AbstractFeatures,
    banded as banded,
    FourierFeatures as FourierFeatures,
    log_spaced as log_spaced,
    PointEmbedding as PointEmbedding,
    SinusoidalFeatures as SinusoidalFeatures,
)
from flowkit.nn._layers.feed_forward import (
    FeedForward as FeedForward,
    SwiGLU as SwiGLU,
)
from flowkit.nn._layers.half_precision import HalfPrecision as HalfPrecision
from flowkit.nn._layers.layer_norm import LayerNorm as LayerNorm
from flowkit.nn._layers.linear import Linear as Linear
from flowkit.nn._layers.mlp import MLP as MLP
from flowkit.nn._layers.modulation import (
    modulate as modulate,
    Modulation as Modulation,
)
from flowkit.nn._layers.time_embeddings import (
    AbstractTimeEmbedding as AbstractTimeEmbedding,
    LearnedTime as LearnedTime,
    RawTime as RawTime,
    SinusoidalTime as SinusoidalTime,
    TwoTimes as TwoTimes,
    ZeroToOneTime as ZeroToOneTime,
)
from flowkit.nn._layers.transformer import (
    AttentionBlock as AttentionBlock,
    ISAB as ISAB,
    Residual as Residual,
)
