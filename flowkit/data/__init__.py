"""Data sets: exact toys, images as point clouds, files of point clouds, and batches of them."""

from flowkit.data._augment import Augment as Augment, subsample as subsample
from flowkit.data._batches import batches as batches
from flowkit.data._clouds import (
    image_clouds as image_clouds,
    PosedSets as PosedSets,
    Scenes as Scenes,
    scenes as scenes,
)
from flowkit.data._digits import digits as digits, load_digits as load_digits
from flowkit.data._images import (
    Images as Images,
    images_to_points as images_to_points,
    pixel_normal as pixel_normal,
    wide_normal as wide_normal,
)
from flowkit.data._mnist import load_mnist as load_mnist
from flowkit.data._npz import load_npz as load_npz, save_npz as save_npz
from flowkit.data._poses import AboutAxis as AboutAxis, any_rotation as any_rotation
from flowkit.data._sets import (
    normalize as normalize,
    pad as pad,
    PairedSets as PairedSets,
    PointSets as PointSets,
    Split as Split,
    Units as Units,
)
from flowkit.data._split import train_test_split as train_test_split
from flowkit.data._toys import (
    checkerboard as checkerboard,
    circles as circles,
    eight_gaussians as eight_gaussians,
    eight_gaussians_mixture as eight_gaussians_mixture,
    Mixture as Mixture,
    MIXTURE_1D as MIXTURE_1D,
    mixture_1d as mixture_1d,
    moons as moons,
    pinwheel as pinwheel,
    s_curve as s_curve,
    spiral as spiral,
)
