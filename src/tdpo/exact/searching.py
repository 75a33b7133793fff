"""Optima of losses without a closed form: Newton's method on the gradient, float64.

A search begins at the optimum of a slightly stronger tie to the reference, and so follows the branch of optima that
starts at the reference. Where a branch ends, as that of DPO with a reverse KL does, the next minimum downhill is taken.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Loss = Callable[[Tensor], Tensor]  # node logits [..., nodes, symbols] to a loss [...]
Vector = NDArray[np.float64]

STEP = 1e-6  # of the finite differences of the Jacobian; the end of a search does not depend on it
TOLERANCE = 1e-8  # largest entry of the gradient at the end of a search
CLOSE = 1e-8  # largest entry of Newton's last step, in logits
STEPS = 200  # of Newton, at most
NOTHING = 1e-13  # a gradient below which the search ends whatever the step is: some response has vanished
FLATTEST = 1e-9  # curvature below which a direction counts as flat
LONGEST = 5.0  # length of a step towards a minimum, in logits


def minimum(loss: Loss, start: Tensor) -> Tensor:
    """The node_logp [nodes, symbols] of the minimum of `loss` downhill from `start`.

    Newton's steps use the absolute value of the curvature (Dauphin et al. 2014, arXiv 1406.2572), and are halved until
    the loss falls.

    Raises:
        RuntimeError: as `root_of_gradient`.
    """
    slopes, place = _Slopes(loss, start.shape), _flat(start)
    for _ in range(STEPS):
        value, gradient, jacobian = slopes.expansion(place)
        curvature, directions = np.linalg.eigh((jacobian + jacobian.T) / 2)
        step = -directions @ (directions.T @ gradient / np.maximum(np.abs(curvature), FLATTEST))
        step *= min(1.0, LONGEST / max(float(np.linalg.norm(step)), LONGEST))
        slope, share = float(gradient @ step), 1.0
        while share > 1e-6 and slopes.value(place + share * step) > value + 1e-4 * share * slope:
            share /= 2
        if share > 1e-6:
            place = place + share * step
        if min(np.abs(step).max(), np.abs(gradient).max() / NOTHING * CLOSE) < CLOSE or share <= 1e-6:
            break  # at the minimum, or so near that rounding hides the fall of the loss
    return slopes.solution(place)


def root_of_gradient(loss: Loss, start: Tensor) -> Tensor:
    """The node_logp [nodes, symbols] at which the gradient of `loss` vanishes, searched from `start`.

    This is for a loss that stops a gradient, as TDPO2 does: its gradient need not vanish where its value is least.

    Raises:
        RuntimeError: an entry of the gradient stays above 1e-8; the message says how large it is.
    """
    slopes = _Slopes(loss, start.shape)
    place = slopes.newton(_flat(start))
    if place is None:
        from scipy.optimize import root

        options = {"xtol": 1e-14, "ftol": 1e-14}
        place = root(slopes.gradient, _flat(start), jac=slopes.jacobian, method="lm", options=options).x
    return slopes.solution(place)


def _flat(table: Tensor) -> Vector:
    flat: Vector = table.detach().flatten().numpy().copy()
    return flat


class _Slopes:
    """A loss of tables as functions of flat numpy vectors: value, gradient, and the Jacobian by finite differences."""

    def __init__(self, loss: Loss, shape: torch.Size) -> None:
        self.loss, self.shape = loss, shape
        nodes, symbols = shape
        # A constant added to all logits of a node changes no policy. This makes the Jacobian regular and moves no root.
        self.gauge = np.kron(np.eye(nodes), np.full((symbols, symbols), 1.0 / symbols))

    def newton(self, place: Vector) -> Vector | None:
        """The root that Newton's steps reach from `place`, or None; a step is halved until it comes closer."""
        for _ in range(STEPS):
            _, gradient, jacobian = self.expansion(place)
            step = np.linalg.solve(jacobian, -gradient)
            for share in (1.0, 0.5, 0.25, 0.125, 1 / 32, 1 / 256):
                if np.linalg.norm(self.gradient(place + share * step)) < np.linalg.norm(gradient):
                    place = place + share * step
                    break
            else:  # no step comes closer: this is the root up to rounding, or the search is lost
                return place if np.abs(gradient).max() <= TOLERANCE and np.abs(step).max() < 1e-5 else None
            if share == 1.0 and np.abs(step).max() < CLOSE:
                return place
        return None

    def value(self, flat: Vector) -> float:
        with torch.no_grad():
            return float(self.loss(torch.from_numpy(flat).reshape(self.shape)))

    def gradient(self, flat: Vector) -> Vector:
        return self._gradients(torch.from_numpy(flat)[None])[1][0]

    def expansion(self, flat: Vector) -> tuple[float, Vector, Vector]:
        """The value, the gradient, and the Jacobian by differences plus the gauge; all in one batch."""
        steps = STEP * torch.eye(flat.size, dtype=torch.float64)
        values, rows = self._gradients(torch.from_numpy(flat) + torch.cat([torch.zeros_like(steps[:1]), steps]))
        jacobian = (rows[1:] - rows[0]).T / STEP
        return float(values[0]), rows[0], jacobian + self.gauge

    def jacobian(self, flat: Vector) -> Vector:
        return self.expansion(flat)[2]

    def solution(self, flat: Vector) -> Tensor:
        largest = float(np.abs(self.gradient(flat)).max())
        if not largest <= TOLERANCE:
            raise RuntimeError(f"the gradient's largest entry is still {largest:.1e}, asked for {TOLERANCE:.0e}")
        return torch.from_numpy(flat).reshape(self.shape).log_softmax(-1)

    def _gradients(self, rows: Tensor) -> tuple[Vector, Vector]:
        logits = rows.reshape(-1, *self.shape).requires_grad_()
        losses = self.loss(logits)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        values: Vector = losses.detach().numpy()
        flat: Vector = gradient.flatten(1).numpy()
        return values, flat
