"""Policies: functions from a batch and its row keys to the augmented batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.augment.checks import (
    AUGMIX,
    RANDOM_OPS,
    check_images,
    clamp_rounding,
    disable_grad_and_autocast,
    get_stream,
    move_masks,
)
from augsubset.augment.draws import (
    DISTINCT,
    DRAWS_PER_SLOT,
    INDEPENDENT,
    SEQUENCE,
    OpDraws,
    build_op_table,
    decode_draws,
)
from augsubset.augment.engine import Engine, EngineName
from augsubset.augment.kernels import warp, warp_reflected
from augsubset.augment.ops import OPS, Op, select_ops
from augsubset.augment.plan import OpTables, plan_ops
from augsubset.augment.random import RowKeys, draw_uniforms
from augsubset.utils.checks import check_choice, check_int, check_number
from augsubset.utils.torch_utils import to_device_async

__all__ = ["PAPER_OPS", "AugMix", "RandomOps", "SubPolicies"]

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

PAPER_OPS = tuple(OPS)[:14]
_NUM_BINS = 31  # magnitude levels in the code of RandAugment and TrivialAugment


class PolicyOptions(TypedDict, total=False):
    """Arguments that every policy passes on to :class:`RandomOps`, where they are explained."""

    stream: int
    every: int
    compiled: bool
    mask_fill: int


class RandomOps:
    """Apply ``num_ops`` random operations to each row, drawn independently for every row.

    A row's result depends on (seed, epoch, index, copy) and its pixels alone: not on the rest of
    the batch, its order or size, on workers or on a resume, for the same device type and torch
    version. No global generator is read. Operations on uint8 return uint8, as in torchvision.

    Args:
        ops: Names from :data:`~augsubset.augment.ops.OPS`, or a mapping of names to
            :class:`~augsubset.augment.ops.Op`.
        num_ops: Operations per row.
        replacement: Whether a row may draw the same operation twice.
        probability: Probability that a drawn operation is applied, independently per slot.
        levels: Levels in [0, 1] to draw from, equally likely; ``None`` draws from all of [0, 1].
        stream: Two policies of one class draw the same numbers for the same rows, unless they have
            different streams. The loader sees to this for its strong and base policies.
        every: Number of epochs for which a row keeps its draws.
        compiled: Compile the kernels with ``torch.compile``; results may differ slightly.
        mask_fill: Value of a mask's pixels from outside the image, such as the class that the
            loss ignores.

    Raises:
        TypeError: If an op is not an ``Op``, or a number has the wrong type.
        ValueError: If an op is unknown, there are fewer than ``num_ops``, or a value is out of
            range. On a call, if the shape or dtype is wrong, floats leave [0, 1] (checked on the
            CPU only; the loader checks before the copy to the GPU), or an op does not support the
            number of channels.

    Shape:
        ``(x (B, C, H, W), rows of B) -> (B, C, H, W)``, same dtype; uint8, or float in [0, 1].
        With masks, integers ``(B, H, W)``, which move with their images and keep their values:
        ``(x, rows, *masks) -> (x, *masks)``.

    Cost:
        O(pixels) per operation. On the CPU about 3 us per row and operation at 32 pixels, in loops
        that are compiled once per machine, within seconds. On an NVIDIA GPU one launch, compiled
        once per machine too; elsewhere, or with operations of your own, about 200 torch calls for
        two of fourteen operations, whatever the batch size. No synchronisation.

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
        mask_fill: int = 0,
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
            self.ops = select_ops(*names)
        if not self.ops:
            raise ValueError("ops must name at least one operation, got none.")
        check_choice("replacement", replacement, (False, True))
        check_choice("compiled", compiled, (False, True))
        self.replacement = replacement
        self.num_ops = check_int("num_ops", num_ops, 1, None if replacement else len(self.ops))
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
        self.stream = get_stream(RANDOM_OPS, stream)
        self.every = check_int("every", every, 1)
        self.mask_fill = check_int("mask_fill", mask_fill, -(1 << 24), 1 << 24)
        self._levels = np.zeros(0, np.float32) if self.levels is None else self.levels
        count = len(self.ops)
        self._mode, self._num_choices = INDEPENDENT if replacement else DISTINCT, count
        self._op_table = build_op_table(self.ops.values(), [probability] * count, [-1.0] * count)
        self.engine = Engine(self.ops, compiled)
        moves = [op.apply in (warp, warp_reflected) for op in self.ops.values()]
        self._moves = np.array([*moves, False])  # the last is that of -1, no operation

    # Published policies.

    @classmethod
    def paper(cls, **options: Unpack[PolicyOptions]) -> RandomOps:
        """Two of fourteen operations at random magnitudes, as in the paper's section 5.

        Operations and ranges are those of AutoAugment and RandAugment (Cubuk et al., 2019, 2020)
        without Cutout and SamplePairing, which needs a second image.
        """
        return cls(**options)

    @classmethod
    def wu2020(cls, **options: Unpack[PolicyOptions]) -> RandomOps:
        """Two of fifteen operations with replacement, each applied with probability one half.

        The paper draws each probability uniformly every time, which amounts to one half. Ranges are
        those of the released code, with translations in pixels for 32-pixel images. Mixup, which
        needs a second image, is left out. Use with ``base=CropFlip(4, padding_mode="reflect")``.

        Reference:
            Wu, Zhang, Valiant & Re, *On the Generalization Effects of Linear Transformations in
            Data Augmentation*, 2020 (arXiv:2005.00695).
        """
        ops = select_ops(
            *("autocontrast", "brightness", "color", "contrast", "cutout", "equalize", "invert"),
            *("rotate", "sharpness", "shear_x", "shear_y", "solarize"),
            *("translate_x_pixels", "translate_y_pixels"),
        )
        # The released code keeps int(4 * level) bits: 0 to 3, equally likely. Rounding a uniform
        # number between -0.5 and 3.5 gives the same.
        ops["posterize"] = replace(OPS["posterize"], low=-0.5, high=3.5, limits=(-0.5, 8.0))
        return cls(ops, 2, replacement=True, probability=0.5, **options)

    @classmethod
    def randaugment(
        cls, magnitude: int = 9, num_ops: int = 2, **options: Unpack[PolicyOptions]
    ) -> RandomOps:
        """Operations drawn with replacement, all at one magnitude from 0 to 30.

        Reference:
            Cubuk, Zoph, Shlens & Le, *RandAugment*, 2020 (arXiv:1909.13719), with the operations
            and ranges of torchvision's ``RandAugment``.
        """
        check_int("magnitude", magnitude, 0, _NUM_BINS - 1)
        names = ["identity", *(name for name in PAPER_OPS if name != "invert")]
        levels = [magnitude / (_NUM_BINS - 1)]
        return cls(names, num_ops, replacement=True, levels=levels, **options)

    @classmethod
    def trivial(cls, **options: Unpack[PolicyOptions]) -> RandomOps:
        """One operation per row, at one of 31 levels of a wide range of magnitudes.

        Reference:
            Mueller & Hutter, *TrivialAugment*, 2021 (arXiv:2103.10158), with the wide space of
            torchvision's ``TrivialAugmentWide``.
        """
        ops = select_ops("identity", "autocontrast", "equalize", "solarize")
        for name in ("brightness", "color", "contrast", "sharpness"):
            ops[name] = OPS[name].between(1, 1.99)
        for name, high in (("shear_x", 0.99), ("shear_y", 0.99), ("rotate", 135.0)):
            ops[name] = OPS[name].between(0, high)
        for name in ("translate_x_pixels", "translate_y_pixels"):
            ops[name] = OPS[name].between(0, 32)
        ops["posterize"] = OPS["posterize"].between(8, 2)
        levels = [bin_ / (_NUM_BINS - 1) for bin_ in range(_NUM_BINS)]
        return cls(ops, 1, levels=levels, **options)

    @staticmethod
    def autoaugment(
        dataset: Literal["cifar10", "imagenet", "svhn"], **options: Unpack[PolicyOptions]
    ) -> SubPolicies:
        """The learned policy for a dataset: one of 25 pairs of operations per row.

        Reference:
            Cubuk, Zoph, Mane, Vasudevan & Le, *AutoAugment*, 2019 (arXiv:1805.09501), tables 7 to
            9, as in torchvision.

        Raises:
            ImportError: If torchvision, whose tables it uses, is not installed.
        """
        check_choice("dataset", dataset, ("cifar10", "imagenet", "svhn"))
        return SubPolicies(_load_autoaugment_table(dataset), **options)

    @staticmethod
    def augmix(severity: int = 3, *, width: int = 3, **options: Unpack[PolicyOptions]) -> AugMix:
        """A random mixture of chains of operations, see :class:`AugMix`."""
        return AugMix(severity, width=width, **options)

    @classmethod
    def cutout(
        cls,
        size: float = 0.5,
        *,
        fill: float | Sequence[float] = 0.5,
        **options: Unpack[PolicyOptions],
    ) -> RandomOps:
        """Erase a square around a random pixel, clipped at the image edges.

        Args:
            size: Side as a fraction of the image's shorter side. DeVries & Taylor use 1/2 on
                CIFAR-10 and 20/32 on SVHN.
            fill: Colour in [0, 1], one value or one per channel. The dataset's mean becomes 0 after
                normalisation.
            options: As in :class:`RandomOps`.

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
        form = colour if len(colour) == 3 else colour * 3
        op = replace(OPS["cutout"], low=size, high=size, form=form)
        return cls({"cutout": op}, 1, **options)

    @classmethod
    def noise(cls, sigma: float = 0.1, **options: Unpack[PolicyOptions]) -> RandomOps:
        """Add normal noise to every value, with a standard deviation in [0, 1]."""
        op = OPS["gaussian_noise"].between(sigma, sigma)
        return cls({"gaussian_noise": op}, 1, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(ops={tuple(self.ops)}, num_ops={self.num_ops})"

    @property
    def engine_name(self) -> EngineName | None:
        """Name of what made the last batch, ``None`` before the first."""
        return self.engine.name

    @property
    def is_geometric(self) -> bool:
        """Whether an operation moves pixels; those of your own are not known."""
        return bool(self._moves.any())

    def __call__(self, x: Tensor, rows: RowKeys, *masks: Tensor) -> Any:
        """Return the augmented batch, and masks moved with their images."""
        check_images(x, rows)
        x = clamp_rounding(x)
        self.check_channels(x)
        if len(x) == 0:
            return (x, *masks) if masks else x
        with disable_grad_and_autocast(x.device):
            images = x if x.dtype == torch.uint8 else x.to(torch.float32)
            moved = move_masks(masks, x, self.mask_fill, lambda mask: self._move(mask, rows))
            out = self._augment(images, rows).to(x.dtype)
        return (out, *moved) if masks else out

    def check_channels(self, x: Tensor) -> None:
        """Raise if an op does not support the number of channels."""
        for name, op in self.ops.items():
            op.check_channels(repr(name), x)

    def _move(self, masks: Tensor, rows: RowKeys) -> Tensor:
        """Return masks after the geometric ones of their rows' operations."""
        own = [name for name, op in self.ops.items() if op.prepare is None]
        if own or isinstance(self, AugMix):
            raise ValueError(
                f"masks must be moved by built-in operations alone, got {own or 'a mixture'}. Pass "
                "a policy (x, rows, masks) -> (x, masks) of your own."
            )
        op, params = self._plan(rows, *masks.shape[-2:])
        return self.engine.run(masks, np.where(self._moves[op], op, -1), params)

    def _augment(self, x: Tensor, rows: RowKeys) -> Tensor:
        return self.engine.run(x, *self._plan(rows, *x.shape[-2:]))

    @property
    def tables(self) -> OpTables | None:
        """What the loops that plan a batch need; ``None`` if they cannot plan this policy's."""
        drawing = self._mode, self._num_choices, self._op_table, self._levels, self.num_ops
        return self.engine.make_tables(self.stream, self.every, *drawing)

    def _plan(self, rows: RowKeys, height: int, width: int) -> tuple[Int64Array, Float32Array]:
        """Return each row's operations ``(B, S)``, and their parameters ``(B, S, P)``."""
        if (tables := self.tables) is not None:
            seed, epoch, index, copy = rows.arrays
            op, params = plan_ops(seed, epoch, index, copy, tables, height, width)
            return op, params
        rows = rows.round_epochs(self.every)
        draws = self._decode(draw_uniforms(rows, self.num_ops * DRAWS_PER_SLOT, self.stream))
        return draws.op, self.engine.compute_params(draws, height, width)

    def _decode(self, draws: Float32Array) -> OpDraws:
        """Return the operations for uniform numbers of any shape with 6 ``num_ops`` per row."""
        draws = draws.reshape(-1, self.num_ops, DRAWS_PER_SLOT)
        return decode_draws(draws, self._mode, self._num_choices, self._op_table, self._levels)


class SubPolicies(RandomOps):
    """Apply one of several sequences of operations to each row, all equally likely.

    Args:
        table: Sequences of equal length. A step is ``(op, probability, level)``, with a name from
            :data:`~augsubset.augment.ops.OPS` or an :class:`~augsubset.augment.ops.Op`.
        options: As in :class:`RandomOps`.

    Raises:
        TypeError: If a step has the wrong type.
        ValueError: If an op is unknown, a probability or level is outside [0, 1], or the lengths
            differ.

    Example:
        >>> two = SubPolicies([[("rotate", 0.5, 1.0)], [("invert", 1.0, 0.0)]])
    """

    def __init__(
        self,
        table: Sequence[Sequence[tuple[str | Op, float, float]]],
        **options: Unpack[PolicyOptions],
    ) -> None:
        table = [list(sequence) for sequence in table]
        lengths = {len(sequence) for sequence in table}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"table must hold sequences of equal length, at least 1, got {sorted(lengths)}."
            )
        ops: dict[str, Op] = {}
        steps = [step for sequence in table for step in sequence]
        for number, step in enumerate(steps):
            if not isinstance(step, (tuple, list)) or len(step) != 3:
                raise TypeError(f"table steps must be (op, probability, level), got {step!r}.")
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
        super().__init__(ops, length, replacement=True, **options)
        self.table = table
        self._mode, self._num_choices = SEQUENCE, len(table)
        _, probabilities, levels = zip(*steps, strict=True)
        self._op_table = build_op_table(self.ops.values(), probabilities, levels)

    def __repr__(self) -> str:
        return f"SubPolicies({len(self.table)} sequences of {self.num_ops})"


class AugMix(RandomOps):
    """Mix each image with the results of several random chains of one to three operations.

    The chains' weights are uniform on the simplex and the original's weight is uniform in [0, 1),
    which is the published alpha of 1. Warps use the nearest pixel, as everywhere in this package.

    Args:
        severity: 1 to 10. Levels are drawn from the lowest ``severity`` of ten.
        width: Number of chains.
        options: As in :class:`RandomOps`.

    Raises:
        ValueError: If a value is out of range.

    Cost:
        That of ``2 * width`` operations per row, and ``width + 1`` passes to mix.

    Reference:
        Hendrycks et al., *AugMix*, 2020 (arXiv:1912.02781), with the operations and ranges of
        torchvision's ``AugMix``. The paper's consistency loss is not included.
    """

    def __init__(
        self, severity: int = 3, *, width: int = 3, **options: Unpack[PolicyOptions]
    ) -> None:
        check_int("severity", severity, 1, 10)
        ops = select_ops(
            *("shear_x", "shear_y", "rotate", "solarize", "autocontrast", "equalize"),
            *("brightness", "color", "contrast", "sharpness"),
        )
        for name in ("translate_x", "translate_y"):
            ops[name] = OPS[name].between(0, 1 / 3)
        ops["posterize"] = OPS["posterize"].between(4, 0)
        levels = [level / 9 for level in range(severity)]
        super().__init__(ops, 3, replacement=True, levels=levels, **options)
        self.stream = get_stream(AUGMIX, options.get("stream", 0))
        self.width = check_int("width", width, 1)

    def _augment(self, x: Tensor, rows: RowKeys) -> Tensor:
        # Per row: the draws of all chains, their depths, their weights, the original's weight.
        per_chain = self.num_ops * DRAWS_PER_SLOT
        rows = rows.round_epochs(self.every)
        draws = draw_uniforms(rows, self.width * (per_chain + 2) + 1, self.stream)
        chains = self._decode(draws[:, : self.width * per_chain])
        depth = draws[:, self.width * per_chain : -self.width - 1].reshape(-1, 1) * self.num_ops
        chains.op[np.arange(self.num_ops) > depth] = -1  # keeps floor(depth) + 1 operations
        chained = self.engine(x.repeat_interleave(self.width, 0), chains)
        # A uniform point on the simplex: exponential numbers divided by their sum. 2**-25, half the
        # resolution of a draw, keeps the logarithm finite.
        share = -np.log(draws[:, -self.width - 1 : -1].astype(np.float64) + 2**-25)
        share /= share.sum(1, keepdims=True)
        original = draws[:, -1:].astype(np.float64)
        weights = np.concatenate([original, (1 - original) * share], 1).astype(np.float32)
        weight = to_device_async(torch.from_numpy(weights), x.device)[:, :, None, None, None]
        mixed = x * weight[:, 0]
        for chain in range(self.width):
            mixed += chained[chain :: self.width] * weight[:, chain + 1]
        return mixed.clamp_(0, 255 if x.dtype == torch.uint8 else 1).to(x.dtype)


def _load_autoaugment_table(dataset: str) -> list[list[tuple[str | Op, float, float]]]:
    """Return torchvision's table as sequences for :class:`SubPolicies`."""
    try:
        import torchvision.transforms as tv  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            "RandomOps.autoaugment needs the tables of torchvision, which is not installed. Run "
            "pip install torchvision."
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
        for sequence in tv.AutoAugment(tv.AutoAugmentPolicy(dataset)).policies
    ]
