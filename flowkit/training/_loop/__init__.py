"""The loop around steps: batches, callbacks, histories, and training in stages."""

from flowkit.training._loop.callbacks import (
    EarlyStopping as EarlyStopping,
    Every as Every,
    Stop as Stop,
)
from flowkit.training._loop.fit import (
    Diverged as Diverged,
    fit as fit,
    FitResult as FitResult,
    NotSaved as NotSaved,
)
from flowkit.training._loop.history import Series as Series
from flowkit.training._loop.loggers import (
    JsonLines as JsonLines,
    TensorBoard as TensorBoard,
    WeightsAndBiases as WeightsAndBiases,
)
from flowkit.training._loop.stages import (
    fit_stages as fit_stages,
    last_stage as last_stage,
    Stage as Stage,
)
from flowkit.training._loop.validation import (
    find_learning_rate as find_learning_rate,
    held_out_loss as held_out_loss,
    LearningRates as LearningRates,
)
