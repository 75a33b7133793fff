"""Check of implicit prompts: without a column `prompt`, both responses of a pair must begin with their prompt.

The check looks at all rows of a source together, because a single row cannot show whether its common beginning is a
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from tdpo.preferences.reasons import Reason
from tdpo.preferences.rows import PreferenceRow, RowProblem, UnreadablePreferences, shown

FEWEST = 5  # rows; fewer are too few to judge
UNSHARED_SHARE = 0.2


def require_shared_prompts(rows: Sequence[PreferenceRow], problems: Sequence[RowProblem], source: str) -> None:
    """Raise `UnreadablePreferences` if the responses of rows without a column `prompt` seem to contain no prompt.

    Responses without their prompts share a first word now and then ("The answer …", "The animal …"). If only the rows
    that share nothing were left out, exactly these would stay, and "The an" would be trained on as their prompt.
    """
    plain = [row for row in rows if not row.conversational]
    unshared = [p for p in problems if p.reason == Reason.NOTHING_SHARED and p.text.startswith("chosen '")]
    total = len(plain) + len(unshared)
    if total < FEWEST or not total:
        return
    inside_a_word = [row for row in plain if _splits_a_word(row)]
    if len(unshared) > UNSHARED_SHARE * total:
        rows_without = f"in {len(unshared)} of {total} rows (first in row {unshared[0].row})"
        what = f"{rows_without} chosen and rejected share no beginning"
    elif 2 * len(inside_a_word) > total:
        row = inside_a_word[0]
        example = f"{shown(str(row.prompt)[-30:])} before {shown(str(row.chosen)[:30])}"
        what = f"in {len(inside_a_word)} of {total} rows what they share ends inside a word (row {row.row}: {example})"
    else:
        return
    raise UnreadablePreferences(
        f"{source}: there is no column 'prompt', and chosen and rejected seem not to contain the prompt: {what}. Add a "
        "column 'prompt' with what the model is asked."
    )


def _splits_a_word(row: PreferenceRow) -> bool:
    """Return whether the prompt ends between two letters, which no prompt written by a person does.

    Scripts without spaces and without upper case have no such ends.
    """
    before, after = str(row.prompt)[-1], (str(row.chosen)[0], str(row.rejected)[0])
    return _cased(before) and any(map(_cased, after))


def _cased(letter: str) -> bool:
    return letter.lower() != letter.upper()
