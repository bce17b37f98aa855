from flowkit.nn.encoders._encoder import AbstractEncoder as AbstractEncoder
from flowkit.nn.encoders._point_net import PointNet as PointNet
