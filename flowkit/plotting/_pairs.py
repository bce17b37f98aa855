"""Two panels for every point cloud, one beside the other."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

from flowkit.plotting._panels import (
    Camera,
    cell_borders,
    check_lengths,
    Clouds,
    draw_panels,
    drawn,
    entry,
    id_colors,
    Ids,
    Masks,
    Panel,
    plain,
)
from flowkit.plotting._style import (
    as_points,
    colors,
    INK,
    Limits,
    Number,
    PathLike,
    require,
)


def reconstructions(
    inputs: Clouds,
    samples: Clouds,
    input_masks: Masks = None,
    masks: Masks = None,
    *,
    limits: Limits = None,
    columns: int = 4,
    up: int = 2,
    view: tuple[Number, Number] = (20, -60),
    path: PathLike = None,
) -> Figure:
    """Pairs of panels, input | sample, `columns` pairs to a row; 16 pairs make 4 rows.

    **Arguments:**

    - `inputs`, `samples`: as many clouds in one as in the other.
    - `input_masks`: which points of the inputs the encoder saw; hidden ones are drawn red.
    - `masks`: which points of both are valid; others are not drawn.
    - `limits`, `up`, `view`: as in `point_clouds`.
    """
    number = len(inputs)
    require(
        len(samples) == number,
        f"`samples` has {len(samples)} clouds and `inputs` has {number}; they are pairs.",
    )
    _check("inputs", number, columns, input_masks=input_masks, masks=masks)
    panels = []
    for i in range(number):
        titles = ("input", "sample") if i < columns else ("", "")
        points = as_points("samples", samples[i], entry(masks, i))
        panels += [
            _seen_and_hidden(
                ("inputs", "input_masks"),
                inputs[i],
                entry(masks, i),
                entry(input_masks, i),
                titles[0],
            ),
            Panel(points, plain(colors["prior_z"], len(points)), titles[1]),
        ]
    return draw_panels(panels, 2 * min(columns, number), limits, Camera(up, view), path)


def masked_examples(
    clouds: Clouds,
    visible_masks: Masks,
    masks: Masks = None,
    *,
    grid_size: int | None = None,
    limits: Limits = None,
    columns: int = 4,
    up: int = 2,
    view: tuple[Number, Number] = (20, -60),
    path: PathLike = None,
) -> Figure:
    """What a masking leaves of a cloud: pairs of panels, original | visible points black and hidden ones red.

    The title counts the visible points.

    **Arguments:**

    - `clouds` and `visible_masks`: which of their points the encoder may see.
    - `masks`: which points are valid; others are neither drawn nor counted.
    - `grid_size`: where whole cells were hidden, their number along each axis of the cloud's bounding box, whose
      borders are then drawn dashed; in space those behind the points.
    - `limits`, `up`, `view`: as in `point_clouds`.
    - `columns`: pairs in a row.
    """
    number = len(clouds)
    require(
        visible_masks is not None,
        "`visible_masks` is missing; it says which points are visible.",
    )
    _check("clouds", number, columns, visible_masks=visible_masks, masks=masks)
    require(
        grid_size is None or grid_size > 0,
        f"`grid_size` is {grid_size}; there must be at least one cell.",
    )
    camera, panels = Camera(up, view), []
    for i in range(number):
        valid, seen = entry(masks, i), entry(visible_masks, i)
        points = as_points("clouds", clouds[i], valid)
        lines = None if grid_size is None else cell_borders(points, grid_size, camera)
        count = np.sum(_visible("visible_masks", clouds[i], valid, seen))
        left = Panel(points, plain(INK, len(points)), "original")
        right = _seen_and_hidden(
            ("clouds", "visible_masks"),
            clouds[i],
            valid,
            seen,
            f"visible: {count} of {len(points)}",
        )
        panels += [left, right._replace(lines=lines)]
    return draw_panels(panels, 2 * min(columns, number), limits, camera, path)


def segmentations(
    clouds: Clouds,
    objects: Ids,
    slots: Ids,
    masks: Masks = None,
    *,
    limits: Limits = None,
    columns: int = 4,
    up: int = 2,
    view: tuple[Number, Number] = (20, -60),
    path: PathLike = None,
) -> Figure:
    """Pairs of panels: points coloured by the true object they belong to | by the slot that was found for them.

    Slots have no order of their own: each object's colour is given to the slot that shares most points with it, by
    the best assignment of slots to objects, and left-over slots get colours of their own.

    **Arguments:**

    - `clouds`, and `objects`, `slots`: one integer per point, negative where there is none, drawn grey. From weights
      of attention `(n, k)` take `jnp.argmax(weights, axis=1)`.
    - `masks`: which points are valid; others are not drawn.
    - `limits`, `columns`, `up`, `view`: as in `masked_examples`.
    """
    number = len(clouds)
    _check("clouds", number, columns, objects=objects, slots=slots, masks=masks)
    points = [as_points("clouds", c, entry(masks, i)) for i, c in enumerate(clouds)]
    true = [
        drawn("objects", c, entry(masks, i), objects[i]) for i, c in enumerate(clouds)
    ]
    found = [drawn("slots", c, entry(masks, i), slots[i]) for i, c in enumerate(clouds)]
    found = [match_ids(f, t) for f, t in zip(found, true, strict=True)]
    num_colors = 1 + max(
        (int(ids.max()) for ids in (*true, *found) if len(ids)), default=0
    )
    panels = []
    for i in range(number):
        titles = ("objects", "slots") if i < columns else ("", "")
        for ids, title in zip((true[i], found[i]), titles, strict=True):
            panels.append(Panel(points[i], id_colors(ids, num_colors), title))
    return draw_panels(panels, 2 * min(columns, number), limits, Camera(up, view), path)


def match_ids(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The found ids renamed so that they agree with the true ones at as many points as possible."""
    found_names, true_names = np.unique(found[found >= 0]), np.unique(true[true >= 0])
    shared = (found == found_names[:, None])[:, None] & (true == true_names[:, None])[
        None
    ]
    rows, columns = linear_sum_assignment(-shared.sum(-1))
    renamed = dict(
        zip(found_names[rows].tolist(), true_names[columns].tolist(), strict=True)
    )
    unused = iter(
        i for i in range(len(found_names) + len(true_names)) if i not in true_names
    )
    for name in found_names.tolist():
        if name not in renamed:
            renamed[name] = next(unused)
    return np.asarray([renamed.get(i, -1) for i in found.tolist()], int)


def _check(name: str, number: int, columns: int, **values: Any) -> None:
    require(number > 0, f"`{name}` is empty; there is nothing to draw.")
    require(columns > 0, f"`columns` is {columns}; a row needs at least one pair.")
    check_lengths(number, **values)


def _seen_and_hidden(
    names: tuple[str, str], cloud: Any, valid: Any, seen: Any, title: str
) -> Panel:
    points = as_points(names[0], cloud, valid)
    rgb = plain(INK, len(points))
    if seen is not None:
        rgb[~_visible(names[1], cloud, valid, seen)] = plain(colors["output_x_hat"], 1)
    return Panel(points, rgb, title)


def _visible(name: str, cloud: Any, valid: Any, seen: Any) -> np.ndarray:
    seen = np.asarray(seen)
    require(
        seen.shape == (len(cloud),) and seen.dtype == bool,
        f"`{name}` has a mask of shape {seen.shape} and dtype {seen.dtype} for {len(cloud)} points.",
    )
    return drawn(name, cloud, valid, seen)
