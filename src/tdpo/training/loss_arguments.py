"""The strengths of a loss of pairs, as arguments of a configuration in Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from ..config import Loss, LossName
from ..methods import METHODS
from .kl_arguments import KLArguments

# Values that change nothing: those of an argument that was left out, as a copy of a configuration has them.
_LEFT_OUT: dict[str, Any] = {
    "beta": Loss.DEFAULT_BETA,
    "alpha": Loss.DEFAULT_ALPHA,
    "gamma": None,
    "label_smoothing": 0.0,
}


@dataclass
class LossArguments(KLArguments):
    """What a configuration with the arguments `loss`, `beta`, `alpha`, `gamma` and `label_smoothing` makes of them."""

    def _settle(self) -> None:
        """Give `beta` and `gamma` the default of the loss where they were left out."""
        own: Any = self
        if own.beta is None:
            own.beta = Loss.default_beta(self.loss if self._is_known else None)
        if own.gamma is None and self._has("gamma") and isinstance(own.beta, int | float):
            own.gamma = Loss.DEFAULT_GAMMA * own.beta

    def recorded_strengths(self) -> dict[str, float | None]:
        """β, α and γ as a recipe has them: null where the loss has none."""
        return {name: getattr(self, name) if self._has(name) else None for name in ("beta", "alpha", "gamma")}

    def _has(self, name: str) -> bool:
        return self._is_known and bool(getattr(METHODS[self.loss], f"has_{name}"))

    @property
    def _is_known(self) -> bool:
        return self.loss in get_args(LossName)

    def _strength_problems(self) -> Iterator[str]:
        for name, left_out in _LEFT_OUT.items() if self._is_known else ():
            value = getattr(self, name)
            if value != left_out and not self._has(name):
                other = "simpo" if name == "gamma" else "tdpo2"
                yield f"{name}={value} has no effect with loss={self.loss!r}; leave it out or use loss={other!r}"
