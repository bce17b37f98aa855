"""Models side by side: panels of their outputs, and the animation of their training."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Float

from flowkit import plotting
from flowkit._types import AnyArray, PRNGKey
from flowkit.pipelines._outputs import OUTPUT_NAMES, OUTPUT_TIMES


Panel: TypeAlias = plotting.Paths | plotting.LatentMap
Outputs: TypeAlias = Mapping[str, Any]

# Data in the panel of an autoencoder, where more would hide its samples.
_NUM_CODES = 40


class SideBySide(NamedTuple):
    """Figures of models that were given the same noise and data: see `model_outputs`.

    - `z (n, d)`: noise.
    - `x (m, d)`: data.
    - `pairs`: noise and data as flows were trained on them, each `(k, d)`.
    - `random_pairs`: the same without a coupling, as a decoder is trained.
    """

    z: Float[AnyArray, "n d"]
    x: Float[AnyArray, "m d"]
    pairs: tuple[Any, Any]
    random_pairs: tuple[Any, Any]

    @classmethod
    def coupled(
        cls,
        z: Float[AnyArray, "n d"],
        x: Float[AnyArray, "m d"],
        random_pairs: tuple[Any, Any],
        coupling: Callable[..., Any],
        *,
        key: PRNGKey,
    ) -> "SideBySide":
        """With the pairs that a coupling makes of random ones."""
        x0, x1 = random_pairs
        pairing = coupling(x0, x1, key=key)
        source = slice(None) if pairing.source is None else pairing.source
        data = slice(None) if pairing.data is None else pairing.data
        return cls(z, x, (x0[source], x1[data]), random_pairs)

    def panel(self, outputs: Outputs) -> Panel:
        """One model at one time of its training."""
        if "paths" in outputs:
            return plotting.Paths(
                OUTPUT_TIMES,
                outputs["paths"],
                target=self.x,
                one_step=outputs["one_step"],
                coupling=self.pairs,
            )
        infer = (self.z, outputs["output"])
        if "latents" not in outputs:
            return plotting.LatentMap(train=self.random_pairs, infer=infer)
        latents = outputs["latents"][:_NUM_CODES]

        return plotting.LatentMap(
            infer=infer,
            encode=(self.x[:_NUM_CODES], latents),
            decode=(latents, outputs["decoded"][:_NUM_CODES]),
        )

    def panels(self, title: str, outputs: Outputs) -> dict[str, Panel]:
        """One model from all sides."""
        sides = {title: self.panel(outputs)}
        if "two_steps" in outputs:
            times = np.linspace(0, 1, 3)
            two_steps = plotting.Paths(times, outputs["two_steps"], target=self.x)
            sides["in two steps"] = two_steps
        if "latents" in outputs:
            latents = outputs["latents"]
            decode = (latents, outputs["decoded"])
            sides["encode"] = plotting.LatentMap(encode=(self.x, latents))
            sides["decode"] = plotting.LatentMap(decode=decode)
        if "latents" in outputs and "output" in outputs:
            infer = (self.z, outputs["output"])
            sides["samples"] = plotting.LatentMap(infer=infer)

        return sides

    def limits(self, outputs: Sequence[Outputs]) -> tuple[float, float]:
        """Limits for all models: room for noise, data and most of the latents."""
        low = min(float(np.min(self.z)), float(np.min(self.x)))
        high = max(float(np.max(self.z)), float(np.max(self.x)))
        for latents in [one["latents"] for one in outputs if "latents" in one]:
            low = min(low, float(np.quantile(latents, 0.02)))
            high = max(high, float(np.quantile(latents, 0.98)))
        margin = 0.1 * (high - low)
        return low - margin, high + margin

    def write(
        self,
        histories: Mapping[str, Mapping[str, Any]],
        distances: Mapping[str, Any],
        folder: str | os.PathLike[str],
        suffix: str = "",
        *,
        titles: Mapping[str, str],
        every: int = 1,
        fps: float = 10,
        dpi: int = 80,
        num_workers: int = 0,
    ) -> None:
        """Writes a figure of every model, and the training of all as an animation.

        - `<name><suffix>_visualization.png`: the last outputs of one model.
        - `comparison<suffix>.gif` and its last frame, `comparison<suffix>.png`.
        - `comparison<suffix>_epochs/epoch_0001.png` and so on: the frames.
        - `<name><suffix>_epochs/`: those of one model.

        **Arguments:**

        - `histories`: name -> history of a `fk.training.fit` with `record_outputs`, one
            record per epoch. The record of the untrained model is left out.
        - `distances`: what `output_distances` returns, for the titles of the figures.
        - `titles`: name -> title of a panel.
        - `every`: the number of epochs between frames; the last one is always there.
        - `fps`, `dpi`, `num_workers`: as in `fk.plotting.write_frames` and `animate`.
        """
        folder = Path(folder)
        series = {name: _outputs_of(history) for name, history in histories.items()}
        last = {name: _at(outputs, -1) for name, outputs in series.items()}
        limits = self.limits(list(last.values()))
        for name, outputs in last.items():
            plotting.comparison(
                self.panels(titles[name], outputs),
                limits=limits,
                title=_title(distances, name),
                path=folder / f"{name}{suffix}_visualization.png",
            )

        frames = self._frames(series, titles, every)
        paths = [
            folder / f"comparison{suffix}_epochs" / f"epoch_{epoch:04d}.png"
            for epoch in frames
        ]
        plotting.write_frames(
            [(f"epoch {epoch}", panels) for epoch, panels in frames.items()],
            paths,
            limits=limits,
            panel_folders={
                titles[name]: folder / f"{name}{suffix}_epochs" for name in series
            },
            dpi=dpi,
            num_workers=num_workers,
        )
        plotting.animate(paths, folder / f"comparison{suffix}.gif", fps=fps)
        picture = paths[-1].read_bytes()
        (folder / f"comparison{suffix}.png").write_bytes(picture)

    def _frames(
        self, series: Mapping[str, Outputs], titles: Mapping[str, str], every: int
    ) -> dict[int, dict[str, Panel]]:
        """Epoch -> panels, of NumPy arrays, which other processes can be given."""
        shown = jax.tree.map(np.asarray, self)
        first = next(iter(series.values()))
        number = len(next(iter(first.values())))
        return {
            epoch: {
                titles[name]: shown.panel(_at(outputs, epoch - 1))
                for name, outputs in series.items()
            }
            for epoch in sorted({*range(every, number + 1, every), number})
        }


def _outputs_of(history: Mapping[str, Any]) -> dict[str, np.ndarray]:
    # In the order of the names, whatever the order of the records.
    recorded = [name for name in OUTPUT_NAMES if name in history]
    return {name: history[name].values[1:] for name in recorded}


def _at(outputs: Outputs, index: int) -> Outputs:
    return {name: array[index] for name, array in outputs.items()}


def _title(distances: Mapping[str, Any], name: str) -> str:
    numbers = distances["models"][name]
    floor = distances["w2_floor"]
    title = f"W2 to the data {numbers['w2']:.2f} (floor {floor:.2f})"
    if "latent_w2" in numbers:
        floor = distances["latent_w2_floor"]
        title += f", latents to N(0, 1) {numbers['latent_w2']:.2f} (floor {floor:.2f})"
    return title
