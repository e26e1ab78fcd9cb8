"""Batched augmentation in which every row draws its own operations, from its own key."""

from augsubset.augment.crop import CropFlip
from augsubset.augment.kornia import KorniaModule, check_rows_independent
from augsubset.augment.ops import OPS, Op
from augsubset.augment.policies import AugMix, RandomOps, SubPolicies
from augsubset.augment.random import RowKeys

__all__ = ["OPS", "AugMix", "CropFlip", "KorniaModule", "Op", "RandomOps", "RowKeys", "SubPolicies"]
__all__ += ["check_rows_independent"]
