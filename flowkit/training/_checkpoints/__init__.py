"""Checkpoints on disk, through orbax: nothing is pickled, and nothing is deleted except
what `keep` retires.

A checkpoint has the items `model`, `ema` and `training` (arrays, numbered in the order
of their tree), `history` (arrays) and `meta` (JSON: the configuration, a description of
all arrays and of the static part of the model, the position in the data, the versions of
libraries).
"""

from flowkit.training._checkpoints.describe import (
    describe_arrays as describe_arrays,
    describe_static as describe_static,
)
from flowkit.training._checkpoints.options import (
    check_writable as check_writable,
    Checkpoints as Checkpoints,
)
from flowkit.training._checkpoints.restore import (
    best_step as best_step,
    has_checkpoint as has_checkpoint,
    restore as restore,
    restore_model as restore_model,
    Restored as Restored,
    stored_config as stored_config,
)
from flowkit.training._checkpoints.saver import (
    SaveFailed as SaveFailed,
    Saver as Saver,
    Snapshot as Snapshot,
)
