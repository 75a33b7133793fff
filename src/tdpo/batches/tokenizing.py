"""From preference rows to token ids: tokenised whole, cut to a length, and everything cut or dropped counted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..preferences import PreferenceRow


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of one pair. The responses start where the tokenised wholes leave the prompt."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    source: str = "memory"
    row: int = 0


def counted_tokens(pair: TokenizedPair) -> tuple[int, int]:
    """How many tokens of the chosen and of the rejected response are predicted; without a prompt not the first."""
    first = 0 if pair.prompt_ids else 1
    return len(pair.chosen_ids) - first, len(pair.rejected_ids) - first


@dataclass
class TokenizationReport:
    """What became of the rows: nothing is cut or dropped without being counted here."""

    rows: int = 0
    pairs: int = 0
    max_length: int | None = None
    truncated_rows: int = 0
    truncated_tokens: int = 0
    dropped_long_prompts: list[str] = field(default_factory=list)
    dropped_identical: list[str] = field(default_factory=list)
    boundary_moved: int = 0
    longest: int = 0
    mean_prompt_tokens: float = 0.0
    mean_response_tokens: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def warnings(self) -> list[str]:
        """One sentence for each thing that happened to the data, empty when nothing did."""
        said = []
        if self.truncated_rows:
            said.append(
                f"{self.truncated_rows} of {self.rows} rows are longer than max_length={self.max_length}: "
                f"{self.truncated_tokens} response tokens were cut from their ends, the end-of-sequence token kept."
            )
        if self.dropped_long_prompts:
            said.append(
                f"{len(self.dropped_long_prompts)} of {self.rows} rows were dropped: the prompt alone fills "
                f"max_length={self.max_length} ({_first(self.dropped_long_prompts)})."
            )
        if self.dropped_identical:
            said.append(
                f"{len(self.dropped_identical)} of {self.rows} rows were dropped: chosen and rejected are the "
                f"same tokens, maybe only after truncation ({_first(self.dropped_identical)})."
            )
        if self.boundary_moved:
            said.append(
                f"In {self.boundary_moved} of {self.rows} rows the prompt's last characters merge into the response's "
                "first token; the response starts at that token, so nothing of it is lost."
            )
        return said


@dataclass
class TokenizedPairs:
    pairs: list[TokenizedPair]
    report: TokenizationReport


def tokenize_pairs(
    rows: Iterable[PreferenceRow],
    tokenizer: Any,
    max_length: int | None,
    *,
    end_ids: Collection[int] = (),
    progress: Callable[[int], None] | None = None,
) -> TokenizedPairs:
    """Tokenise rows and truncate them to `max_length` tokens (prompt and response together).

    Args:
        rows: validated preference rows.
        tokenizer: a Hugging Face tokenizer; conversational rows need its chat template.
        max_length: None for no limit. A longer response loses its end but keeps its end-of-sequence
            token; a row whose prompt leaves no room for a response is dropped and counted.
        end_ids: end-of-turn tokens besides the tokenizer's own end-of-sequence token.
        progress: called with the number of rows done.

    Raises:
        ValueError: a conversational row and no chat template, or no row left.
    """
    ends = {int(i) for i in end_ids} | ({tokenizer.eos_token_id} - {None})
    pairs: list[TokenizedPair] = []
    report = TokenizationReport(max_length=max_length)
    for row in rows:
        report.rows += 1
        pair, moved = tokenize_pair(row, tokenizer, ends)
        report.boundary_moved += moved
        kept = _truncate(pair, max_length, ends, report)
        if kept is not None:
            pairs.append(kept)
        if progress is not None:
            progress(report.rows)
    _summarise(pairs, report)
    if not pairs:
        longer = " Raise max_length." if report.dropped_long_prompts or report.truncated_rows else ""
        raise ValueError(f"no usable pair among {report.rows} rows. " + " ".join(report.warnings()) + longer)
    return TokenizedPairs(pairs, report)


def tokenize_pair(row: PreferenceRow, tokenizer: Any, ends: Collection[int]) -> tuple[TokenizedPair, bool]:
    """Tokenise one row without a length limit; also says whether the boundary moved into the prompt.

    The prompt is never tokenised apart and glued on: prompt, prompt + chosen and prompt + rejected are
    tokenised whole, and the responses start at the end of their common prefix.
    """
    prompt = _encode(tokenizer, row, row.prompt, prompt_only=True)
    chosen = _encode(tokenizer, row, _join(row.prompt, row.chosen))
    rejected = _encode(tokenizer, row, _join(row.prompt, row.rejected))
    boundary = min(_common_prefix(prompt, chosen), _common_prefix(prompt, rejected))
    # A tokenizer that ends every text with a special token says so after the prompt too: that is no merge.
    moved = boundary < len(prompt) and prompt[boundary] not in ends
    return (
        TokenizedPair(
            prompt_ids=prompt[:boundary],
            chosen_ids=_finish(chosen[boundary:], row.chosen_finished, row, tokenizer, ends),
            rejected_ids=_finish(rejected[boundary:], row.rejected_finished, row, tokenizer, ends),
            source=row.source,
            row=row.row,
        ),
        moved,
    )


def _encode(tokenizer: Any, row: PreferenceRow, text: Any, *, prompt_only: bool = False) -> list[int]:
    if isinstance(text, str):
        return list(tokenizer(text)["input_ids"])
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"{row.source}:{row.row} is a conversation, but the tokenizer has no chat template. Use an instruct "
            "model's tokenizer, set tokenizer.chat_template, or bring plain text."
        )
    encoded = tokenizer.apply_chat_template(
        text,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=prompt_only,
        tools=row.extra.get("tools"),
        **(row.extra.get("chat_template_kwargs") or {}),
    )
    return list(encoded["input_ids"])


def _join(prompt: Any, response: Any) -> Any:
    return prompt + response if isinstance(prompt, str) else [*prompt, *response]


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length


def _finish(ids: list[int], finished: bool, row: PreferenceRow, tokenizer: Any, ends: Collection[int]) -> list[int]:
    """Let a response end where a model would end it: with its end token, or in the open if it was cut off.

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


def _truncate(
    pair: TokenizedPair, max_length: int | None, ends: Collection[int], report: TokenizationReport
) -> TokenizedPair | None:
    name = f"{pair.source}:{pair.row}"
    chosen, rejected = pair.chosen_ids, pair.rejected_ids
    if max_length is not None:
        room = max_length - len(pair.prompt_ids)
        if room < 1:
            report.dropped_long_prompts.append(name)
            return None
        cut = sum(max(0, len(ids) - room) for ids in (chosen, rejected))
        chosen, rejected = (_cut(ids, room, ends) for ids in (chosen, rejected))
        report.truncated_tokens += cut
        report.truncated_rows += bool(cut)
    if chosen == rejected:
        report.dropped_identical.append(name)
        return None
    return TokenizedPair(pair.prompt_ids, chosen, rejected, pair.source, pair.row)


def _cut(ids: list[int], room: int, ends: Collection[int]) -> list[int]:
    if len(ids) <= room:
        return ids
    return [*ids[: room - 1], ids[-1]] if ids[-1] in ends else ids[:room]


def _summarise(pairs: Sequence[TokenizedPair], report: TokenizationReport) -> None:
    report.pairs = len(pairs)
    if pairs:
        responses = [len(ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)]
        report.longest = max(len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs)
        report.mean_prompt_tokens = sum(len(p.prompt_ids) for p in pairs) / len(pairs)
        report.mean_response_tokens = sum(responses) / len(responses)


def _first(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
