"""A stand-in for an accelerator: tensors that mix with CPU tensors as little as CUDA's do."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")  # the one kind of device that a build without any accelerator accepts


PRODUCTS = {
    torch.ops.aten.div.Tensor: torch.ops.aten.mul.Tensor,
    torch.ops.aten.div_.Tensor: torch.ops.aten.mul_.Tensor,
}


class OnDevice(Tensor):
    """A tensor that claims to be on the device, and holds its values on the CPU."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    def data_ptr(self) -> int:
        """Return where the values are."""
        return self.inner.data_ptr()

    def untyped_storage(self) -> Any:
        """Return that of the values."""
        return self.inner.untyped_storage()

    def set_(self, *source: Any) -> "OnDevice":
        """Return a tensor of this dtype on a storage; this one cannot change its own shape."""
        return OnDevice(self.inner.set_(*source))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class StandInDevice(TorchDispatchMode):
    """Where this is entered, ``.to(DEVICE)`` and ``device=DEVICE`` give such tensors.

    Args:
        inverts: Whether it divides by numbers as CUDA does, which multiplies by the reciprocal: the
            last bit may differ.
    """

    def __init__(self, inverts: bool = False) -> None:
        super().__init__()
        self._inverts = inverts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind not in (OnDevice, Tensor) for kind in types):
            return NotImplemented  # a tensor that knows how to make itself one of these
        if self._inverts and func in PRODUCTS and isinstance(args[0], OnDevice):
            x, divisor = args
            if not isinstance(divisor, OnDevice):
                one = torch.ones((), dtype=x.dtype if x.is_floating_point() else torch.float32)
                return compute(PRODUCTS[func], (x, float(one / divisor)), kwargs or {})
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, or raise as CUDA does where devices are mixed."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    is_on_device = any(isinstance(tensor, OnDevice) for tensor in tensors)
    # CUDA takes indices and scalars from the CPU.
    may_mix = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.copy_)
    on_cpu = [t for t in tensors if not isinstance(t, OnDevice) and t.dim()]
    if is_on_device and on_cpu and not may_mix:
        raise RuntimeError(f"Expected all tensors to be on the same device, in {func}")
    target = kwargs.get("device")
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        is_on_device = target.type == DEVICE.type
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, OnDevice) else x, (args, kwargs))
    result = func(*args, **kwargs)
    if func.overloadpacket is torch.ops.aten.copy_:
        return result if not is_on_device else tensors[0]
    return tree_map(lambda x: OnDevice(x) if is_on_device and isinstance(x, Tensor) else x, result)
