"""Numbers of metrics, as texts."""

from __future__ import annotations

from tdpo.cli._tables import _cell, _interval
from tdpo.records.metric_names import counted, nats


def test_small_kls_are_not_shown_as_none() -> None:
    texts = [nats(value) for value in (0.0, -1e-9, 6.8e-5, 0.0049, 0.0051, 1.234, float("nan"))]
    assert texts == ["0.00", "0.00", "<0.01", "<0.01", "0.01", "1.23", "nan"]
    assert _interval("forward_kl", [0.0012, 0.02], 2) == "<0.01…0.02"
    assert (_cell("policy_entropy", 0.001, 2), _cell("reverse_kl", None, 2)) == ("0.00", "–")


def test_one_of_a_thing_is_not_several() -> None:
    assert [counted(count, "pass", "passes") for count in (0, 1, 2, 1.0, 1.5)] == [
        "0 passes", "1 pass", "2 passes", "1 pass", "1.5 passes",
    ]  # fmt: skip
    assert (counted(1, "update"), counted(100_000, "prompt")) == ("1 update", "100000 prompts")
