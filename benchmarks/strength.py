"""RandAugment whose strength each row has of its own: by what the network makes of it, or by time.

The strengths of an epoch are fixed when it begins, from what training passes showed before.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from augsubset import RandomOps, RowKeys
from augsubset.augment.draws import DRAWS_PER_SLOT
from augsubset.augment.policies import PAPER_OPS
from augsubset.augment.random import draw_uniforms
from augsubset.utils.checks import check_choice, check_int

__all__ = ["Strength"]

_LARGEST = 30.0  # RandAugment's magnitudes: 0 to 30
_LEVEL = 2  # which of a slot's uniform numbers is the level

By = Literal["probability", "entropy", "cosine", "time"]


class Strength(RandomOps):
    """RandAugment at a magnitude of ``scale`` times a confidence in [0, 1].

    An example that no pass has shown yet has confidence 0.

    Args:
        by: What a confidence is. ``"probability"``: that of the label. ``"entropy"``: 1 minus the
            entropy over its largest value, as in EntAugment (arXiv:2409.06290). ``"cosine"``:
            between the probabilities and the label's unit vector, as in SRA (arXiv:2508.08004).
            ``"time"``: the share of the training that is over, for every example.
        scale: Magnitude at confidence 1; 30 is RandAugment's largest.
        num_ops: Operations a row.
        memory: Weight of what was known before when a pass shows an example again.
    """

    def __init__(self, by: By, scale: float = 18.0, num_ops: int = 2, memory: float = 0.8) -> None:
        check_choice("by", by, ("probability", "entropy", "cosine", "time"))
        if not 0 < scale <= _LARGEST or not 0 <= memory < 1:
            raise ValueError(
                f"scale must be in (0, 30] and memory in [0, 1), got scale={scale}, "
                f"memory={memory}."
            )
        names = ["identity", *(name for name in PAPER_OPS if name != "invert")]
        super().__init__(names, check_int("num_ops", num_ops, 1), replacement=True)
        self._by, self._scale, self._memory = by, scale, memory
        self._table = self._next = np.zeros(0, np.float32)
        self._is_known = np.zeros(0, bool)

    def start_epoch(self, num_examples: int, share: float) -> None:
        """Fix the strengths of the epoch to come.

        Args:
            num_examples: Of the training set.
            share: Of the training that is over.
        """
        if not len(self._next):
            self._next = np.zeros(num_examples, np.float32)
            self._is_known = np.zeros(num_examples, bool)
        if self._by == "time":
            self._next[:] = share
        self._table = self._next.copy()

    def observe(self, index: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Remember what a training pass made of some rows.

        Shape:
            index ``(B,)``, logits ``(B, C)``, labels ``(B,)``.
        """
        if self._by == "time":
            return
        seen = self._confidence(logits.detach().float(), labels).cpu().numpy()
        at = index.cpu().numpy()
        before = np.where(self._is_known[at], self._next[at], seen)
        self._next[at] = self._memory * before + (1 - self._memory) * seen
        self._is_known[at] = True

    def _confidence(self, logits: Tensor, labels: Tensor) -> Tensor:
        p = F.softmax(logits, 1)
        if self._by == "entropy":
            largest = np.log(logits.shape[1])
            return 1 + (p * F.log_softmax(logits, 1)).sum(1) / largest
        own = p.gather(1, labels[:, None])[:, 0]
        return own if self._by == "probability" else own / p.norm(dim=1)

    def levels_of(self, rows: RowKeys) -> np.ndarray:
        """Return the level of each row, in [0, 1); 0 before the first epoch."""
        if not len(self._table):
            return np.zeros(len(rows), np.float32)
        confidence = self._table[rows.index.numpy()].clip(0, 1)
        # Below 1, as all draws are.
        return np.minimum(confidence * np.float32(self._scale / _LARGEST), np.float32(1 - 2**-24))

    def _augment(self, x: Tensor, rows: RowKeys) -> Tensor:
        draws = draw_uniforms(rows, self.num_ops * DRAWS_PER_SLOT, self.stream)
        draws.reshape(len(rows), self.num_ops, DRAWS_PER_SLOT)[:, :, _LEVEL] = self.levels_of(rows)[
            :, None
        ]
        out: Tensor = self.engine(x, self._decode(draws))
        return out
