"""Training of any model with any loss `(model, batch, key) -> scalar`.

A step updates the weights, a loop runs the steps, checkpoints save their results, and a
mesh spreads the work over many devices.
"""

from flowkit._blocks import mean_over_batch as mean_over_batch
from flowkit._namespace import public_names as _public_names
from flowkit.training._adapters import LowRankAdapters as LowRankAdapters
from flowkit.training._checkpoints import (
    best_step as best_step,
    Checkpoints as Checkpoints,
    restore_model as restore_model,
    stored_config as stored_config,
)
from flowkit.training._loop import (
    Diverged as Diverged,
    EarlyStopping as EarlyStopping,
    Every as Every,
    find_learning_rate as find_learning_rate,
    fit as fit,
    fit_stages as fit_stages,
    FitResult as FitResult,
    held_out_loss as held_out_loss,
    JsonLines as JsonLines,
    last_stage as last_stage,
    LearningRates as LearningRates,
    NotSaved as NotSaved,
    Series as Series,
    Stage as Stage,
    Stop as Stop,
    TensorBoard as TensorBoard,
    WeightsAndBiases as WeightsAndBiases,
)
from flowkit.training._step import (
    AbstractPlacement as AbstractPlacement,
    data_mesh as data_mesh,
    DEFAULT_MOMENTUM as DEFAULT_MOMENTUM,
    DOUBLED_MOMENTUM as DOUBLED_MOMENTUM,
    FullySharded as FullySharded,
    init_state as init_state,
    make_step as make_step,
    OneDevice as OneDevice,
    Optimizer as Optimizer,
    Pmapped as Pmapped,
    Replicated as Replicated,
    shard_batch as shard_batch,
    Skipping as Skipping,
    Step as Step,
    TrainState as TrainState,
    update_ema as update_ema,
    WarmUpDecay as WarmUpDecay,
)


__dir__ = _public_names(globals())
