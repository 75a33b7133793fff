"""The arms of a study in the order in which they always appear, each with one colour and one marker everywhere."""

from __future__ import annotations

from ...methods import ARMS
from ..drawing import BASE_GREY

# Found by search: any two are told apart by people of every colour vision, and each has 3:1 against either page.
COLORS = {
    "reference": BASE_GREY,
    "sft": "#797315",
    "dpo": "#dd4055",
    "tdpo1": "#a33e8e",
    "tdpo2": "#8d0aff",
    "ppo_reverse": "#0a8dff",
    "ppo_reverse_exact": "#008f5f",
    "ppo_forward": "#e000d1",
}
SYMBOLS = {
    "reference": "circle",
    "sft": "square",
    "dpo": "triangle-down",
    "tdpo1": "diamond",
    "tdpo2": "star",
    "ppo_reverse": "triangle-up",
    "ppo_reverse_exact": "cross",
    "ppo_forward": "pentagon",
}


def method_color(name: str) -> str:
    return COLORS.get(name, BASE_GREY)


def method_symbol(name: str) -> str:
    return SYMBOLS.get(name, "x")


def in_order(names: set[str]) -> list[str]:
    """The arms that there are in their order, then others by name."""
    ours = [name for name in ARMS if name in names]
    return ours + sorted(names - set(ours))
