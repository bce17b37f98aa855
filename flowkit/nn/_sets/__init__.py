"""Sets of points: geometry, poolings, and encoders from clouds to latents `(k, c)`."""

from flowkit.nn._sets.composed import Chained as Chained, Pooled as Pooled
from flowkit.nn._sets.cross_attention import (
    CrossAttentionEncoder as CrossAttentionEncoder,
)
from flowkit.nn._sets.dgcnn import DGCNN as DGCNN
from flowkit.nn._sets.encoder import AbstractEncoder as AbstractEncoder
from flowkit.nn._sets.geometry import (
    farthest_points as farthest_points,
    k_means as k_means,
    nearest_neighbors as nearest_neighbors,
)
from flowkit.nn._sets.gmm_featurizer import (
    FittedMixture as FittedMixture,
    GMMFeaturizer as GMMFeaturizer,
)
from flowkit.nn._sets.learned_pooling import (
    AttentionPool as AttentionPool,
    PMA as PMA,
    Set2Set as Set2Set,
)
from flowkit.nn._sets.point_net import PointNet as PointNet
from flowkit.nn._sets.pooling import (
    max_mean_pool as max_mean_pool,
    max_pool as max_pool,
    mean_pool as mean_pool,
)
from flowkit.nn._sets.set_transformer import SetTransformer as SetTransformer
from flowkit.nn._sets.slot_attention import SlotAttention as SlotAttention
from flowkit.nn._sets.slot_starts import (
    FarthestPoints as FarthestPoints,
    KMeans as KMeans,
    LearnedSlots as LearnedSlots,
)
