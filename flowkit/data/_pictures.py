"""Picture files as arrays: which of them are whole, and how one is read.

Files are not trusted. Opening a picture reads only its header; the rest would be decoded in
the middle of training. `whole_pictures` finds in advance what cannot be decoded, without
decoding photographs.
"""

import io
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError


Fit: TypeAlias = Callable[[Image.Image, int], Image.Image]
"""`(picture, side) -> picture` of `side` x `side` pixels: `stretch`, `center_crop`."""

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
# For some other formats, Pillow would call external programs.
_FORMATS = ("BMP", "JPEG", "PNG", "TIFF")
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_END_OF_JPEG = b"\xff\xd9"
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that turns a picture upright, by its orientation number in EXIF."""


def stretch(picture: Image.Image, side: int) -> Image.Image:
    """The whole picture at `side` x `side` pixels, whatever its proportions were."""
    return picture.resize((side, side), Image.Resampling.BILINEAR)


def center_crop(picture: Image.Image, side: int) -> Image.Image:
    """The largest square in the middle of the picture, at `side` x `side` pixels."""
    w, h = picture.size
    short = min(w, h)
    left = (w - short) // 2
    top = (h - short) // 2
    box = (left, top, left + short, top + short)
    return picture.resize((side, side), Image.Resampling.BILINEAR, box=box)


def listed_pictures(folder: str | os.PathLike) -> list[Path]:
    """The paths of the pictures in a folder, sorted by name; at least one."""
    folder = Path(folder)
    paths = sorted(path for path in folder.iterdir() if _is_listed(path))
    if not paths:
        raise ValueError(
            f"`folder`: {folder} has no file that ends in {', '.join(_SUFFIXES)}; its "
            "subfolders are not searched."
        )
    return paths


def whole_pictures(paths: list[Path], *, skip_damaged: bool) -> list[Path]:
    """The usable files. Raises if there are others, unless these are skipped."""
    # Before any threads start, because the filter is that of the whole process.
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        found = {path: _problem(path) for path in paths}
    problems = {path: problem for path, problem in found.items() if problem}
    if not problems:
        return paths

    message = (
        f"`folder`: {len(problems)} of the {len(paths)} files in {paths[0].parent} "
        f"cannot be used: {_listing(problems)}"
    )
    if len(problems) == len(paths):
        raise ValueError(f"{message}; name a folder with pictures that can be read.")
    if not skip_damaged:
        raise ValueError(f"{message}; remove them, or give `skip_damaged=True`.")
    warnings.warn(f"{message}; they are skipped.", stacklevel=3)
    return [path for path in paths if path not in problems]


def read_picture(
    path: Path, side: int, fit: Fit
) -> Float[np.ndarray, "{side} {side} 3"]:
    """A picture as float32 in [-1, 1]: upright, in red, green and blue, row 0 at the top."""
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            picture.load()
            rgb = _as_rgb(_upright(picture))
    # Pillow raises nearly anything for foreign bytes.
    except Exception as error:
        raise ValueError(
            f"`{path}` could not be read ({_named(error)}); remove it from the folder."
        ) from error

    fitted = fit(rgb, side)
    if fitted.size != (side, side) or fitted.mode != "RGB":
        raise ValueError(
            f"`fit` must return an RGB picture of {side} x {side} pixels, but gave one of "
            f"{fitted.size[0]} x {fitted.size[1]} in {fitted.mode} for `{path}`."
        )
    return np.asarray(fitted, np.float32) / np.float32(127.5) - np.float32(1)


def _is_listed(path: Path) -> bool:
    # Some systems leave hidden files with the names of pictures.
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in _SUFFIXES and path.is_file()


def _problem(path: Path) -> str | None:
    """Why a file cannot be used, if it cannot."""
    try:
        content = path.read_bytes()
        stream = io.BytesIO(content)
        with Image.open(stream, formats=_FORMATS) as picture:
            if picture.mode not in _MODES and not picture.mode.startswith("I;16"):
                return f"its pixels are of the kind {picture.mode}, of unknown range"
            if picture.format == "PNG":
                # Compares the checksums of all parts.
                picture.verify()
            elif picture.format == "JPEG":
                # Opened up to the start of the pixels, so that the end of a thumbnail
                # before them does not count.
                if content.find(_END_OF_JPEG, stream.tell()) < 0:
                    return "it is cut short"
            else:
                picture.load()
    except UnidentifiedImageError:
        return "it is no BMP, JPEG, PNG or TIFF"
    # Pillow raises nearly anything for foreign bytes.
    except Exception as error:
        return _named(error)
    return None


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")


def _listing(problems: Mapping[Path, str]) -> str:
    """The first few, and that there are more."""
    first = [f"`{path.name}` ({problem})" for path, problem in problems.items()][:3]
    return ", ".join(first) + (", ..." if len(problems) > len(first) else "")


def _upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its camera was held."""
    try:
        turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))
    # A damaged description does not make the pixels worse.
    except Exception:
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow itself would clip to 255 rather than scale.
        gray = np.rint(np.asarray(picture).astype(np.float32) / 257)
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")

    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
