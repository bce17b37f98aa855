"""Two panels for every point cloud, side by side."""

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
    Limits,
    Number,
    own_look,
    PathLike,
    require,
)


@own_look()
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
    """Pairs of panels, an input and its sample; 16 pairs make 4 rows.

    **Arguments:**

    - `inputs`, `samples`: equal numbers of clouds. A sample may have another number of
      points than its input.
    - `input_masks`: which points of the inputs the encoder saw; hidden ones are drawn
      black.
    - `masks`: which points of both are valid; others are not drawn. If inputs and
      samples have different numbers of points, pass lists of the valid points as
      `inputs`.
    - `columns`: pairs in a row.
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
        # The first row names the columns of all rows.
        titles = ("input", "sample") if i < columns else ("", "")
        valid = entry(masks, i)
        cloud = as_points("inputs", inputs[i], valid)
        shades = plain(colors["data_x"], len(cloud))
        if input_masks is not None:
            seen = _visible("input_masks", inputs[i], valid, input_masks[i])
            shades = _seen_and_hidden(seen)
        points = as_points("samples", samples[i], valid)
        panels.append(Panel(cloud, shades, titles[0]))
        panels.append(
            Panel(points, plain(colors["output_x_hat"], len(points)), titles[1])
        )

    return draw_panels(panels, 2 * min(columns, number), limits, Camera(up, view), path)


@own_look()
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
    """The points that a mask leaves: pairs of panels, without and with the mask.

    Hidden points are black. The title counts the visible ones.

    **Arguments:**

    - `clouds`: the clouds before the mask.
    - `visible_masks`: which of their points the encoder may see.
    - `masks`: which points are valid; others are neither drawn nor counted.
    - `grid_size`: the number of cells along each axis of a cloud's bounding box, if
      whole cells were hidden. Their borders are dashed; in space only those behind the
      points are drawn.
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

    camera = Camera(up, view)
    panels = []
    for i in range(number):
        valid = entry(masks, i)
        points = as_points("clouds", clouds[i], valid)
        seen = _visible("visible_masks", clouds[i], valid, entry(visible_masks, i))
        title = f"visible: {np.sum(seen)} of {len(points)}"
        lines = None if grid_size is None else cell_borders(points, grid_size, camera)
        panels.append(Panel(points, plain(colors["data_x"], len(points)), "original"))
        panels.append(Panel(points, _seen_and_hidden(seen), title, lines))

    return draw_panels(panels, 2 * min(columns, number), limits, camera, path)


@own_look()
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
    """Pairs of panels: points colored by their true objects, and by the slots found.

    Slots have no natural order. Slots are assigned to objects such that both agree at
    as many points as possible, and each slot gets the color of its object. Slots
    without an object get other colors.

    **Arguments:**

    - `clouds`: the points.
    - `objects`, `slots`: one integer per point. Points with a negative one belong to
      none and are gray. From weights of attention `(n, k)` take `jnp.argmax(weights,
      axis=1)`.
    - `masks`: which points are valid; others are not drawn.
    - `limits`, `columns`, `up`, `view`: as in `masked_examples`.
    """
    number = len(clouds)
    _check("clouds", number, columns, objects=objects, slots=slots, masks=masks)

    points = []
    true = []
    found = []
    for i, cloud in enumerate(clouds):
        valid = entry(masks, i)
        points.append(as_points("clouds", cloud, valid))
        true.append(drawn("objects", cloud, valid, objects[i]))
        ids = drawn("slots", cloud, valid, slots[i])
        found.append(match_ids(ids, true[i]))

    # One palette for all clouds, so that a number has the same color in every panel.
    largest = max((int(ids.max()) for ids in (*true, *found) if len(ids)), default=0)

    panels = []
    for i in range(number):
        titles = ("objects", "slots") if i < columns else ("", "")
        left = id_colors(true[i], largest + 1)
        right = id_colors(found[i], largest + 1)
        panels.append(Panel(points[i], left, titles[0]))
        panels.append(Panel(points[i], right, titles[1]))

    return draw_panels(panels, 2 * min(columns, number), limits, Camera(up, view), path)


def match_ids(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The found ids, renamed so that they agree with the true ones at as many points as
    possible.
    """
    found_names = np.unique(found[found >= 0])
    true_names = np.unique(true[true >= 0])

    # How many points each found id shares with each true one.
    is_found = found == found_names[:, None]
    is_true = true == true_names[:, None]
    shared = np.sum(is_found[:, None] & is_true, axis=-1)
    # The solver minimizes, and the most shared points are wanted.
    rows, columns = linear_sum_assignment(-shared)
    pairs = zip(found_names[rows].tolist(), true_names[columns].tolist(), strict=True)
    renamed = dict(pairs)

    # Slots without an object get the first numbers that no object has.
    candidates = range(len(found_names) + len(true_names))
    unused = (i for i in candidates if i not in true_names)
    for name in found_names.tolist():
        if name not in renamed:
            renamed[name] = next(unused)

    return np.asarray([renamed.get(i, -1) for i in found.tolist()], int)


def _check(name: str, number: int, columns: int, **values: Any) -> None:
    require(number > 0, f"`{name}` is empty; there is nothing to draw.")
    require(columns > 0, f"`columns` is {columns}; a row needs at least one pair.")
    check_lengths(number, **values)


def _seen_and_hidden(seen: np.ndarray) -> np.ndarray:
    """The colors `(n, 3)` of data that an encoder sees only in part."""
    shades = plain(colors["data_x"], len(seen))
    shades[~seen] = plain(colors["hidden_x"], 1)
    return shades


def _visible(name: str, cloud: Any, valid: Any, seen: Any) -> np.ndarray:
    """Which of the points that are drawn the encoder sees."""
    seen = np.asarray(seen)
    require(
        seen.shape == (len(cloud),) and seen.dtype == bool,
        f"`{name}` has a mask of shape {seen.shape} and dtype {seen.dtype} "
        f"for {len(cloud)} points.",
    )
    return drawn(name, cloud, valid, seen)
