"""Data sets and batches of them.

Exact toys, your own points, images and folders of them, images as point clouds, and files
of point clouds.
"""

from flowkit._namespace import public_names as _public_names
from flowkit.data._array_records import array_record_folder as array_record_folder
from flowkit.data._as_images import as_images as as_images
from flowkit.data._augment import Augment as Augment, subsample as subsample
from flowkit.data._batches import batches as batches
from flowkit.data._bucketed import bucketed_batches as bucketed_batches
from flowkit.data._cifar10 import (
    CIFAR10_CLASSES as CIFAR10_CLASSES,
    ColorImages as ColorImages,
    load_cifar10 as load_cifar10,
)
from flowkit.data._cloud_split import (
    cloud_split as cloud_split,
    CloudSplit as CloudSplit,
    DIGIT_POSES as DIGIT_POSES,
    halve as halve,
    MNIST_CLOUDS as MNIST_CLOUDS,
    SCENE_POSES as SCENE_POSES,
)
from flowkit.data._clouds import (
    image_clouds as image_clouds,
    PosedSets as PosedSets,
    Scenes as Scenes,
    scenes as scenes,
)
from flowkit.data._datasaurus import (
    DATASAURUS as DATASAURUS,
    datasaurus as datasaurus,
    load_datasaurus as load_datasaurus,
)
from flowkit.data._dequantize import dequantize as dequantize
from flowkit.data._digits import digits as digits, load_digits as load_digits
from flowkit.data._drawings import concentric as concentric, smiley as smiley
from flowkit.data._gaussians import (
    FullMixture as FullMixture,
    SHIFTED_GAUSSIANS as SHIFTED_GAUSSIANS,
    shifted_gaussians as shifted_gaussians,
    TWO_CENTERS as TWO_CENTERS,
    two_centers as two_centers,
    TWO_GAUSSIANS as TWO_GAUSSIANS,
    two_gaussians as two_gaussians,
)
from flowkit.data._image_folder import (
    image_folder as image_folder,
    load_image_folder as load_image_folder,
    random_flips as random_flips,
)
from flowkit.data._image_split import (
    image_split as image_split,
    ImageSplit as ImageSplit,
    LabeledImages as LabeledImages,
)
from flowkit.data._images import (
    Images as Images,
    images_to_points as images_to_points,
    pixel_normal as pixel_normal,
    wide_normal as wide_normal,
)
from flowkit.data._mnist import load_mnist as load_mnist
from flowkit.data._named import named_sampler as named_sampler
from flowkit.data._npz import load_npz as load_npz, save_npz as save_npz
from flowkit.data._papers import (
    c2ot_eight_gaussians as c2ot_eight_gaussians,
    c2ot_moons as c2ot_moons,
    tong_eight_gaussians as tong_eight_gaussians,
    tong_moons as tong_moons,
    tong_s_curve as tong_s_curve,
    tong_wide_gaussians as tong_wide_gaussians,
    tong_wide_moons as tong_wide_moons,
)
from flowkit.data._pictures import center_crop as center_crop, stretch as stretch
from flowkit.data._pixels import (
    pixel_coords as pixel_coords,
    pixel_mask as pixel_mask,
    sparse_pixels as sparse_pixels,
    SparsePixels as SparsePixels,
)
from flowkit.data._points import (
    fit_unit_box as fit_unit_box,
    load_csv as load_csv,
    resample as resample,
)
from flowkit.data._poses import AboutAxis as AboutAxis, any_rotation as any_rotation
from flowkit.data._registry import toy as toy, TOYS_1D as TOYS_1D, TOYS_2D as TOYS_2D
from flowkit.data._sets import (
    normalize as normalize,
    pad as pad,
    PairedSets as PairedSets,
    PointSets as PointSets,
    Split as Split,
    Units as Units,
)
from flowkit.data._shards import npz_folder as npz_folder, StoredArray as StoredArray
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
    shifted_moons as shifted_moons,
    spiral as spiral,
    three_modes as three_modes,
    three_modes_mixture as three_modes_mixture,
)
from flowkit.data._trex import (
    TREX as TREX,
    trex as trex,
    trex_parametric as trex_parametric,
)
from flowkit.data._two_moons import (
    Simulations as Simulations,
    two_moons as two_moons,
    two_moons_log_posterior as two_moons_log_posterior,
    two_moons_posterior as two_moons_posterior,
    two_moons_simulate as two_moons_simulate,
)


__dir__ = _public_names(globals())
