"""Plans over large batches, made on host threads ahead of the training steps they serve."""

import collections
import os
import sys
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


class _Options(NamedTuple):
    """How pairs are drawn and made."""

    batch_size: int
    source: AbstractDistribution
    coupling: Coupling
    num_workers: int


def planned_pairs(
    batches: Iterable[Any],
    batch_size: int,
    *,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = assignment,
    num_workers: int | None = None,
    key: PRNGKey,
) -> Generator[Pairs, None, None]:
    r"""Pairs by a plan over a larger batch, made by host threads while the device trains.

    The larger the batch, the closer its plan is to that of the populations. But solvers on
    the host (`fk.assignment`, `fk.ConditionalAssignment`) hold up a training step that
    waits for them. Here they run ahead of it, and a plan for `n` examples serves
    `n / batch_size` steps.

    ```python
    pairs = fk.planned_pairs(fk.data.batches(x1, 1024), 256, key=key)
    loss = lambda flow, batch, key: fk.flow_matching_loss(
        flow, batch.x1, batch.cond, key=key, coupling=fk.Paired(batch.x0)
    )
    result = fk.training.fit(loss, flow, pairs, num_steps=5000, key=key)
    ```

    The pairs depend on `batches` and `key` alone, not on the threads. A plain iterator has
    no position that a checkpoint could hold.

    **Arguments:**

    - `batches`: large batches, one for each plan: arrays `x1` of shape `(n, ...)`, or
      tuples `(x1, cond)`, in random order. They are copied, so an iterator may refill its
      arrays. The pairs end when the batches do.
    - `batch_size`: the size of the batches to train on, a divisor of `n`.
    - `source`: the distribution of `x0`.
    - `coupling`: `fk.assignment`, or any other coupling without weights.
    - `num_workers`: the number of threads, each making one plan at a time; one per
      processor and at most 8 if `None`.

    **Yields:** `Pairs(x0, x1, cond)`, NumPy arrays of leading size `batch_size`. The threads
    end with the generator, or by its `close()`.

    **Reference:** Cheng and Schwing (2025), arXiv 2503.10636, for plans over larger batches
    than that of a step.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be positive, got {batch_size}.")
    if num_workers is None:
        num_workers = min(os.cpu_count() or 1, 8)
    if num_workers < 1:
        raise ValueError(f"`num_workers` must be at least 1, got {num_workers}.")

    options = _Options(int(batch_size), source, coupling, int(num_workers))
    return _pairs(batches, options, key)


def _pairs(
    batches: Iterable[Any], options: _Options, key: PRNGKey
) -> Generator[Pairs, None, None]:
    # Bound here: at the end of a program the module may be gone before the generator.
    is_finalizing = sys.is_finalizing
    pool = ThreadPoolExecutor(options.num_workers)
    ahead: collections.deque[Future[Pairs]] = collections.deque()

    try:
        for step, batch in enumerate(batches):
            x1, cond = _copied_parts(batch, options.batch_size)
            # By the number of the batch, so that the draws do not depend on which
            # thread is faster.
            step_key = jr.fold_in(key, step)
            ahead.append(pool.submit(_plan, options, x1, cond, step_key))
            # One plan more than there are threads keeps all of them busy; a longer
            # queue would only hold more large batches in memory. The oldest is handed
            # out, whichever is done first.
            if len(ahead) > options.num_workers:
                yield from _split(ahead.popleft().result(), options.batch_size)

        while ahead:
            yield from _split(ahead.popleft().result(), options.batch_size)
    finally:
        if not is_finalizing():
            # Not waited for: the garbage collector may close the generator in any thread.
            pool.shutdown(wait=False, cancel_futures=True)


def _copied_parts(batch: Any, batch_size: int) -> tuple[Any, Cond]:
    """Data and condition of a batch, in memory of their own.

    The threads read them while the iterator is asked for the next batch, and an iterator
    may return the same arrays each time, filled with other values.
    """
    is_pair = isinstance(batch, tuple) and len(batch) == 2
    x1, cond = batch if is_pair else (batch, None)
    if not isinstance(x1, jax.Array | np.ndarray):
        raise ValueError(
            "`batches` must give arrays `x1` or tuples `(x1, cond)`, "
            f"but gave {type(batch)}."
        )
    if len(x1) == 0 or len(x1) % batch_size:
        raise ValueError(
            f"`batch_size` must divide the {len(x1)} examples of a batch of `batches`, "
            f"got {batch_size}."
        )
    check_rows("cond", cond, len(x1), "example of `batches`")

    return jax.tree.map(_copied, (x1, cond))


def _copied(leaf: Any) -> Any:
    # A JAX array cannot change under the threads.
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _split(pairs: Pairs, size: int) -> Iterator[Pairs]:
    for start in range(0, len(pairs.x1), size):
        yield _rows(pairs, slice(start, start + size))


def _plan(options: _Options, x1: Any, cond: Cond, key: PRNGKey) -> Pairs:
    """The pairs of one large batch."""
    # On the processor: an accelerator would run the steps behind the draws, and costs would
    # be copied back and forth.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        x1, x0, ckey = _draw(options.source, x1, key)

        # Not compiled as a whole, so that this thread calls the solver, not a thread of the
        # device.
        pairing = call_coupling(options.coupling, x0, (x1, cond, None), key=ckey)
        if pairing.weights is not None:
            raise ValueError(
                "`coupling` returned weights, which pairs cannot carry; pass it to the "
                "loss instead."
            )
        if pairing.x0 is not None:
            x0 = pairing.x0.astype(x0.dtype)
        return Pairs(
            x0=_rows(x0, pairing.source),
            x1=_rows(x1, pairing.data),
            cond=_rows(cond, pairing.data),
        )


@eqx.filter_jit
def _draw(
    source: AbstractDistribution, x1: Any, key: PRNGKey
) -> tuple[Any, Any, PRNGKey]:
    skey, ckey = jr.split(key)
    return x1, source.sample(x1.shape, key=skey).astype(x1.dtype), ckey


def _rows(tree: Any, rows: Any) -> Any:
    """The given rows of all arrays, on the host; all of them if `None`."""
    leaves = jax.tree.map(np.asarray, tree)
    if rows is None:
        return leaves
    if not isinstance(rows, slice):
        rows = np.asarray(rows)
    return jax.tree.map(lambda leaf: leaf[rows], leaves)
