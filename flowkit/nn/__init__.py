from flowkit._namespace import public_names as _public_names
from flowkit.nn._attention import Attention as Attention
from flowkit.nn._concat_squash import (
    ConcatSquashLinear as ConcatSquashLinear,
    SquashSum as SquashSum,
)
from flowkit.nn._coordinates import (
    AbstractFeatures as AbstractFeatures,
    banded as banded,
    FourierFeatures as FourierFeatures,
    log_spaced as log_spaced,
    PointEmbedding as PointEmbedding,
    SinusoidalFeatures as SinusoidalFeatures,
)
from flowkit.nn._feed_forward import FeedForward as FeedForward, SwiGLU as SwiGLU
from flowkit.nn._geometry import (
    farthest_points as farthest_points,
    k_means as k_means,
    nearest_neighbors as nearest_neighbors,
)
from flowkit.nn._layer_norm import LayerNorm as LayerNorm
from flowkit.nn._linear import Linear as Linear
from flowkit.nn._mlp import MLP as MLP
from flowkit.nn._modulation import modulate as modulate, Modulation as Modulation
from flowkit.nn._pooling import (
    max_mean_pool as max_mean_pool,
    max_pool as max_pool,
    mean_pool as mean_pool,
)
from flowkit.nn._set_pooling import (
    AttentionPool as AttentionPool,
    PMA as PMA,
    Set2Set as Set2Set,
)
from flowkit.nn._time_embeddings import (
    AbstractTimeEmbedding as AbstractTimeEmbedding,
    LearnedTime as LearnedTime,
    RawTime as RawTime,
    SinusoidalTime as SinusoidalTime,
    TwoTimes as TwoTimes,
    ZeroToOneTime as ZeroToOneTime,
)
from flowkit.nn._transformer import (
    AttentionBlock as AttentionBlock,
    ISAB as ISAB,
    Residual as Residual,
)
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
from flowkit.nn.encoders import (
    AbstractEncoder as AbstractEncoder,
    Chained as Chained,
    CrossAttentionEncoder as CrossAttentionEncoder,
    DGCNN as DGCNN,
    FarthestPoints as FarthestPoints,
    FittedMixture as FittedMixture,
    GMMFeaturizer as GMMFeaturizer,
    KMeans as KMeans,
    LearnedSlots as LearnedSlots,
    PointNet as PointNet,
    Pooled as Pooled,
    SetTransformer as SetTransformer,
    SlotAttention as SlotAttention,
)


__dir__ = _public_names(globals())
