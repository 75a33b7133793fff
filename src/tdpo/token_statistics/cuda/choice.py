"""Whether the kernels run or the room's own walks, and the dtype of what is multiplied. Nothing here imports Triton."""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch
from torch import Tensor

# Tests set this: the kernels run on a CPU's tensors in Triton's interpreter.
in_interpreter = False


def operand_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which hidden states and head are multiplied: what a `Linear` would multiply, also under autocast."""
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return torch.promote_types(hidden.dtype, weight.dtype)


def kernels_apply(*tensors: Tensor | None) -> bool:
    """Whether the kernels take these tensors: on a GPU with Triton, and none of them in float64."""
    present = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.dtype == torch.float64 for tensor in present):
        return False
    if in_interpreter:
        return True
    return all(tensor.is_cuda for tensor in present) and _has_triton()


@functools.cache
def _has_triton() -> bool:
    if importlib.util.find_spec("triton") is not None:
        return True
    logging.getLogger(__name__).warning(
        "Triton is not installed, so the head runs on the GPU without its kernels, several times slower."
        " Install it with: pip install triton"
    )
    return False
