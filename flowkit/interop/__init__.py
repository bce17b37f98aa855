"""Flows as the objects of other libraries."""

from flowkit._namespace import public_names as _public_names
from flowkit.interop._numpyro import numpyro as numpyro


__dir__ = _public_names(globals())
