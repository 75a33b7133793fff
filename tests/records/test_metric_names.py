"""Numbers of metrics, as texts."""

from __future__ import annotations

from tdpo.cli._tables import _cell, _interval
from tdpo.records.metric_names import nats


def test_small_kls_are_not_shown_as_none() -> None:
    texts = [nats(value) for value in (0.0, -1e-9, 6.8e-5, 0.0049, 0.0051, 1.234, float("nan"))]
    assert texts == ["0.00", "0.00", "<0.01", "<0.01", "0.01", "1.23", "nan"]
    assert _interval("forward_kl", [0.0012, 0.02], 2) == "<0.01…0.02"
    assert (_cell("policy_entropy", 0.001, 2), _cell("reverse_kl", None, 2)) == ("0.00", "–")
