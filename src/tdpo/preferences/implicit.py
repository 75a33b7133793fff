"""Whether the prompts that plain responses are said to contain are prompts, judged over all rows of a source."""

from __future__ import annotations

from collections.abc import Sequence

from tdpo.preferences.reasons import Reason
from tdpo.preferences.rows import PreferenceRow, RowProblem, UnreadablePreferences, shown

FEWEST = 5  # rows; of fewer nothing can be said
BARE_SHARE = 0.2


def require_shared_prompts(rows: Sequence[PreferenceRow], problems: Sequence[RowProblem], source: str) -> None:
    """Raise `UnreadablePreferences` where responses without a column `prompt` seem not to contain a prompt either.

    Answers alone share a first word now and then ("The answer …", "The animal …"). Leaving out the rows that share
    nothing would keep exactly those, and train on "The an" as their prompt.
    """
    plain = [row for row in rows if not row.conversational]
    bare = [p for p in problems if p.reason == Reason.NOTHING_SHARED and p.text.startswith("chosen '")]
    total = len(plain) + len(bare)
    if total < FEWEST or not total:
        return
    within = [row for row in plain if _splits_a_word(row)]
    if len(bare) > BARE_SHARE * total:
        what = f"in {len(bare)} of {total} rows (first in row {bare[0].row}) chosen and rejected share no beginning"
    elif 2 * len(within) > total:
        row = within[0]
        seen = f"{shown(str(row.prompt)[-30:])} before {shown(str(row.chosen)[:30])}"
        what = f"in {len(within)} of {total} rows what they share ends inside a word (row {row.row}: {seen})"
    else:
        return
    raise UnreadablePreferences(
        f"{source}: there is no column 'prompt', and chosen and rejected seem not to contain the prompt: {what}. Add a "
        "column 'prompt' with what the model is asked."
    )


def _splits_a_word(row: PreferenceRow) -> bool:
    """Whether the prompt ends between two letters, as no prompt that somebody wrote does; scripts without spaces and
    without upper case have no such ends."""
    before, after = str(row.prompt)[-1], (str(row.chosen)[0], str(row.rejected)[0])
    return _cased(before) and any(map(_cased, after))


def _cased(letter: str) -> bool:
    return letter.lower() != letter.upper()
