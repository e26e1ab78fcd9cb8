"""Data-loading middleware that makes strong data augmentation affordable.

Every R epochs and per class, a small subset is selected whose last-layer gradients represent the
whole training set; only that subset is augmented, in batches on the model's device.
"""

from typing import TYPE_CHECKING, Any

from augsubset.augment import (
    CropFlip,
    KorniaModule,
    Op,
    RandomOps,
    RowKeys,
    SubPolicies,
    check_rows_independent,
)
from augsubset.batch import BatchSpec
from augsubset.loader import LoaderOptions, SubsetAugmentLoader
from augsubset.loss import weighted_loss
from augsubset.probe import GradientProbe
from augsubset.sampling import SubsetAugmentDataset, WeightedCoresetSampler
from augsubset.selection import (
    Certificate,
    CoresetSelector,
    LastLayerGradients,
    MaxLossSelector,
    RandomSelector,
    Selection,
    Selector,
    select_coreset,
)
from augsubset.utils.checkpoint import load_checkpoint, save_checkpoint
from augsubset.utils.checks import AugsubsetError

if TYPE_CHECKING:
    from augsubset.reporting import doctor, report

__version__ = "0.1.0"

__all__ = [
    "AugsubsetError",
    "BatchSpec",
    "Certificate",
    "CoresetSelector",
    "CropFlip",
    "GradientProbe",
    "KorniaModule",
    "LastLayerGradients",
    "LoaderOptions",
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
    "check_rows_independent",
    "doctor",
    "load_checkpoint",
    "report",
    "save_checkpoint",
    "select_coreset",
    "weighted_loss",
]


def __getattr__(name: str) -> Any:
    """Import the reporting functions when they are first used."""
    if name in ("doctor", "report"):
        import augsubset.reporting

        return getattr(augsubset.reporting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
