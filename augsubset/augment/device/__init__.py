"""A whole batch's augmentation in one launch on an NVIDIA GPU."""

from augsubset.augment.device.launch import (
    OUT_TYPES,
    augment_rows,
    deliver_rows,
    find_obstacle,
)

__all__ = ["OUT_TYPES", "augment_rows", "deliver_rows", "find_obstacle"]
