from flowkit.nn.crn._adaln_mlp import AdaLNMLP as AdaLNMLP
from flowkit.nn.crn._conditioners import (
    AbstractConditioner as AbstractConditioner,
    Broadcast as Broadcast,
    PerPoint as PerPoint,
    Pool as Pool,
)
from flowkit.nn.crn._crn import AbstractCRN as AbstractCRN
