"""One step: the state, the update of it, and where both live."""

from flowkit.training._step.average import (
    EMADecay as EMADecay,
    update_ema as update_ema,
    WarmUpDecay as WarmUpDecay,
)
from flowkit.training._step.checks import (
    not_negative as not_negative,
    positive as positive,
)
from flowkit.training._step.host import (
    owned as owned,
)
from flowkit.training._step.momentum import (
    DEFAULT_MOMENTUM as DEFAULT_MOMENTUM,
    DOUBLED_MOMENTUM as DOUBLED_MOMENTUM,
)
from flowkit.training._step.optimizer import (
    Optimizer as Optimizer,
)
from flowkit.training._step.partition import (
    partition as partition,
    StaticPart as StaticPart,
)
from flowkit.training._step.placements import (
    AbstractPlacement as AbstractPlacement,
    as_placement as as_placement,
    FullySharded as FullySharded,
    OneDevice as OneDevice,
    Pmapped as Pmapped,
    Replicated as Replicated,
)
from flowkit.training._step.sharding import (
    data_mesh as data_mesh,
    shard_batch as shard_batch,
)
from flowkit.training._step.skipping import (
    Skipping as Skipping,
)
from flowkit.training._step.state import (
    init_state as init_state,
    Trainable as Trainable,
    trainable_mask as trainable_mask,
    TrainState as TrainState,
)
from flowkit.training._step.step import (
    compiled as compiled,
    CompileKey as CompileKey,
    Configuration as Configuration,
    make_step as make_step,
    METRICS as METRICS,
    Pace as Pace,
    Step as Step,
)
