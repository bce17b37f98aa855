"""The loss on data that were held out, and the learning rate at which training is fastest."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import optax
from jaxtyping import PyTree

from flowkit._types import PRNGKey
from flowkit.training._loop.batches import length
from flowkit.training._loop.callbacks import Stop
from flowkit.training._loop.fit import Diverged, fit
from flowkit.training._step import (
    AbstractPlacement,
    OneDevice,
    owned,
    positive,
    Skipping,
    TrainState,
)


def held_out_loss(
    loss: Callable[..., Any],
    data: PyTree[Any],
    *,
    batch_size: int | None = None,
    key: PRNGKey,
) -> Callable[[TrainState], float]:
    """A function of the training state: the mean loss on data that were held out.

    ```python
    validation = fk.training.held_out_loss(loss, held_out, key=key)
    stopping = fk.training.EarlyStopping(validation, patience=5)
    callbacks = [fk.training.Every(100, stopping)]
    ```

    It takes the averaged weights, if there are any, in inference mode. Every call draws the
    same noise and times, so that values of one run can be compared.

    **Arguments:**

    - `loss`: that of `fit`.
    - `data`: a pytree of arrays with the same first axis, like those of the training.
    - `batch_size`: how many examples at a time; `None` takes all at once.
    - `key`: random seed of noise and times.
    """
    data = owned(data, "data")
    lengths = {length(leaf) for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            "`data` is a pytree of arrays, which must share their first axis, the "
            f"examples, got lengths {sorted(lengths)}."
        )
    (num,) = lengths
    size = num if batch_size is None else positive("batch_size", batch_size)
    starts = range(0, num, size)
    parts = [jax.tree.map(lambda a, i=i: a[i : i + size], data) for i in starts]

    @eqx.filter_jit
    def value(model, part, key):
        result = loss(eqx.nn.inference_mode(model), part, key)
        return result[0] if isinstance(result, tuple) else result

    def mean(state: TrainState) -> float:
        model = state.model if state.ema is None else state.ema
        total = 0.0
        for i, part in enumerate(parts):
            share = len(jax.tree.leaves(part)[0]) / num
            total += share * float(value(model, part, jr.fold_in(key, i)))
        return total

    return mean


class LearningRates(NamedTuple):
    """What `find_learning_rate` has tried.

    - `rates`, `losses`: shape `(n,)`, in the order of the steps.
    - `smooth_losses`: their running averages, over about ten steps.
    - `suggestion`: a tenth of the rate at which that average is lowest.
    """

    rates: np.ndarray
    losses: np.ndarray
    smooth_losses: np.ndarray
    suggestion: float


def find_learning_rate(
    loss: Callable[..., Any],
    model: PyTree[Any],
    batches: Any,
    *,
    optimizer: Callable[[Any], Any] = optax.adam,
    least: float = 1e-6,
    most: float = 1.0,
    num_steps: int = 300,
    batch_size: int | None = None,
    parallel: AbstractPlacement = OneDevice(),
    key: PRNGKey,
) -> LearningRates:
    r"""Trains for a few steps while the learning rate grows, until the loss does too.

    ```python
    found = fk.training.find_learning_rate(loss, model, data, batch_size=256, key=key)
    plt.semilogx(found.rates, found.smooth_losses)
    optimizer = optax.adam(found.suggestion)
    ```

    Step $k$ of $n$ has the rate $a (b / a)^{k / (n - 1)}$ with $a$ = `least` and
    $b$ = `most`. The training ends early once the average loss is four times the first one.

    **Arguments:**

    - `loss`, `model`, `batches`, `batch_size`, `parallel`: as in `fit`; the model is not
      changed.
    - `optimizer`: from a learning rate or a schedule to an optimizer.
    - `least`, `most`: the rates of the first and the last step.
    - `num_steps`: the number of steps.
    - `key`: random seed.

    **Reference:** Smith, *Cyclical learning rates for training neural networks*, 2017
    (arXiv 1506.01186), section 3.3.
    """
    if not 0 < least < most:
        raise ValueError(
            f"`least` must be positive and below `most`={most}, got {least}."
        )
    if positive("num_steps", num_steps) < 10:
        raise ValueError(f"`num_steps` must be at least 10, got {num_steps}.")
    growth = math.log(most / least) / (num_steps - 1)
    watched: list[float] = []

    def watch(state, step, metrics):
        watched.append(float(metrics["loss"]))
        if _running_average(watched)[-1] > 4 * abs(watched[0]):
            raise Stop

    options: Any = {"batch_size": batch_size, "num_steps": num_steps, "key": key}
    options |= {"callbacks": [watch], "ema_decay": None, "progress": False}
    options |= {"skipping": Skipping(most_in_a_row=1), "parallel": parallel}
    try:
        schedule = optax.exponential_decay(least, 1, math.exp(growth))
        options |= {"optimizer": optimizer(schedule)}
        result = fit(loss, model, batches, **options)
    except Diverged as error:
        result = error.result
    losses = result.history["loss"].values
    losses = losses[np.cumprod(np.isfinite(losses)).astype(bool)]
    if not len(losses):
        raise ValueError("`loss` is not finite at the first step.")
    rates = least * np.exp(growth * np.arange(len(losses)))
    smooth = _running_average(losses)
    return LearningRates(rates, losses, smooth, float(rates[np.argmin(smooth)] / 10))


def _running_average(values: Any, decay: float = 0.9) -> np.ndarray:
    """The exponential average of the values so far, without the bias of its start."""
    total = 0.0
    averages = []
    for number, value in enumerate(values, 1):
        total = decay * total + (1 - decay) * float(value)
        averages.append(total / (1 - decay**number))
    return np.array(averages)
