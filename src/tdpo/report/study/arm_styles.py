"""The arms of a study in the order in which they always appear, each with one colour and one marker everywhere."""

from __future__ import annotations

from ...methods import ARMS
from ..drawing import BASE_GREY

# Found by search: any two are told apart by people of every colour vision, and each has 3:1 against either page. There
# are no more such colours than these. Arms that learn alike have one, and markers tell all arms apart.
OLIVE, RED, PURPLE, VIOLET, BLUE, GREEN, PINK = (
    "#797315", "#dd4055", "#a33e8e", "#8d0aff", "#0a8dff", "#008f5f", "#e000d1",
)  # fmt: skip
COLORS = {
    "reference": BASE_GREY,
    "best_of": BASE_GREY,
    "temperature": BASE_GREY,
    "sft": OLIVE,
    "dpo": RED,
    "dpo_forward": PURPLE,
    "dpo_reverse": RED,
    "tdpo1": PURPLE,
    "tdpo2": VIOLET,
    "online_dpo_forward": PURPLE,
    "online_dpo_reverse": RED,
    "online_tdpo2": VIOLET,
    "ppo_reverse": BLUE,
    "ppo_reverse_exact": GREEN,
    "ppo_forward": PINK,
    "rloo_reverse": GREEN,
    "rloo_forward": PINK,
}
SYMBOLS = {
    "reference": "circle",
    "best_of": "triangle-right",
    "temperature": "circle-open",
    "sft": "square",
    "dpo": "triangle-down",
    "dpo_forward": "diamond-open",
    "dpo_reverse": "triangle-down-open",
    "tdpo1": "diamond",
    "tdpo2": "star",
    "online_dpo_forward": "diamond-tall",
    "online_dpo_reverse": "triangle-left",
    "online_tdpo2": "star-open",
    "ppo_reverse": "triangle-up",
    "ppo_reverse_exact": "cross",
    "ppo_forward": "pentagon",
    "rloo_reverse": "cross-open",
    "rloo_forward": "pentagon-open",
}


def method_color(name: str) -> str:
    return COLORS.get(name, BASE_GREY)


def method_symbol(name: str) -> str:
    return SYMBOLS.get(name, "x")


def in_order(names: set[str]) -> list[str]:
    """The arms that there are in their order, then others by name."""
    ours = [name for name in ARMS if name in names]
    return ours + sorted(names - set(ours))
