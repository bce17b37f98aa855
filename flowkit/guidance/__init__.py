"""Guidance: wrappers of a flow that strengthen or weaken the effect of its condition."""

from flowkit._namespace import public_names as _public_names
from flowkit.guidance._autoguidance import autoguided as autoguided
from flowkit.guidance._classifier_free import (
    drop_condition as drop_condition,
    guided as guided,
)
from flowkit.guidance._composed import composed as composed


__dir__ = _public_names(globals())
