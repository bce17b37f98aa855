"""Networks of fields: values at any coordinates, given values at some."""

from flowkit.nn._fields.observed import Observed as Observed
from flowkit.nn._fields.perceiver_field import PerceiverField as PerceiverField
from flowkit.nn._fields.perceiver_io import PerceiverIO as PerceiverIO
from flowkit.nn._fields.pixel_field import PixelField as PixelField
