"""Tables of evaluations (evaluation.json) for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..records.metric_names import nats
from ._console import number

if TYPE_CHECKING:
    from rich.table import Table

Evaluation = Mapping[str, Any]
# Row label, key in "generations", digits. Labels have at most 20 characters, so that four models fit into 80 columns.
GENERATION_ROWS = (
    ("reward, mean", "reward_mean", 3),
    ("reward, variance", "reward_variance", 3),
    ("reward, std. dev.", "reward_std", 3),
    ("forward KL, nats", "forward_kl", 2),
    ("reverse KL, nats", "reverse_kl", 2),
    ("entropy, nats/token", "policy_entropy", 2),
    ("distinct-1", "distinct_1", 3),
    ("distinct-2", "distinct_2", 3),
    ("length, tokens", "length_mean", 1),
    ("finished, share", "finished_share", 2),
    ("known answers, prob.", "answer_mass", 3),
    ("exact effect. modes", "exact_effective_modes", 2),
    ("exact mode coverage", "exact_mode_coverage", 3),
    ("expected grade", "expected_grade", 3),
)
PAIR_ROWS = (
    ("pairs: accuracy", "accuracy", 3),
    ("pairs: margin", "margin", 3),
    ("pairs: chosen KL", "chosen_forward_kl", 2),
    ("pairs: rejected KL", "rejected_forward_kl", 2),
)
INTERVAL = "  95 % interval"
WITH_INTERVAL = ("reward_mean", "forward_kl", "reverse_kl", "accuracy", "chosen_forward_kl")


def comparison_table(
    evaluations: Mapping[str, Evaluation], *, extra: Mapping[str, Mapping[str, str]] | None = None
) -> Table:
    """Make a table with a row per measure and a column per model: the base model, then each trained one by its label.

    `extra` adds rows: {row label: {column label: text}}.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(_title(evaluations), style="table.title"),  # not markup: names may contain brackets
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    base = _base(evaluations)
    for label in [*(["base"] if base else []), *evaluations]:
        table.add_column(Text(label), justify="right", overflow="fold")
    blank = [""] if base else []
    generations = [*([base] if base else []), *(_generations(e, "trained") for e in evaluations.values())]
    for label, key, digits in GENERATION_ROWS:
        _add(table, label, [_cell(key, values.get(key), digits) for values in generations])
        if key in WITH_INTERVAL:
            _add(table, INTERVAL, [_interval(key, values.get(f"{key}_interval"), digits) for values in generations])
    pairs = [e.get("pairs") or {} for e in evaluations.values()]
    for label, key, digits in PAIR_ROWS:
        _add(table, label, [*blank, *(_cell(key, values.get(key), digits) for values in pairs)])
        if key in WITH_INTERVAL:
            intervals = [(values.get("intervals") or {}).get(key) for values in pairs]
            _add(table, INTERVAL, [*blank, *(_interval(key, interval, digits) for interval in intervals)])
    for label, by_column in (extra or {}).items():
        _add(table, label, [*blank, *(by_column.get(column, "") for column in evaluations)])
    return table


def notes(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Return what the table does not say: how each reward differs from the base model's, and where intervals lack."""
    from ..bootstrap import LEAST_UNITS

    lines = []
    for label, evaluation in evaluations.items():
        parts = (("answered prompts", "settings"), ("prompts of held-out pairs", "pairs"))
        for what, part in parts:
            count = (evaluation.get(part) or {}).get("prompts")
            if count is not None and count < LEAST_UNITS:
                lines.append(f"{label}: {count} {what}; means over fewer than {LEAST_UNITS} have no interval")
        difference = (evaluation.get("difference") or {}).get("reward_mean")
        if difference and not difference["interval"]:
            lines.append(
                f"{label}: mean reward {difference['estimate']:+.3f} against base, without an "
                "interval: there are fewer than six prompts, or all have the same difference"
            )
        elif difference:
            low, high = difference["interval"]
            verdict = "excludes 0" if low > 0 or high < 0 else "includes 0: no difference is shown"
            lines.append(
                f"{label}: mean reward {difference['estimate']:+.3f} against base, "
                f"{difference['confidence']:.0%} interval [{low:+.3f}, {high:+.3f}], which {verdict}"
            )
    return lines


def _title(evaluations: Mapping[str, Evaluation]) -> str:
    settings: Mapping[str, Any] = next((e["settings"] for e in evaluations.values() if e.get("settings")), {})
    formats: dict[str, Callable[[Any], str]] = {
        "environment": str,
        "reward": lambda value: f"reward: {value}",
        "prompts": lambda value: f"{value} held-out prompts",
        "samples_per_prompt": lambda value: f"{value} samples each",
    }
    return ", ".join(show(settings[key]) for key, show in formats.items() if settings.get(key) not in (None, ""))


def _base(evaluations: Mapping[str, Evaluation]) -> Mapping[str, Any]:
    return next((b for e in evaluations.values() if (b := _generations(e, "base"))), {})


def _generations(evaluation: Evaluation, which: str) -> Mapping[str, Any]:
    return (evaluation.get("generations") or {}).get(which) or {}


def _cell(key: str, value: Any, digits: int) -> str:
    return nats(value) if key.endswith("_kl") and value is not None else number(value, digits)


def _interval(key: str, interval: Sequence[float] | None, digits: int) -> str:
    return "" if interval is None else "…".join(_cell(key, end, digits) for end in interval)


def _add(table: Table, label: str, cells: list[str]) -> None:
    if any(cell not in ("", "–") for cell in cells):
        from rich.text import Text

        table.add_row(label, *map(Text, cells))
