"""Whether all processes were asked for the same training.

Processes that disagree would wait for each other forever, or keep training with different
weights, without any error.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from flowkit.training._checkpoints import describe_arrays, describe_static
from flowkit.training._step import (
    AbstractPlacement,
    Configuration,
    OneDevice,
    TrainState,
)


def check_agreement(
    configuration: Configuration, state: TrainState, others: Mapping[str, Any]
) -> None:
    """Raises on all processes if they would not train one model together.

    They would not if each used a single device of its own, or if the arguments of one
    differed from those of the first. The arguments are those that make up the configuration
    and the first state, and `others`. They are compared by structure, types, shapes and
    values; functions by their names.
    """
    _check_shared(configuration.placement)
    # Without a mesh of all processes each of them may train something of its own.
    mesh = getattr(configuration.placement, "mesh", None)
    devices = [] if mesh is None else mesh.devices.flat
    if len({device.process_index for device in devices}) < max(2, jax.process_count()):
        return

    arguments = {
        "loss": configuration.loss.value,
        "model": state.model,
        "optimizer": (configuration.optimizer.value, state.opt_state),
        "ema_decay": configuration.ema_decay.value,
        "trainable": configuration.trainable.value,
        "skipping": configuration.skipping,
        "parallel": configuration.placement,
        **others,
        "key": state.key,
    }
    digests = np.stack([_digest(argument) for argument in arguments.values()])
    everywhere = multihost_utils.process_allgather(digests)
    differs = np.any(everywhere != everywhere[0], axis=-1)

    found = []
    for process, row in enumerate(differs):
        names = [
            f"`{name}`" for name, other in zip(arguments, row, strict=True) if other
        ]
        if names:
            found.append(f"process {process} has another {', '.join(names)}")
    if found:
        raise ValueError(
            f"`fit`: {'; '.join(found)} than process 0. Run the same script on every "
            "process, with the same arguments and seeds; only batches may differ."
        )


def _check_shared(placement: AbstractPlacement) -> None:
    processes = jax.process_count()
    if processes > 1 and isinstance(placement, OneDevice):
        raise ValueError(
            "`parallel` is `OneDevice()`, the default, and each of the "
            f"{processes} processes would train a model of its own; pass "
            "`parallel=fk.training.Replicated()` or `FullySharded()`."
        )


def _digest(tree: PyTree[Any]) -> np.ndarray:
    described = [describe_arrays(tree), describe_static(tree)]
    found = hashlib.sha256(json.dumps(described).encode())
    for leaf in jax.tree.leaves(tree):
        # What lies on the devices of several processes is one array for all of them.
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            values = np.asarray(jr.key_data(leaf) if is_key else leaf)
            found.update(np.ascontiguousarray(values).tobytes())
    return np.frombuffer(found.digest(), np.uint8)
