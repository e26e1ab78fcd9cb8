"""From a selection to the keys of an epoch, and from keys to items."""

from augsubset.sampling.dataset import KeyedCollate, SubsetAugmentDataset
from augsubset.sampling.keys import PADDING, pack, unpack
from augsubset.sampling.order import EpochPlan, Layout, Mode, Raw
from augsubset.sampling.rebuild import LoaderOrder, loader_options, loader_order
from augsubset.sampling.resident import ResidentDataset, as_fetched
from augsubset.sampling.sampler import WeightedCoresetSampler

__all__ = [
    "PADDING",
    "EpochPlan",
    "KeyedCollate",
    "Layout",
    "LoaderOrder",
    "Mode",
    "Raw",
    "ResidentDataset",
    "SubsetAugmentDataset",
    "WeightedCoresetSampler",
    "as_fetched",
    "loader_options",
    "loader_order",
    "pack",
    "unpack",
]
