"""Samplers from a file, for programs that have flowkit and those that do not.

The file is a ZIP archive: `sampler.bin` is the program with its weights, as `jax.export` writes
it, and `about.json` says what was exported, with which versions. The checksums of the archive
reveal a damaged file.
"""

import json
import os
import struct
import zipfile
import zlib
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float

from flowkit._types import AnyArray, Cond, PRNGKey


FORMAT = 1

PROGRAM = "sampler.bin"
ABOUT = "about.json"

# What `zipfile` and `json` raise for files that are cut short, changed or something else.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class ExportedSampler:
    """A sampler from a file, as `fk.load_sampler` returns it.

    `sampler(key)`, `sampler(key, cond)` or `sampler(key, cond, mask)`, as it was exported, draws
    the samples, `(num_samples, *shape)`. Those whose solve has failed are NaN.

    `sampler.about` is a dictionary: the versions, the platforms, and the shapes of the arguments
    and of the samples. `sampler.program` is the `jax.export.Exported`.
    """

    def __init__(self, program: jax.export.Exported, about: dict[str, Any]):
        self.program = program
        self.about = about
        # Kept, so that calls after the first one compile nothing.
        self._draw = jax.jit(program.call)

    def __call__(
        self,
        key: PRNGKey,
        cond: Cond = None,
        mask: Bool[AnyArray, "batch n"] | None = None,
    ) -> Float[Array, "batch ..."]:
        """The samples, `(num_samples, *shape)`.

        **Raises:** `ValueError` if `cond` or `mask` has other shapes or types than the exported
        one.
        """
        given = [key, cond, mask]
        expectations = self.about["arguments"]
        for name, found in described(spec(given)).items():
            expected = expectations[name]
            if found != expected:
                raise ValueError(
                    f"`{name}` must be {expected}, as it was exported, got {found}."
                )
        return self._draw(*without_missing(given))


def load_sampler(path: str | os.PathLike) -> ExportedSampler:
    """Reads a sampler that `fk.export_sampler` wrote.

    ```python
    sampler = fk.load_sampler("moons.zip")
    samples = sampler(key)
    ```

    **Raises:** `ValueError`, with the file's name and the fix, if it is damaged or not an
    exported sampler, or if it was exported for other platforms or by versions of flowkit or jax
    that this one cannot read. `OSError` if it cannot be opened; `ImportError` if flatbuffers is
    not there.
    """
    require_flatbuffers("load_sampler")
    where = f"`{os.fspath(path)}`"
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                about = json.loads(archive.read(ABOUT))
                program = archive.read(PROGRAM)
        except _DAMAGED as error:
            raise ValueError(
                f"{where} is damaged, or no file of `fk.export_sampler` ({error}); export "
                "the sampler again."
            ) from error

    _check_versions(about, where)
    _check_platform(about, where)
    try:
        exported = jax.export.deserialize(bytearray(program))
    # For an unknown layout, flatbuffers may raise any kind of error.
    except Exception as error:
        raise ValueError(
            f"{where} was exported with jax {about['jax']}, and jax {jax.__version__} cannot "
            f"read it ({error}); use a release within six months of that one, or export the "
            "sampler again."
        ) from error
    return ExportedSampler(exported, about)


def without_missing(arguments: list[Any]) -> list[Any]:
    """The arguments without those at the end that are `None`."""
    while arguments[-1] is None:
        arguments = arguments[:-1]
    return arguments


def spec(tree: Any) -> Any:
    """The shapes and the types of arrays, numbers and `jax.ShapeDtypeStruct`s."""
    shapes = jax.eval_shape(lambda tree: tree, tree)
    # Without weak types, which only numbers have.
    strip = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.tree.map(strip, shapes)


def described(arguments: list[Any]) -> dict[str, str]:
    """The arguments of a call by name, as text."""
    texts = [text(argument) for argument in arguments]
    return dict(zip(("key", "cond", "mask"), texts, strict=True))


def text(spec: Any) -> str:
    """Shapes and types, such as `f32[8,3]`."""
    return eqx.tree_pformat(spec, struct_as_array=True)


def require_flatbuffers(function: str) -> None:
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'`{function}` needs flatbuffers: `pip install "flowkit-jax[export]"`.'
        ) from error


def _check_versions(about: dict[str, Any], where: str) -> None:
    import flowkit

    if about["format"] > FORMAT:
        raise ValueError(
            f"{where} was written by flowkit {about['flowkit']}, whose files flowkit "
            f"{flowkit.__version__} cannot read; update flowkit."
        )

    oldest = jax.export.minimum_supported_calling_convention_version
    newest = jax.export.maximum_supported_calling_convention_version
    version = about["calling_convention_version"]
    if not oldest <= version <= newest:
        remedy = "update jax" if version > newest else "export the sampler again"
        raise ValueError(
            f"{where} was exported with jax {about['jax']}, in version {version} of its "
            f"calling convention, and jax {jax.__version__} runs versions {oldest} to "
            f"{newest}; {remedy}."
        )


def _check_platform(about: dict[str, Any], where: str) -> None:
    platforms = about["platforms"]
    here = jax.export.default_export_platform()
    if here not in platforms:
        raise ValueError(
            f"{where} was exported for {' and '.join(platforms)}, and this process runs on "
            f"{here}; export it with `platforms={(*platforms, here)}`, or set the environment "
            f"variable JAX_PLATFORMS to one of its own."
        )
