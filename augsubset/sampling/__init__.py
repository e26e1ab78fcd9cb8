"""From a selection to the keys of an epoch, and from keys to items."""

from augsubset.sampling.dataset import KeyedCollate, SubsetAugmentDataset
from augsubset.sampling.keys import PADDING, pack, unpack
from augsubset.sampling.plan import EpochPlan, Layout, Mode, Raw
from augsubset.sampling.rebuild import LoaderOrder, loader_options, loader_order, sharded
from augsubset.sampling.sampler import WeightedCoresetSampler
from augsubset.sampling.tensors import TensorBatches, as_fetched, is_tensors

__all__ = [
    "PADDING",
    "EpochPlan",
    "KeyedCollate",
    "Layout",
    "LoaderOrder",
    "Mode",
    "Raw",
    "SubsetAugmentDataset",
    "TensorBatches",
    "WeightedCoresetSampler",
    "as_fetched",
    "is_tensors",
    "loader_options",
    "loader_order",
    "pack",
    "sharded",
    "unpack",
]
