"""The KL beside a loss of pairs, as an argument of a configuration in Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from ..kl_choices import KLTerm, target_obstacle


@dataclass
class KLArguments:
    """The argument `kl` of a configuration that has a `loss`."""

    kl: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "An exact KL beside the loss: direction (forward, reverse or js), on (chosen, rejected or both), "
            "coefficient, weight (of js) and target (nats a sequence at which it is held) in a dictionary, or in JSON. "
            "None: there is none."
        },
    )

    # Of the configuration that this is a part of.
    loss = ""

    @property
    def kl_term(self) -> KLTerm | None:
        """The KL beside the loss, with its defaults. With loss="kl" it is the loss; its coefficient then is 1."""
        if self.kl is None and self.loss != "kl":
            return None
        given = json.loads(self.kl) if isinstance(self.kl, str) else ({} if self.kl is None else self.kl)
        return KLTerm(**({"coefficient": 1.0, **given} if self.loss == "kl" else given))

    def check_teacher(self, ref_model: Any | None) -> None:
        """Raise ValueError where the loss is the KL to a teacher, and there is none."""
        if self.loss == "kl" and ref_model is None:
            raise ValueError(
                "loss='kl' learns from a teacher: pass it as ref_model. Without one, the teacher would be the policy's "
                "own start, from which there is nothing to learn."
            )

    def _kl_problems(self) -> Iterator[str]:
        try:
            term = self.kl_term
        except ValueError as error:
            yield f"kl={self.kl!r} is no JSON" if isinstance(error, json.JSONDecodeError) else str(error)
        except TypeError:
            yield f"kl must be a dictionary with some of {', '.join(f.name for f in fields(KLTerm))}, got {self.kl!r}"
        else:
            if term is not None and (obstacle := target_obstacle(term.target, self.loss)):
                yield f"kl.target {obstacle}"
