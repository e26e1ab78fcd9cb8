"""Which examples to augment: gradients in, a frozen weighted selection out."""

from augsubset.selection.budget import budget_from_fraction, sainte_lague_seats
from augsubset.selection.certificate import Certificate
from augsubset.selection.coreset import select_coreset
from augsubset.selection.distributed import select_coreset_distributed
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
    "MaxLossSelector",
    "RandomSelector",
    "Selection",
    "Selector",
    "budget_from_fraction",
    "sainte_lague_seats",
    "select_coreset",
    "select_coreset_distributed",
]
