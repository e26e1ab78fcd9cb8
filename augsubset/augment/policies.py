"""Policies: a batch and its row keys in, the batch augmented row by row out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.augment.checks import (
    AUGMIX,
    RANDOM_OPS,
    check_images,
    check_unit_range,
    plain_context,
    stream_of,
)
from augsubset.augment.draws import (
    ANEW,
    DISTINCT,
    DRAWS_A_SLOT,
    IN_SEQUENCE,
    Drawn,
    draw_rows,
    odds_of,
)
from augsubset.augment.engine import Engine
from augsubset.augment.ops import OPS, Op, by_name
from augsubset.augment.params import cut
from augsubset.augment.random import RowKeys, uniforms
from augsubset.utils.checks import check_choice, check_int, check_number
from augsubset.utils.torch_utils import sent

__all__ = ["PAPER_OPS", "AugMix", "RandomOps", "SubPolicies"]

Float32Array = npt.NDArray[np.float32]

PAPER_OPS = tuple(OPS)[:14]
_NUM_BINS = 31  # of RandAugment's and TrivialAugment's published code


class RandomOps:
    """Apply ``num_ops`` operations to each row, drawn for it alone, in the order drawn.

    A row's result depends on (seed, epoch, index, copy) and its pixels: not on batch mates, order,
    batch size, workers or resume, on the same device type and torch version. No global generator
    is read. An operation on uint8 returns uint8, as torchvision's do.

    Args:
        ops: Names of :data:`~augsubset.augment.ops.OPS`, or a mapping of names to
            :class:`~augsubset.augment.ops.Op`, your own or changed ones.
        num_ops: Operations a row.
        replacement: Whether a row may get an operation twice.
        probability: That an operation is applied; for each slot by itself.
        levels: Levels in [0, 1] that magnitudes are drawn from, all equally likely; ``None``: any
            level, uniformly.
        stream: Two policies of one class that see the same rows draw the same numbers; give one
            of them another stream. The loader does so for its strong and base policy.
        every: Epochs for which a row keeps what it drew, as a frozen base policy does.
        compiled: Compile the kernels with ``torch.compile``; bits may differ from eager ones.

    Raises:
        TypeError: If an op is none, or a number is of the wrong kind.
        ValueError: If an op is unknown, there are fewer than ``num_ops``, or a value is out of
            range; when called, if images are none, hold floats outside [0, 1] (on the CPU; the
            loader looks before it sends them), or have a number of channels that an op refuses.

    Shape:
        ``(x (B, C, H, W), rows of B) -> (B, C, H, W)``, same dtype; uint8, or float in [0, 1].

    Cost:
        O(pixels of the rows given) an operation. On the host compiled loops take row by row, some
        3 us each at 32 pixels; they are compiled once a machine, for some seconds. On a device rows
        of one kernel go together: some 200 calls of torch for two of fourteen operations, however
        many rows. Rows are drawn on the host, and nothing is read back from the device.

    Example:
        >>> spin = RandomOps({"spin": OPS["rotate"].between(0, 180)}, num_ops=1)
    """

    def __init__(
        self,
        ops: Sequence[str] | Mapping[str, Op] = PAPER_OPS,
        num_ops: int = 2,
        *,
        replacement: bool = False,
        probability: float = 1.0,
        levels: Sequence[float] | None = None,
        stream: int = 0,
        every: int = 1,
        compiled: bool = False,
    ) -> None:
        if isinstance(ops, Mapping):
            self.ops = dict(ops)
            for name, op in self.ops.items():
                if not isinstance(op, Op):
                    raise TypeError(f"ops must map names to Op, got {name!r}: {op!r}.")
        else:
            if isinstance(ops, str):
                raise TypeError(f"ops must be a list of names, got the name {ops!r}.")
            names = list(ops)
            for name in names:
                check_choice("ops", name, tuple(OPS))
            self.ops = by_name(*names)
        if not self.ops:
            raise ValueError("ops must name at least one operation, got none.")
        check_choice("replacement", replacement, (False, True))
        check_choice("compiled", compiled, (False, True))
        self.replacement = replacement
        most = None if replacement else len(self.ops)
        self.num_ops = check_int("num_ops", num_ops, 1, most)
        check_number("probability", probability)
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got probability={probability}.")
        self.probability = probability
        for level in levels if isinstance(levels, (Sequence, np.ndarray)) else ():
            check_number("levels", level)
        self.levels = None if levels is None else np.array(levels, np.float32)
        if self.levels is not None and not (
            self.levels.ndim == 1
            and len(self.levels)
            and ((self.levels >= 0) & (self.levels <= 1)).all()
        ):
            raise ValueError(f"levels must be a list of numbers in [0, 1], got levels={levels}.")
        self.stream = stream_of(RANDOM_OPS, stream)
        self.every = check_int("every", every, 1)
        every_op = list(self.ops.values())
        self._picky = {name: op for name, op in self.ops.items() if op.channels}
        self._levels = np.zeros(0, np.float32) if self.levels is None else self.levels
        count = len(every_op)
        self._way, self._num_choices = ANEW if replacement else DISTINCT, count
        self._odds = odds_of(every_op, [float(probability)] * count, [-1.0] * count)
        self._engine = Engine(self.ops, compiled)

    # Published policies.

    @classmethod
    def paper(cls, *, stream: int = 0, every: int = 1, compiled: bool = False) -> RandomOps:
        """Return two of fourteen operations at random magnitudes, as the paper's section 5 says.

        The operations and ranges are those of AutoAugment and RandAugment (Cubuk et al., 2019,
        2020); SamplePairing, which looks at another row, and Cutout are left out.
        """
        return cls(stream=stream, every=every, compiled=compiled)

    @classmethod
    def wu2020(cls, *, stream: int = 0, every: int = 1, compiled: bool = False) -> RandomOps:
        """Return two of fifteen operations with replacement, each with a random probability.

        A probability that is itself uniform and drawn anew each time is one half. The ranges are
        those of the released code, translations in pixels of a 32 pixel image; Mixup, which looks
        at another row, is left out. Combine with ``base=CropFlip(4, padding_mode="reflect")``.

        Reference:
            Wu, Zhang, Valiant & Re, *On the Generalization Effects of Linear Transformations in
            Data Augmentation*, 2020 (arXiv:2005.00695).
        """
        ops = by_name(
            *("autocontrast", "brightness", "color", "contrast", "cutout", "equalize", "invert"),
            *("rotate", "sharpness", "shear_x", "shear_y", "solarize"),
            *("translate_x_pixels", "translate_y_pixels"),
        )
        # Released: int(4 level), so 0 to 3 bits; rounding gives the same from half a bit below.
        ops["posterize"] = replace(OPS["posterize"], low=-0.5, high=3.5, limits=(-0.5, 8.0))
        return cls(
            ops, 2, replacement=True, probability=0.5, stream=stream, every=every, compiled=compiled
        )

    @classmethod
    def randaugment(
        cls,
        magnitude: int = 9,
        num_ops: int = 2,
        *,
        stream: int = 0,
        every: int = 1,
        compiled: bool = False,
    ) -> RandomOps:
        """Return operations drawn with replacement, all at one magnitude of 0 to 30.

        Reference:
            Cubuk, Zoph, Shlens & Le, *RandAugment*, 2020 (arXiv:1909.13719), with the operations
            and ranges of torchvision's ``RandAugment``.
        """
        check_int("magnitude", magnitude, 0, _NUM_BINS - 1)
        names = [name for name in PAPER_OPS if name != "invert"]
        return cls(
            ["identity", *names],
            num_ops,
            replacement=True,
            levels=[magnitude / (_NUM_BINS - 1)],
            stream=stream,
            every=every,
            compiled=compiled,
        )

    @classmethod
    def trivial(cls, *, stream: int = 0, every: int = 1, compiled: bool = False) -> RandomOps:
        """Return one operation a row, at one of 31 magnitudes of a wide range.

        Reference:
            Mueller & Hutter, *TrivialAugment*, 2021 (arXiv:2103.10158), with the wide space of
            torchvision's ``TrivialAugmentWide``.
        """
        ops = by_name("identity", "autocontrast", "equalize", "solarize")
        for name in ("brightness", "color", "contrast", "sharpness"):
            ops[name] = OPS[name].between(1, 1.99)
        for name, high in (("shear_x", 0.99), ("shear_y", 0.99), ("rotate", 135.0)):
            ops[name] = OPS[name].between(0, high)
        for name in ("translate_x_pixels", "translate_y_pixels"):
            ops[name] = OPS[name].between(0, 32)
        ops["posterize"] = OPS["posterize"].between(8, 2)
        levels = [bin_ / (_NUM_BINS - 1) for bin_ in range(_NUM_BINS)]
        return cls(ops, 1, levels=levels, stream=stream, every=every, compiled=compiled)

    @staticmethod
    def autoaugment(
        dataset: Literal["cifar10", "imagenet", "svhn"],
        *,
        stream: int = 0,
        every: int = 1,
        compiled: bool = False,
    ) -> SubPolicies:
        """Return the learned policy for a dataset: one of 25 pairs of operations a row.

        Reference:
            Cubuk, Zoph, Mane, Vasudevan & Le, *AutoAugment*, 2019 (arXiv:1805.09501), tables 7 to
            9, as torchvision carries them.

        Raises:
            ImportError: If torchvision, which has the tables, is not installed.
        """
        check_choice("dataset", dataset, ("cifar10", "imagenet", "svhn"))
        return SubPolicies(
            _autoaugment_table(dataset), stream=stream, every=every, compiled=compiled
        )

    @staticmethod
    def augmix(
        severity: int = 3,
        *,
        width: int = 3,
        stream: int = 0,
        every: int = 1,
        compiled: bool = False,
    ) -> AugMix:
        """Return a mixture of chains of operations: see :class:`AugMix`."""
        return AugMix(severity, width=width, stream=stream, every=every, compiled=compiled)

    @classmethod
    def cutout(
        cls,
        size: float = 0.5,
        *,
        fill: float | Sequence[float] = 0.5,
        stream: int = 0,
        every: int = 1,
    ) -> RandomOps:
        """Return a square erased around a random pixel, cut off at the edges.

        Args:
            size: Side, as a share of the shorter side of the image; DeVries & Taylor take half of
                it on CIFAR-10 and 20 of 32 pixels on SVHN.
            fill: Colour in [0, 1], one value or one a channel; the dataset's mean is what is
                black once normalised.
            stream: As in :class:`RandomOps`.
            every: As in :class:`RandomOps`.

        Reference:
            DeVries & Taylor, *Improved Regularization of Convolutional Neural Networks with
            Cutout*, 2017 (arXiv:1708.04552).
        """
        values = list(np.atleast_1d(np.asarray(fill)))
        for value in values:
            check_number("fill", value)
        colour = tuple(float(value) for value in values)
        if len(colour) not in (1, 3) or not all(0 <= value <= 1 for value in colour):
            raise ValueError(f"fill must be one or three values in [0, 1], got fill={fill}.")
        op = replace(OPS["cutout"], low=size, high=size, prepare=partial(cut, colour=colour))
        return cls({"cutout": op}, 1, stream=stream, every=every)

    @classmethod
    def noise(cls, sigma: float = 0.1, *, stream: int = 0, every: int = 1) -> RandomOps:
        """Return normal noise of a standard deviation in [0, 1] on every value."""
        return cls(
            {"gaussian_noise": OPS["gaussian_noise"].between(sigma, sigma)},
            1,
            stream=stream,
            every=every,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(ops={tuple(self.ops)}, num_ops={self.num_ops})"

    def __call__(self, x: Tensor, rows: RowKeys) -> Tensor:
        """Return the batch with every row augmented."""
        check_images(x, rows)
        check_unit_range(x)
        for name, op in self._picky.items():
            op.check_channels(repr(name), x)
        if len(x) == 0:
            return x
        with plain_context(x.device):
            images = x if x.dtype == torch.uint8 else x.to(torch.float32)
            return self._augmented(images, rows.held(self.every)).to(x.dtype)

    def _augmented(self, x: Tensor, rows: RowKeys) -> Tensor:
        draws = uniforms(rows, self.num_ops * DRAWS_A_SLOT, self.stream)
        return self._engine(x, self.drawn(draws.reshape(len(rows), self.num_ops, DRAWS_A_SLOT)))

    def drawn(self, draws: Float32Array) -> Drawn:
        """Turn uniform numbers into operations and magnitudes.

        Args:
            draws: ``(B, num_ops, 6)``
        """
        return draw_rows(draws, self._way, self._num_choices, self._odds, self._levels)


class SubPolicies(RandomOps):
    """Apply one of several sequences of operations to each row, all equally likely.

    Args:
        table: Sequences, of one length: ``(op, probability, level)`` each, where an op is a name
            of :data:`~augsubset.augment.ops.OPS` or an :class:`~augsubset.augment.ops.Op`.
        stream: As in :class:`RandomOps`.
        every: As in :class:`RandomOps`.
        compiled: As in :class:`RandomOps`.

    Raises:
        TypeError: If an op is of the wrong kind.
        ValueError: If an op is unknown, a probability or level is outside [0, 1], or the lengths
            differ.

    Example:
        >>> two = SubPolicies([[("rotate", 0.5, 1.0)], [("invert", 1.0, 0.0)]])
    """

    def __init__(
        self,
        table: Sequence[Sequence[tuple[str | Op, float, float]]],
        *,
        stream: int = 0,
        every: int = 1,
        compiled: bool = False,
    ) -> None:
        table = [list(sequence) for sequence in table]
        lengths = {len(sequence) for sequence in table}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"table must hold sequences of one length, got {sorted(lengths)}.")
        ops: dict[str, Op] = {}
        steps = [step for sequence in table for step in sequence]
        for number, step in enumerate(steps):
            if not isinstance(step, (tuple, list)) or len(step) != 3:
                raise TypeError(f"a step must be (op, probability, level), got {step!r}.")
            op, probability, level = step
            check_number("probability", probability)
            check_number("level", level)
            if not 0 <= probability <= 1 or not 0 <= level <= 1:
                raise ValueError(
                    f"probabilities and levels must be in [0, 1], got {(op, probability, level)}."
                )
            if not isinstance(op, Op):
                check_choice("ops", op, tuple(OPS))
            name = op if isinstance(op, str) else "op"
            ops[f"{name} {number}"] = OPS[op] if isinstance(op, str) else op
        (length,) = lengths
        super().__init__(
            ops, length, replacement=True, stream=stream, every=every, compiled=compiled
        )
        self.table = table
        every_op = list(self.ops.values())
        self._way, self._num_choices = IN_SEQUENCE, len(table)
        self._odds = odds_of(every_op, [p for _, p, _ in steps], [level for *_, level in steps])

    def __repr__(self) -> str:
        return f"SubPolicies({len(self.table)} sequences of {self.num_ops})"


class AugMix(RandomOps):
    """Mix each row with some chains of one to three operations on it.

    Weights of the chains are uniform on the simplex, that of the original uniform in [0, 1): the
    published alpha of 1. Warps take the nearest pixel, as everywhere here.

    Args:
        severity: 1 to 10: magnitudes are uniform among the lowest so many of ten.
        width: Chains.
        stream: As in :class:`RandomOps`.
        every: As in :class:`RandomOps`.
        compiled: As in :class:`RandomOps`.

    Raises:
        ValueError: If a value is out of range.

    Cost:
        That of ``2 width`` operations a row, and ``width + 1`` passes to mix.

    Reference:
        Hendrycks et al., *AugMix*, 2020 (arXiv:1912.02781), with the operations and ranges of
        torchvision's ``AugMix``. The consistency loss of the paper is yours to add.
    """

    def __init__(
        self,
        severity: int = 3,
        *,
        width: int = 3,
        stream: int = 0,
        every: int = 1,
        compiled: bool = False,
    ) -> None:
        check_int("severity", severity, 1, 10)
        ops = by_name(
            *("shear_x", "shear_y", "rotate", "solarize", "autocontrast", "equalize"),
            *("brightness", "color", "contrast", "sharpness"),
        )
        for name in ("translate_x", "translate_y"):
            ops[name] = OPS[name].between(0, 1 / 3)
        ops["posterize"] = OPS["posterize"].between(4, 0)
        levels = [level / 9 for level in range(severity)]
        super().__init__(
            ops, 3, replacement=True, levels=levels, stream=stream, every=every, compiled=compiled
        )
        self.stream = stream_of(AUGMIX, stream)
        self.width = check_int("width", width, 1)

    def _augmented(self, x: Tensor, rows: RowKeys) -> Tensor:
        num_rows, per_chain = len(x), self.num_ops * DRAWS_A_SLOT
        draws = uniforms(rows, self.width * (per_chain + 2) + 1, self.stream)
        chains = draws[:, : self.width * per_chain]
        drawn = self.drawn(chains.reshape(num_rows * self.width, self.num_ops, DRAWS_A_SLOT))
        depth = draws[:, self.width * per_chain : -self.width - 1].reshape(-1, 1) * self.num_ops
        drawn.op[np.arange(self.num_ops) > depth] = -1
        chained = self._engine(x.repeat_interleave(self.width, 0), drawn)
        # A uniform point of the simplex: exponential numbers by their sum.
        share = -np.log(draws[:, -self.width - 1 : -1].astype(np.float64) + 2**-25)
        share /= share.sum(1, keepdims=True)
        original = draws[:, -1:].astype(np.float64)
        weights = np.concatenate([original, (1 - original) * share], 1).astype(np.float32)
        weight = sent(torch.from_numpy(weights), x.device)[:, :, None, None, None]
        mixed = x * weight[:, 0]
        for chain in range(self.width):
            mixed += chained[chain :: self.width] * weight[:, chain + 1]
        return mixed.clamp_(0, 255 if x.dtype == torch.uint8 else 1).to(x.dtype)


def _autoaugment_table(dataset: str) -> list[list[tuple[str | Op, float, float]]]:
    """Return torchvision's table with our operations: (op, probability, level of ten)."""
    try:
        from torchvision.transforms import (  # type: ignore[import-untyped]
            AutoAugment,
            AutoAugmentPolicy,
        )
    except ImportError as error:
        raise ImportError(
            "RandomOps.autoaugment takes its tables from torchvision, which is not installed: "
            'pip install "augsubset[augment]".'
        ) from error
    names = {
        **{"ShearX": "shear_x", "ShearY": "shear_y", "Rotate": "rotate", "Color": "color"},
        **{"TranslateX": "translate_x", "TranslateY": "translate_y", "Invert": "invert"},
        **{"Brightness": "brightness", "Contrast": "contrast", "Sharpness": "sharpness"},
        **{"Posterize": "posterize", "Solarize": "solarize", "AutoContrast": "autocontrast"},
        "Equalize": "equalize",
    }
    return [
        [(names[name], p, 0.0 if bin_ is None else bin_ / 9) for name, p, bin_ in sequence]
        for sequence in AutoAugment(AutoAugmentPolicy(dataset)).policies
    ]
