"""Training of any model with any loss `(model, batch, key) -> scalar`: steps, loops, checkpoints, many devices."""

from ._callbacks import Every as Every
from ._checkpoints import Checkpoints as Checkpoints, restore_model as restore_model
from ._fit import fit as fit, FitResult as FitResult
from ._history import Series as Series
from ._sharding import data_mesh as data_mesh, shard_batch as shard_batch
from ._state import (
    init_state as init_state,
    TrainState as TrainState,
    update_ema as update_ema,
    WarmUpDecay as WarmUpDecay,
)
from ._step import make_step as make_step, Step as Step
