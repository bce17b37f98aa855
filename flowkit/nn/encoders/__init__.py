from flowkit.nn.encoders._composed import Chained as Chained, Pooled as Pooled
from flowkit.nn.encoders._cross_attention import (
    CrossAttentionEncoder as CrossAttentionEncoder,
)
from flowkit.nn.encoders._dgcnn import DGCNN as DGCNN
from flowkit.nn.encoders._encoder import AbstractEncoder as AbstractEncoder
from flowkit.nn.encoders._gmm_featurizer import (
    FittedMixture as FittedMixture,
    GMMFeaturizer as GMMFeaturizer,
)
from flowkit.nn.encoders._point_net import PointNet as PointNet
from flowkit.nn.encoders._set_transformer import SetTransformer as SetTransformer
from flowkit.nn.encoders._slot_attention import SlotAttention as SlotAttention
from flowkit.nn.encoders._slot_starts import (
    FarthestPoints as FarthestPoints,
    KMeans as KMeans,
    LearnedSlots as LearnedSlots,
)
