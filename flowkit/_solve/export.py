"""A trained sampler as one file, which `_solve.load` describes."""

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Bool

from flowkit._checks import check_folder
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._files import replacing
from flowkit._flow import bare
from flowkit._solve.batching import AbstractBatching, Lockstep
from flowkit._solve.grid import checked_now
from flowkit._solve.load import (
    ABOUT,
    described,
    FORMAT,
    PROGRAM,
    require_flatbuffers,
    spec,
    text,
    without_missing,
)
from flowkit._solve.ode import end_of
from flowkit._solve.options import DEFAULT_SOLVER
from flowkit._solve.sample import sample
from flowkit._solve.watch import nan_if_failed
from flowkit._types import AnyArray, Cond, VelocityField


_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_sampler(
    path: str | os.PathLike,
    flow: VelocityField,
    shape: Sequence[int],
    *,
    num_samples: int,
    cond: Cond = None,
    cond_axes: int | None = 0,
    source: AbstractDistribution = Normal(),
    mask: Bool[AnyArray, "batch n"] | jax.ShapeDtypeStruct | None = None,
    solver: dfx.AbstractSolver = DEFAULT_SOLVER,
    num_steps: int | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    max_steps: int = 4096,
    batching: AbstractBatching = Lockstep(),
    platforms: Sequence[str] | None = None,
) -> None:
    """Writes `fk.sample` of a flow to one file, which runs without flowkit.

    ```python
    fk.export_sampler("moons.zip", flow, (2,), num_samples=1000)
    ```

    Any program with `jax`, `numpy` and `flatbuffers` draws from the file, without the code of
    the network:

    ```python
    import zipfile, jax
    with zipfile.ZipFile("moons.zip") as file:
        program = jax.export.deserialize(bytearray(file.read("sampler.bin")))
    draw = jax.jit(program.call)
    samples = draw(jax.random.key(0))      # draw(key, cond), draw(key, cond, mask)
    ```

    The file contains the weights, the source and all options. The number of samples is fixed,
    since the shapes of an exported program follow from its arguments; for more samples, call the
    program again with another key. It cannot raise errors either: where `fk.sample` would raise,
    a sample whose solve has failed is NaN. It can be jitted, but not vectorized or
    differentiated.

    JAX runs exported programs for six months after they were written, with older and newer
    releases. Load only files that you trust: they are programs.

    **Arguments:**

    - `path`: the file, which is replaced when the new one is complete.
    - `flow`, `shape`, `num_samples`, `cond_axes`, `source`, `solver`, `num_steps`,
        `stepsize_controller`, `max_steps`, `batching`: as in `fk.sample`.
    - `cond`: an example of the condition, or `jax.ShapeDtypeStruct`s, in dictionaries, lists and
        tuples; only shapes and types matter. `None` for a flow without a condition.
    - `mask`: an example of the mask, or a `jax.ShapeDtypeStruct`, of shape `(num_samples, n)`.
    - `platforms`: where the file will run, out of `"cpu"`, `"cuda"`, `"rocm"` and `"tpu"`; by
        default where this program runs.

    **Raises:** `ValueError` for other platforms, and for a flow that calls Python while it runs;
    `ImportError` if flatbuffers is not there.
    """
    require_flatbuffers("export_sampler")
    path = Path(path)
    check_folder("path", path.parent)
    platforms = _checked_platforms(platforms)

    draw = eqx.Partial(
        sample,
        flow,
        shape,
        num_samples=num_samples,
        cond_axes=cond_axes,
        source=source,
        solver=solver,
        num_steps=num_steps,
        stepsize_controller=checked_now(stepsize_controller, 0, end_of(bare(flow))),
        max_steps=max_steps,
        throw=False,
        batching=batching,
    )
    arguments = spec([jr.key(0), cond, mask])
    program = _exported(draw, arguments, platforms)
    _write(path, program, _about(program, arguments))


def _exported(
    draw: eqx.Partial, arguments: list[Any], platforms: Sequence[str]
) -> jax.export.Exported:
    """The program for arguments of these shapes."""
    arrays, rest = eqx.partition(draw, eqx.is_array)

    def values(key, cond=None, mask=None):
        # A compiler that saw the weights would fold them as constants, and round differently.
        hidden = jax.lax.optimization_barrier(arrays)
        samples = eqx.combine(hidden, rest)(key=key, cond=cond, mask=mask)
        return jax.vmap(nan_if_failed)(samples.values, samples.stats.result)

    export = jax.export.export(jax.jit(values), platforms=platforms)
    try:
        return export(*without_missing(arguments))
    except NotImplementedError as error:
        if "callback" not in str(error):
            raise
        raise ValueError(
            "`flow` calls Python while it runs (`jax.pure_callback`, `jax.debug.print`, "
            "`equinox.error_if`), which no file can hold; take these calls out of the "
            "network, the source and the solver."
        ) from error


def _about(program: jax.export.Exported, arguments: list[Any]) -> dict[str, Any]:
    """What the file says of its program."""
    # At the call, since this module is loaded by that import.
    import flowkit

    (samples,) = program.out_avals
    return {
        "format": FORMAT,
        "flowkit": flowkit.__version__,
        "jax": jax.__version__,
        "calling_convention_version": program.calling_convention_version,
        "platforms": program.platforms,
        "arguments": described(arguments),
        "samples": text(jax.ShapeDtypeStruct(samples.shape, samples.dtype)),
    }


def _write(path: Path, program: jax.export.Exported, about: dict[str, Any]) -> None:
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "x") as archive:
        archive.writestr(ABOUT, json.dumps(about, indent=2))
        archive.writestr(PROGRAM, bytes(program.serialize()))


def _checked_platforms(platforms: Sequence[str] | None) -> tuple[str, ...]:
    here = jax.export.default_export_platform()
    if platforms is None:
        return (here,)

    known = {*_PLATFORMS, here}
    if isinstance(platforms, str) or not platforms or not known.issuperset(platforms):
        raise ValueError(
            f"`platforms` must hold some of {', '.join(sorted(known))}, such as "
            f"`('cpu', 'cuda')`, got {platforms!r}."
        )
    return tuple(platforms)
