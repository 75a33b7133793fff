"""Numbers as a reader wants them: few digits, a real minus sign, thin spaces, and a dash where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

MISSING = "–"
THIN_SPACE = "\u2009"
MINUS = "\u2212"


def number(value: Any) -> float | None:
    """`value` as a float if it is a finite number (a bool is not one), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def interval(value: Any) -> tuple[float, float] | None:
    """`value` as (low, high) if it is a list of two finite numbers, else None."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (min(low, high), max(low, high))


def show(value: Any) -> str:
    """About three significant digits: 1 234, 57.1, 0.57, 0.0042, 2.0e−7, 0. What is no number is shown as it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
    finite = number(value)
    if finite is None:
        return MISSING if value is None else str(value)
    size = abs(finite)
    if size < 1e-12:  # rounding noise: nothing here is measured that finely
        return "0"
    if (finite == int(finite) and (size >= 100 or isinstance(value, int))) or size >= 100:
        digits = f"{finite:,.0f}"
    elif size >= 9.995:
        digits = f"{finite:.1f}"
    elif size >= 0.095:
        digits = f"{finite:.2f}"
    elif size >= 1e-4:
        digits = f"{finite:.{1 - math.floor(math.log10(size))}f}"
    else:
        digits = f"{finite:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return digits.replace(",", THIN_SPACE).replace("-", MINUS)


def counted(count: Any, one: str, many: str = "") -> str:
    """A whole number with its noun: 1 update, 2 passes."""
    finite = number(count)
    return f"{show(count if finite is None else int(finite))} {one if finite == 1 else many or f'{one}s'}"


def show_signed(value: Any) -> str:
    """Like `show`, with a plus sign in front of what is positive: for differences."""
    finite = number(value)
    return f"+{show(value)}" if finite is not None and finite > 0 else show(value)


def show_interval(value: Any, form: Callable[[Any], str] = show) -> str:
    """`[0.18, 0.32]`; nothing where there is no interval, or where it is zero by definition."""
    pair = interval(value)
    return "" if pair is None or pair == (0, 0) else f"[{form(pair[0])}, {form(pair[1])}]"


def show_share(value: Any) -> str:
    """A share as percent: 0.7 → 70 %. What is not quite none or all is not rounded to it: 0.997 → 99.7 %."""
    finite = number(value)
    if finite is None:
        return show(value)
    digits = next((n for n in range(3) if f"{finite:.{2 + n}f}" not in (f"{0:.{2 + n}f}", f"{1:.{2 + n}f}")), 0)
    return f"{100 * finite:.{digits}f}{THIN_SPACE}%".replace("-", MINUS)


def show_duration(seconds: Any) -> str:
    """A duration in seconds as people say it: 0.4 s, 33 s, 2 min 5 s, 3 h 12 min."""
    finite = number(seconds)
    if finite is None or finite < 0:
        return MISSING
    if finite < 10:
        return f"{finite:.1f} s"
    whole = round(finite)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(finite / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def excludes_zero(value: Any) -> bool | None:
    """Whether an interval lies on one side of zero; None where there is no interval."""
    pair = interval(value)
    return None if pair is None else pair[0] > 0 or pair[1] < 0


def join_words(words: list[str]) -> str:
    """Words as a sentence lists them: a; a and b; a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def shorten(text: str, length: int) -> str:
    """`text` with its middle replaced by an ellipsis where it is longer than `length` characters."""
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"
