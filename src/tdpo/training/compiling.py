"""What torch.compile says in its own log alone, told to the user."""

from __future__ import annotations

import logging
import sys
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger(__name__)

# How torch's counters name a function that was not compiled once more (torch/_dynamo/convert_frame.py).
LIMIT_REACHED = "Dynamo recompile limit exceeded"


class RecompileWatch(TrainerCallback):
    """Warns once where torch has stopped compiling a function anew for further shapes, and runs it uncompiled."""

    def __init__(self) -> None:
        self._before = limits_reached()
        self._has_warned = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._has_warned or limits_reached() == self._before:
            return
        self._has_warned = True
        limit = sys.modules["torch._dynamo.config"].recompile_limit
        logger.warning(
            "torch has compiled a function in %d forms, its limit, and runs what comes in others uncompiled: slower, "
            "with the same result. TORCH_LOGS=recompiles shows why it compiles; torch._dynamo.config.recompile_limit "
            "raises the limit.",
            limit,
        )


def limits_reached() -> int:
    """How often this process has reached the limit; 0 where nothing was compiled, which loads no compiler."""
    loaded = sys.modules.get("torch._dynamo.utils")
    if loaded is None:
        return 0
    return sum(count for reason, count in loaded.counters["unimplemented"].items() if reason.startswith(LIMIT_REACHED))
