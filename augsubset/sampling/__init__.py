"""From a selection to the keys of an epoch, and from keys to items."""

from augsubset.sampling.dataset import KeyedCollate, SubsetAugmentDataset
from augsubset.sampling.keys import PADDING, pack, unpack
from augsubset.sampling.rebuild import loader_options, loader_shuffles
from augsubset.sampling.sampler import WeightedCoresetSampler

__all__ = [
    "PADDING",
    "KeyedCollate",
    "SubsetAugmentDataset",
    "WeightedCoresetSampler",
    "loader_options",
    "loader_shuffles",
    "pack",
    "unpack",
]
