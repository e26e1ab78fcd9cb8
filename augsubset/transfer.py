"""Host tensors to a device, without waiting for what it is doing."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sent"]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor on a device; a copy from pageable memory would wait for the device.

    Cost:
        Into pinned memory first, unless it is there already.
    """
    on_host = values.device.type == "cpu" and values.layout == torch.strided
    if device.type != "cuda" or not on_host:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
