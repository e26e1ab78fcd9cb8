"""Choosing the examples to augment: from gradients to a weighted, immutable selection."""

from augsubset.selection.budget import budget_from_fraction, sainte_lague_order
from augsubset.selection.certificate import Certificate
from augsubset.selection.coreset import select_coreset
from augsubset.selection.distributed import select_coreset_distributed
from augsubset.selection.gradients import LastLayerGradients
from augsubset.selection.result import Selection
from augsubset.selection.selectors import (
    CoresetSelector,
    MaxLossSelector,
    RandomSelector,
    Selector,
)

__all__ = [
    "Certificate",
    "CoresetSelector",
    "LastLayerGradients",
    "MaxLossSelector",
    "RandomSelector",
    "Selection",
    "Selector",
    "budget_from_fraction",
    "sainte_lague_order",
    "select_coreset",
    "select_coreset_distributed",
]
