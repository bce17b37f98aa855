"""Plans over large batches, made on host threads ahead of the training steps that they serve."""

import collections
import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.random as jr
import numpy as np

from flowkit._checks import check_rows
from flowkit._couplings.assignment import assignment
from flowkit._couplings.base import call_coupling, Coupling
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._types import Cond, PRNGKey


class Pairs(NamedTuple):
    """Noise and data that belong together, arrays on the host."""

    x0: Any
    x1: Any
    cond: Cond = None


def planned_pairs(
    batches: Iterable[Any],
    batch_size: int,
    *,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = assignment,
    num_workers: int | None = None,
    key: PRNGKey,
) -> Generator[Pairs, None, None]:
    r"""Batches of pairs by a plan over a larger batch, made by threads on the host while the device trains.

    A plan is the nearer to that of the populations the larger its batch, and solvers on the host (`fk.assignment`,
    `fk.ConditionalAssignment`) hold up a training step that waits for them. Here they run ahead of it, and a plan for
    `n` examples serves `n / batch_size` steps.

    ```python
    pairs = fk.planned_pairs(fk.data.batches(x1, 1024), 256, key=key)
    loss = lambda flow, batch, key: fk.flow_matching_loss(
        flow, batch.x1, batch.cond, key=key, coupling=fk.Paired(batch.x0)
    )
    result = fk.training.fit(loss, flow, pairs, num_steps=5000, steps_per_call=4, key=key)
    ```

    The pairs depend on `batches` and `key` alone, not on the threads. A plain iterator has no position that a
    checkpoint could hold.

    **Arguments:**

    - `batches`: large batches, one for each plan: arrays `x1` of shape `(n, ...)`, or tuples `(x1, cond)`, in random
      order. The pairs end when they do.
    - `batch_size`: the size of the batches to train on, a divisor of `n`.
    - `source`: the law of `x0`.
    - `coupling`: `fk.assignment`, or any other one without weights.
    - `num_workers`: threads, each with a plan of its own at a time; one per processor and at most 8 if `None`.

    **Yields:** `Pairs(x0, x1, cond)`, NumPy arrays of leading size `batch_size`. The threads end with the generator, or
    by its `close()`.

    **Reference:** for plans over larger batches than the one of a step, Cheng and Schwing (2025), arXiv 2503.10636.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be positive, got {batch_size}.")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"`num_workers` must be at least 1, got {num_workers}.")
    return _pairs(
        batches,
        batch_size,
        source,
        coupling,
        num_workers or min(os.cpu_count() or 1, 8),
        key,
    )


def _pairs(
    batches, batch_size, source, coupling, num_workers, key
) -> Generator[Pairs, None, None]:
    pool = ThreadPoolExecutor(num_workers)
    ahead: collections.deque[Future[Pairs]] = collections.deque()
    try:
        for step, batch in enumerate(batches):
            x1, cond = _parts(batch, batch_size)
            ahead.append(
                pool.submit(_plan, source, coupling, x1, cond, jr.fold_in(key, step))
            )
            if len(ahead) > num_workers:
                yield from _split(ahead.popleft().result(), batch_size)
        while ahead:
            yield from _split(ahead.popleft().result(), batch_size)
    finally:
        pool.shutdown(
            wait=False, cancel_futures=True
        )  # a collector may close this in any thread


def _parts(batch: Any, batch_size: int) -> tuple[Any, Cond]:
    x1, cond = batch if isinstance(batch, tuple) and len(batch) == 2 else (batch, None)
    if not eqx.is_array(x1) and not isinstance(x1, np.ndarray):
        raise ValueError(
            f"`batches` must give arrays `x1` or tuples `(x1, cond)`, but gave {type(batch)}."
        )
    if len(x1) == 0 or len(x1) % batch_size:
        raise ValueError(
            f"`batch_size` must divide the {len(x1)} examples of a batch of `batches`, got {batch_size}."
        )
    check_rows("cond", cond, len(x1), "example of `batches`")
    return x1, cond


def _split(pairs: Pairs, size: int) -> Iterator[Pairs]:
    for start in range(0, len(pairs.x1), size):
        yield _rows(pairs, slice(start, start + size))


def _plan(source, coupling, x1, cond, key) -> Pairs:
    """The pairs of one large batch."""
    # On the processor: an accelerator would run the steps behind the draws, and hand costs back and forth.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        x1, x0, ckey = _draw(source, x1, key)
        # Not compiled as a whole, so that the solver is called by this thread and not by one of the device.
        pairing = call_coupling(coupling, x0, (x1, cond, None), key=ckey)
        if pairing.weights is not None:
            raise ValueError(
                "`coupling` returned weights, which pairs cannot carry; pass it to the loss instead."
            )
        x0 = x0 if pairing.x0 is None else pairing.x0.astype(x0.dtype)
        source, data = jax.tree.map(np.asarray, (pairing.source, pairing.data))
        return Pairs(_rows(x0, source), _rows(x1, data), _rows(cond, data))


@eqx.filter_jit
def _draw(source, x1, key):
    skey, ckey = jr.split(key)
    return x1, source.sample(x1.shape, key=skey).astype(x1.dtype), ckey


def _rows(tree: Any, rows: Any) -> Any:
    leaves = jax.tree.map(np.asarray, tree)
    return leaves if rows is None else jax.tree.map(lambda leaf: leaf[rows], leaves)
