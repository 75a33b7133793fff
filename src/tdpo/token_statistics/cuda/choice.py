"""Whether the kernels run or the room's own walks, and the dtype of what is multiplied. Nothing here imports Triton."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil

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
    return all(tensor.is_cuda for tensor in present) and _triton_works()


@functools.cache
def _triton_works() -> bool:
    """Whether Triton is there, and the C compiler that its launchers need; says what is missing, once."""
    if importlib.util.find_spec("triton") is None:
        missing, remedy = "Triton is not installed", "pip install triton"
    elif not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        missing, remedy = "Triton finds no C compiler", "install gcc, or name a compiler in CC"
    else:
        return True
    logging.getLogger(__name__).warning(
        "%s, so the head runs on the GPU without its kernels, several times slower. Remedy: %s.", missing, remedy
    )
    return False
