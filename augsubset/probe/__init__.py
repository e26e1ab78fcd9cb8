"""Per-example last-layer gradients of a model on a dataset."""

from augsubset.probe.eval_mode import evaluation_mode
from augsubset.probe.logit_cache import LogitCache, assign_to_rank
from augsubset.probe.probe import GradientProbe

__all__ = ["GradientProbe", "LogitCache", "assign_to_rank", "evaluation_mode"]
