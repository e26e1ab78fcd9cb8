"""Data-loading middleware that makes strong data augmentation affordable.

Every R epochs and per class, a small weighted subset is chosen whose last-layer gradients stand
for the whole set; only that subset is augmented, in batches on the model's device.
"""

from augsubset.augment import (
    CropFlip,
    KorniaModule,
    Op,
    RandomOps,
    RowKeys,
    SubPolicies,
)
from augsubset.loader import SubsetAugmentLoader
from augsubset.loss import weighted_loss
from augsubset.probe.probe import GradientProbe
from augsubset.sampling import SubsetAugmentDataset, WeightedCoresetSampler
from augsubset.selection import (
    AllSelector,
    Certificate,
    CoresetSelector,
    MaxLossSelector,
    RandomSelector,
    Selection,
    Selector,
    select_coreset,
)
from augsubset.selection.gradients import LastLayerGradients
from augsubset.utils.checkpoint import load_checkpoint, save_checkpoint
from augsubset.utils.checks import AugsubsetError

__version__ = "0.1.0"

__all__ = [
    "AllSelector",
    "AugsubsetError",
    "Certificate",
    "CoresetSelector",
    "CropFlip",
    "GradientProbe",
    "KorniaModule",
    "LastLayerGradients",
    "MaxLossSelector",
    "Op",
    "RandomOps",
    "RandomSelector",
    "RowKeys",
    "Selection",
    "Selector",
    "SubPolicies",
    "SubsetAugmentDataset",
    "SubsetAugmentLoader",
    "WeightedCoresetSampler",
    "load_checkpoint",
    "save_checkpoint",
    "select_coreset",
    "weighted_loss",
]
