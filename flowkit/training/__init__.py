"""Training of any model with any loss `(model, batch, key) -> scalar`: steps, loops, checkpoints, many devices."""

from flowkit._namespace import public_names as _public_names
from flowkit.training._callbacks import Every as Every
from flowkit.training._checkpoints import (
    Checkpoints as Checkpoints,
    restore_model as restore_model,
)
from flowkit.training._fit import fit as fit, FitResult as FitResult
from flowkit.training._history import Series as Series
from flowkit.training._momentum import (
    DEFAULT_MOMENTUM as DEFAULT_MOMENTUM,
    DOUBLED_MOMENTUM as DOUBLED_MOMENTUM,
)
from flowkit.training._sharding import (
    data_mesh as data_mesh,
    shard_batch as shard_batch,
)
from flowkit.training._stages import fit_stages as fit_stages, Stage as Stage
from flowkit.training._state import (
    init_state as init_state,
    TrainState as TrainState,
    update_ema as update_ema,
    WarmUpDecay as WarmUpDecay,
)
from flowkit.training._step import make_step as make_step, Step as Step


__dir__ = _public_names(globals())
