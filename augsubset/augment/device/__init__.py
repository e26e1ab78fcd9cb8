"""A whole batch's augmentation in one launch on an NVIDIA GPU."""

from augsubset.augment.device.launch import augment_rows, find_obstacle

__all__ = ["augment_rows", "find_obstacle"]
