"""From preference rows to token ids: tokenised whole, cut to a length, and everything cut or dropped counted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..chat_templates import Encoder, EndOfTurn, end_ids, end_of_turn, prefix_length
from ..preferences import BadPreferences, PreferenceRow, RowProblem
from ..preferences.validation import OnBadRows
from .reporting import TokenizationReport
from .tokenized_pair import TokenizedPair
from .turns import CountedTurns, has_other_turns, within
from .wholes import UnusableRow, Wholes, encode_row


@dataclass
class TokenizedPairs:
    """The pairs of some rows, what became of the rows, and the files or data sets that they came from."""

    pairs: list[TokenizedPair]
    report: TokenizationReport
    sources: tuple[str, ...] = ()


def tokenize_pairs(
    rows: Iterable[PreferenceRow],
    tokenizer: Any,
    max_length: int | None,
    *,
    end_ids: Collection[int] = (),
    on_bad_rows: OnBadRows = "error",
    counted_turns: CountedTurns = "assistant",
    progress: Callable[[int], None] | None = None,
) -> TokenizedPairs:
    """Tokenise rows and truncate them to `max_length` tokens (prompt and response together).

    Args:
        rows: validated preference rows.
        tokenizer: a Hugging Face tokenizer; conversational rows need its chat template.
        max_length: None for no limit. A longer response loses its end, its end-of-sequence token too; a row whose
            prompt leaves no room for a response is dropped and counted.
        end_ids: end-of-turn tokens besides the tokenizer's own end-of-sequence token and the chat template's.
        on_bad_rows: whether rows that the chat template does not render as they are stop everything, or are left out,
            counted and reported.
        counted_turns: "assistant" leaves out what users and tools say within a response; "all" counts it as the
            model's own.
        progress: called with the number of rows done.

    Raises:
        BadPreferences: rows that the chat template refuses or rewrites, with their number and its words.
        TemplateRefusal: a chat template that comes to no end.
        ValueError: a conversational row and no chat template, or no row left.
    """
    encoder, endings = Encoder(tokenizer), Endings.of(tokenizer, end_ids)
    pairs: list[TokenizedPair] = []
    problems: list[RowProblem] = []
    report = TokenizationReport(max_length=max_length)
    sources: dict[str, None] = {}
    for row in rows:
        report.rows += 1
        sources[row.source] = None
        try:
            pair, wholes = tokenize_pair(row, encoder, endings, counted_turns)
        except UnusableRow as problem:
            problems.append(RowProblem(row.source, row.row, problem.field, problem.reason, problem.text))
        else:
            _note(row, pair, wholes, endings, report)
            truncated = _truncate(pair, max_length, report)
            if truncated is not None:
                pairs.append(truncated)
        if progress is not None:
            progress(report.rows)
    report.refused = [str(problem) for problem in problems]
    report.begun_twice = encoder.begun_twice
    _summarise(pairs, report)
    if problems and (on_bad_rows == "error" or not pairs):
        raise BadPreferences(problems, problems[0].source, report.rows)
    if not pairs:
        longer = " Raise max_length." if report.dropped_long_prompts or report.truncated_rows else ""
        raise ValueError(f"no usable pair among {report.rows} rows. " + " ".join(report.warnings()) + longer)
    return TokenizedPairs(pairs, report, tuple(sources))


@dataclass(frozen=True)
class Endings:
    """What ends a response: tokens, and for conversations what the chat template writes behind a turn."""

    token_ids: frozenset[int]
    turn: EndOfTurn

    @classmethod
    def of(cls, tokenizer: Any, configured: Collection[int] = ()) -> Endings:
        ids = end_ids(tokenizer, configured)
        return cls(ids, end_of_turn(tokenizer, ids))


def tokenize_pair(
    row: PreferenceRow, encoder: Encoder, endings: Endings, counted_turns: CountedTurns = "assistant"
) -> tuple[TokenizedPair, Wholes]:
    """Tokenise one row without a length limit.

    The prompt is never tokenised apart and glued on: prompt, prompt + chosen and prompt + rejected are
    tokenised whole, and the responses start at the end of their common prefix.

    Raises as `encode_row`.
    """
    wholes = encode_row(row, encoder, endings.turn, counted_turns)
    boundary = prefix_length(wholes.prompt, wholes.chosen.ids, wholes.rejected.ids)
    chosen = _finish(wholes.chosen.ids[boundary:], row.chosen_finished, row, encoder.tokenizer, endings.token_ids)
    rejected = _finish(wholes.rejected.ids[boundary:], row.rejected_finished, row, encoder.tokenizer, endings.token_ids)
    gaps = within(wholes.chosen.gaps, boundary, len(chosen)), within(wholes.rejected.gaps, boundary, len(rejected))
    return TokenizedPair.of(wholes.prompt[:boundary], chosen, rejected, row.source, row.row, *gaps), wholes


def _note(
    row: PreferenceRow, pair: TokenizedPair, wholes: Wholes, endings: Endings, report: TokenizationReport
) -> None:
    """Count in the report what the template and the tokenizer made of a row."""
    name = f"{row.source}:{row.row}"
    dropped = max(wholes.chosen.dropped, wholes.rejected.dropped, key=len)
    if dropped:
        report.generation_prompt_dropped.append(name)
        report.dropped_text = max(report.dropped_text, dropped, key=len)
    else:
        report.boundary_moved += len(pair.prompt_ids) < len(wholes.prompt)
    if wholes.chosen.reduced or wholes.rejected.reduced:
        report.response_reduced.append(name)
    if wholes.reduced:
        report.prompt_reduced.append(name)
    if row.conversational and any(has_other_turns(turns) for turns in (row.chosen, row.rejected)):  # type: ignore[arg-type]
        report.other_turns += 1
        report.uncounted_tokens += sum(stop - start for start, stop in (*pair.chosen_gaps, *pair.rejected_gaps))
    finished = ((pair.chosen_ids, row.chosen_finished), (pair.rejected_ids, row.rejected_finished))
    open_ends = sum(done and not (ids and ids[-1] in endings.token_ids) for ids, done in finished)
    if open_ends and row.conversational and endings.turn.text:
        report.end_text = endings.turn.text
    else:
        report.without_end += open_ends


def _finish(ids: list[int], finished: bool, row: PreferenceRow, tokenizer: Any, ends: Collection[int]) -> list[int]:
    """The response up to its end token, or without one if it was cut off.

    Templates write more after the end token (a newline, a second end token); a model that stops there
    never says it, so it is not counted.
    """
    stop, tail = None, len(ids)
    for i in reversed([i for i, token in enumerate(ids) if token in ends]):
        if tokenizer.decode(ids[i + 1 : tail]).strip():
            break
        stop = tail = i
    if stop is not None:
        return ids[: stop + 1] if finished else ids[:stop]
    if finished and isinstance(row.prompt, str) and tokenizer.eos_token_id is not None:
        return [*ids, tokenizer.eos_token_id]
    return ids


def _truncate(pair: TokenizedPair, max_length: int | None, report: TokenizationReport) -> TokenizedPair | None:
    """The pair within the length limit; None where nothing is left to learn from.

    What is cut loses its end token, so that nothing teaches to stop in the middle of a sentence.
    """
    name = f"{pair.source}:{pair.row}"
    chosen, rejected = pair.chosen_ids, pair.rejected_ids
    if max_length is not None:
        room = max_length - len(pair.prompt_ids)
        if room < 1:
            report.dropped_long_prompts.append(name)
            return None
        cut_tokens = sum(max(0, len(ids) - room) for ids in (chosen, rejected))
        chosen, rejected = chosen[:room], rejected[:room]
        report.truncated_tokens += cut_tokens
        report.truncated_rows += bool(cut_tokens)
    if chosen == rejected:
        report.dropped_identical.append(name)
        return None
    gaps = within(pair.chosen_gaps, 0, len(chosen)), within(pair.rejected_gaps, 0, len(rejected))
    return TokenizedPair.of(pair.prompt_ids, chosen, rejected, pair.source, pair.row, *gaps)


def _summarise(pairs: Sequence[TokenizedPair], report: TokenizationReport) -> None:
    report.pairs = len(pairs)
    if pairs:
        responses = [len(ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)]
        report.longest = max(len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs)
        report.mean_prompt_tokens = sum(len(p.prompt_ids) for p in pairs) / len(pairs)
        report.mean_response_tokens = sum(responses) / len(responses)
