"""Classifier-free guidance that is trained into a flow map, so that sampling needs no second evaluation."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import Cond
from flowkit.few_step._flow_map import FlowMap


class Guidance(eqx.Module):
    r"""The guided velocity in the place of the conditional one, $v_c$ of a pair:

    $$\tilde v = \omega v_c + \kappa\, u(x, s, s \mid c) + (1 - \omega - \kappa)\, u(x, s, s \mid \varnothing).$$

    No gradient flows through the network's terms. Some examples have their condition replaced by the null condition and
    keep $v_c$. At the optimum the map is that of classifier-free guidance with the scale $\omega / (1 - \kappa)$: of
    two choices with the same scale the one with the larger $\kappa$ has less noise. What improved mean flow writes with
    a scale $w$ is $\omega = 1$, $\kappa = 1 - 1 / w$.

    **Arguments:**

    - `null`: the null condition of one example, the structure and shapes of its condition.
    - `scale`: $\omega > 0$.
    - `mix`: $\kappa < 1$.
    - `drop`: the fraction of examples whose condition is replaced, in [0, 1).

    **Reference:** Geng et al. (2025), arXiv 2505.13447; Ho and Salimans, Classifier-Free Diffusion Guidance (2022),
    arXiv 2207.12598.
    """

    null: Any
    scale: float = 1.0
    mix: float = 0.0
    drop: float = 0.1

    def __check_init__(self):
        if not self.scale > 0:
            raise ValueError(f"`scale` must be positive, got {self.scale}.")
        if not self.mix < 1:
            raise ValueError(f"`mix` must be below 1, got {self.mix}: the scale of guidance is scale / (1 - mix).")
        if not 0 <= self.drop < 1:
            raise ValueError(f"`drop` must be in [0, 1), the fraction of dropped conditions; got {self.drop}.")

    def replace(self, cond: Cond, dropped: Array) -> Cond:
        """The condition of one example, or the null condition if it is dropped."""
        return jax.tree.map(lambda leaf, null: jnp.where(dropped, jnp.asarray(null, leaf.dtype), leaf), cond, self.null)

    def velocity(self, flow_map: FlowMap, s, x, velocity, cond, dropped, **keywords: Any) -> Float[Array, "..."]:
        """The guided velocity at `x`, that of the pair where the condition is dropped."""
        null = jax.tree.map(lambda leaf, null: jnp.asarray(null, leaf.dtype), cond, self.null)
        conditional = flow_map(s, s, x, cond, **keywords)
        unconditional = flow_map(s, s, x, null, **keywords)
        rest = 1 - self.scale - self.mix
        guided = self.scale * velocity + self.mix * conditional + rest * unconditional
        return jnp.where(dropped, velocity, jax.lax.stop_gradient(guided))


def check_guidance(guidance: Guidance | None, cond: Cond) -> None:
    """Raises unless the null condition is one of an example."""
    if guidance is None:
        return
    if cond is None:
        raise ValueError("`guidance` needs conditions: give `cond`, arrays with leading axis `batch`.")
    if jax.tree.structure(cond) != jax.tree.structure(guidance.null):
        raise ValueError(
            f"`null` of the guidance must have the structure {jax.tree.structure(cond)} of `cond`, got "
            f"{jax.tree.structure(guidance.null)}."
        )
    shapes = [jnp.shape(leaf)[1:] for leaf in jax.tree.leaves(cond)]
    nulls = [jnp.shape(leaf) for leaf in jax.tree.leaves(guidance.null)]
    if shapes != nulls:
        raise ValueError(f"`null` of the guidance must be the condition of one example, {shapes}, got {nulls}.")
