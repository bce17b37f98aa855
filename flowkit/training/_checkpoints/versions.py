"""The libraries that a checkpoint was written with."""

from typing import Any

import equinox as eqx
import jax
import optax
import orbax.checkpoint as ocp

import flowkit


def versions() -> dict[str, str]:
    """Those of flowkit, and of the libraries that make up what is stored."""
    return {
        "flowkit": flowkit.__version__,
        "jax": jax.__version__,
        "equinox": eqx.__version__,
        "optax": optax.__version__,
        "orbax-checkpoint": ocp.__version__,
    }


def changed_versions(meta: Any) -> str:
    """The end of an error: libraries of other versions; empty if none or not recorded."""
    here = versions()
    changed = [
        f"{name} {there} (here {here.get(name)})"
        for name, there in meta.get("versions", {}).items()
        if there != here.get(name)
    ]
    return f"; written with {', '.join(changed)}" if changed else ""
