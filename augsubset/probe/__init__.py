"""Model and data in, per-example last-layer gradients out."""

from augsubset.probe.logit_cache import Harvest
from augsubset.probe.probe import GradientProbe

__all__ = ["GradientProbe", "Harvest"]
