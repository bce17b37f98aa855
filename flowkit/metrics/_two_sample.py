"""The classifier two-sample test: can a network tell two sets of samples apart?"""

from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from flowkit._checks import as_size
from flowkit._types import AnyArray, is_traced, PRNGKey
from flowkit.metrics._inputs import check_values


class ClassifierAccuracy(NamedTuple):
    """The accuracy of a classifier on the part of the points that it has not seen.

    - `values`: `(folds,)`, one for each part.
    """

    values: Float[np.ndarray, " folds"]

    @property
    def mean(self) -> float:
        """The mean over the parts."""
        return float(np.mean(self.values))

    @property
    def standard_error(self) -> float:
        """The standard error of the mean, known to about a third with five parts."""
        return float(np.std(self.values, ddof=1) / len(self.values) ** 0.5)


def classifier_two_sample(
    x: Float[AnyArray, "n d"],
    y: Float[AnyArray, "m d"],
    *,
    folds: int = 5,
    key: PRNGKey,
) -> ClassifierAccuracy:
    """How well a classifier tells samples from a reference, by cross-validation (C2ST).

    ```python
    test = fk.metrics.classifier_two_sample(samples, reference, key=key)
    test.mean, test.standard_error
    ```

    An accuracy of 0.5 is best: the sets cannot be told apart. At 1 they are disjoint. It
    grows with the number of points, from which the classifier learns, so compare equal
    numbers only.

    The test is that of the simulation-based inference benchmark. Both sets are standardized
    by the mean and the standard deviation of the reference. The score is the accuracy of
    scikit-learn's `MLPClassifier`, with two hidden layers of `10 d` ReLUs, on the held-out
    part, for each of five parts.

    **Arguments:**

    - `x (n, d)`, `y (n, d)`: samples and a reference, equally many.
    - `folds`: the number of parts, at least two.
    - `key`: the random seed of the parts and of the classifier.

    **Raises:** `ImportError` without scikit-learn, `pip install "flowkit-jax[data]"`.

    **Reference:** Lopez-Paz & Oquab, *Revisiting Classifier Two-Sample Tests* (2017), arXiv
    1610.06545; Lueckmann et al., *Benchmarking Simulation-Based Inference* (2021), arXiv
    2101.04653.
    """
    folds = _check(x, y, folds)
    try:
        from sklearn.model_selection import cross_val_score, KFold
        from sklearn.neural_network import MLPClassifier
    except ImportError as error:
        raise ImportError(
            "`classifier_two_sample` trains a classifier of scikit-learn: "
            '`pip install "flowkit-jax[data]"`.'
        ) from error

    x = np.asarray(x, float)
    y = np.asarray(y, float)
    mean = np.mean(y, axis=0)
    std = np.std(y, axis=0, ddof=1)
    points = (np.concatenate([x, y]) - mean) / std
    labels = np.repeat([0, 1], len(x))

    seed = int(jr.bits(key, dtype=jnp.uint32))
    width = 10 * x.shape[1]
    classifier = MLPClassifier((width, width), max_iter=10_000, random_state=seed)
    parts = KFold(folds, shuffle=True, random_state=seed)
    return ClassifierAccuracy(cross_val_score(classifier, points, labels, cv=parts))


def _check(x: AnyArray, y: AnyArray, folds: int) -> int:
    check_values("x", x)
    check_values("y", y)
    folds = as_size("folds", folds)
    if is_traced(x, y):
        raise ValueError(
            "`x` or `y` is traced, but the classifier is trained outside of JAX; call the "
            "test outside of `jax.jit`."
        )
    if not 2 <= folds <= len(x):
        raise ValueError(
            f"`folds` is {folds}; it must be at least 2 and at most {len(x)}, the number of "
            "samples."
        )
    if len(x) != len(y):
        raise ValueError(
            f"`x` holds {len(x)} samples and `y` {len(y)}; take equally many, otherwise 0.5 "
            "would not be the best accuracy."
        )

    constant = np.flatnonzero(np.ptp(np.asarray(y), axis=0) == 0)
    if len(constant):
        raise ValueError(
            f"`y` does not vary in the coordinates {constant.tolist()}, so they have no "
            "unit; leave them out."
        )
    return folds
