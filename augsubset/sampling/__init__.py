"""From a selection to the keys of an epoch, and from keys to batches."""

from augsubset.sampling.keys import PADDING, is_original, pack, unpack
from augsubset.sampling.plan import EpochPlan, Layout, Originals, RowWeights
from augsubset.sampling.rebuild import (
    LoaderOrder,
    Source,
    fresh_iterator,
    read_order,
    shard_loader,
    unpack_batch_sampler,
)
from augsubset.sampling.resident import ResidentRows
from augsubset.sampling.sampler import WeightedCoresetSampler
from augsubset.sampling.worker import (
    KeyedCollate,
    SubsetAugmentDataset,
    TensorBatches,
    is_plain_tensors,
)

__all__ = [
    "PADDING",
    "EpochPlan",
    "KeyedCollate",
    "Layout",
    "LoaderOrder",
    "Originals",
    "ResidentRows",
    "RowWeights",
    "Source",
    "SubsetAugmentDataset",
    "TensorBatches",
    "WeightedCoresetSampler",
    "fresh_iterator",
    "is_original",
    "is_plain_tensors",
    "pack",
    "read_order",
    "shard_loader",
    "unpack",
    "unpack_batch_sampler",
]
