"""From preference rows to tensors: tokenise, truncate, lay out, and align targets, once.

Whatever the layout, a batch carries for its N counted response tokens the flat position of the hidden
state that predicts each one, the token itself and the sequence it belongs to. Nothing downstream knows
about padding, prompts or shifted labels.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .preferences import PreferenceRow


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


@dataclass(frozen=True)
class PairBatch:
    """P pairs, ready for one forward of the body.

    `input_ids` `[R, T]`, `attention_mask` (`[R, T]`, or bool `[R, 1, T, T]` where responses share a row) and,
    where they are not 0, 1, 2, …, `position_ids` `[R, T]` feed the model; of its hidden states `[R·T, D]`,
    `response_index` `[N]` picks those that predict the N counted tokens `target_ids` `[N]`, which
    belong to the sequences `sequence_index` `[N]` in [0, 2P): chosen of pair p is p, rejected P + p.
    `reference_rows` `[N]`, where there is a reference cache, says in which of its rows each token stands.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_index: Tensor
    target_ids: Tensor
    sequence_index: Tensor
    num_pairs: int
    position_ids: Tensor | None = None
    reference_rows: Tensor | None = None

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any]) -> PairBatch:
        """Undo `as_inputs`, after a trainer has moved the tensors to its device."""
        return cls(**{**inputs, "num_pairs": int(inputs["num_pairs"])})

    def as_inputs(self) -> dict[str, Tensor]:
        """A mapping of tensors, the form in which `transformers.Trainer` moves batches about."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        named["num_pairs"] = torch.tensor(self.num_pairs)
        return {name: value for name, value in named.items() if value is not None}

    @property
    def num_tokens(self) -> int:
        """Tokens that the body works on, padding left out."""
        mask = self.attention_mask
        return int((mask if mask.dim() == 2 else mask.diagonal(dim1=-2, dim2=-1)).sum())

    def model_inputs(self) -> dict[str, Tensor]:
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.position_ids is None else {**inputs, "position_ids": self.position_ids}


def padded_batch(pairs: Sequence[TokenizedPair], pad_token_id: int) -> PairBatch:
    """One row a response, chosen rows first, padded on the right to the longest: `[2P, T]`, less those without one."""
    responses = [(p.prompt_ids, p.chosen_ids) for p in pairs] + [(p.prompt_ids, p.rejected_ids) for p in pairs]
    rows = [(s, *responses[s]) for s in range(len(responses)) if responses[s][1]] or [(0, *responses[0])]
    width = max(len(prompt) + len(response) for _, prompt, response in rows)
    input_ids = torch.full((len(rows), width), pad_token_id)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
    index: list[int] = []
    targets: list[int] = []
    sequence: list[int] = []
    for r, (number, prompt, response) in enumerate(rows):
        ids = prompt + response
        input_ids[r, : len(ids)] = torch.tensor(ids)
        attention_mask[r, : len(ids)] = 1
        # Without a prompt nothing predicts the first token, so it cannot be counted.
        first = max(len(prompt), 1)
        index.extend(r * width + t - 1 for t in range(first, len(ids)))
        targets.extend(ids[first:])
        sequence.extend([number] * (len(ids) - first))
    return PairBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        response_index=torch.tensor(index, dtype=torch.long),
        target_ids=torch.tensor(targets, dtype=torch.long),
        sequence_index=torch.tensor(sequence, dtype=torch.long),
        num_pairs=len(pairs),
    )


def shared_prefix_batch(
    pairs: Sequence[TokenizedPair],
    pad_token_id: int,
    rows: Sequence[Sequence[int]] | None = None,
    *,
    group_prompts: bool = False,
) -> PairBatch:
    """A pair's prompt, chosen and rejected in one row, `[R, T]`; the prompt is computed once (arXiv 2410.20305).

    Under the 4-D mask `[R, 1, T, T]` a response sees its prompt and itself alone, and positions restart at the prompt's
    end, so every response has the hidden states that it has in a row of its own.

    Args:
        pairs: P pairs, each with a prompt.
        pad_token_id: fills rows to the width of the longest. Nothing attends to padding; padding attends to the
            row's first token, so that its softmax is no 0/0.
        rows: indices of the pairs in each row, every pair once, as `pack_rows` gives them; None gives each pair a
            row of its own. The flat tokens are the same, only `response_index` knows where their states lie.
        group_prompts: a pair that follows one with the same prompt in its row shares that prompt (`group_rows`).

    Raises:
        ValueError: a pair without a prompt, whose first response tokens nothing predicts.
    """
    for pair in pairs:
        if not pair.prompt_ids:
            raise ValueError(f"{pair.source}:{pair.row} has no prompt to share; lay such pairs out with padded_batch")
    rows = [[p] for p in range(len(pairs))] if rows is None else rows
    width = max(row_length(pairs, row, group_prompts) for row in rows)
    # Ids and positions as lists: with short responses, a tensor operation for each would be most of the work.
    input_ids: list[list[int]] = [[] for _ in rows]
    position_ids: list[list[int]] = [[] for _ in rows]
    mask = torch.zeros(len(rows), 1, width, width, dtype=torch.bool)
    mask[..., 0] = True
    causal = torch.ones(width, width, dtype=torch.bool).tril_()
    places = _Places([0] * len(pairs), [0] * len(pairs))
    for r, row in enumerate(rows):
        end, shown = 0, slice(0, 0)
        prompt: list[int] = []
        for p in row:
            pair = pairs[p]
            if not (group_prompts and pair.prompt_ids == prompt):
                prompt, shown = pair.prompt_ids, slice(end, end + len(pair.prompt_ids))
                input_ids[r] += prompt
                position_ids[r] += range(len(prompt))
                mask[r, 0, shown, 0] = False  # of another prompt, unless this is the row's first
                mask[r, 0, shown, shown] = causal[: len(prompt), : len(prompt)]
                end = shown.stop
            places.prompt_end[p], places.response[p] = r * width + shown.stop, r * width + end
            for ids in (pair.chosen_ids, pair.rejected_ids):
                own, length = slice(end, end + len(ids)), len(ids)
                input_ids[r] += ids
                position_ids[r] += range(len(prompt), len(prompt) + length)
                mask[r, 0, own, 0] = False
                mask[r, 0, own, shown] = True
                mask[r, 0, own, own] = causal[:length, :length]
                end = own.stop
    response_index, targets, sequence = _response_tokens(pairs, places)
    tokens = _filled(input_ids, width, pad_token_id)
    return PairBatch(
        input_ids=tokens,
        attention_mask=mask,
        response_index=response_index,
        target_ids=tokens.flatten()[targets],
        sequence_index=sequence,
        num_pairs=len(pairs),
        position_ids=_filled(position_ids, width, 0),
    )


def _filled(rows: list[list[int]], width: int, value: int) -> Tensor:
    """`[R, width]` of the rows, filled on the right."""
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def shared_length(pair: TokenizedPair) -> int:
    """Tokens of a pair whose responses share their prompt."""
    return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


def row_length(pairs: Sequence[TokenizedPair], row: Sequence[int], group_prompts: bool) -> int:
    """Tokens of a row of pairs; `group_prompts` as in `shared_prefix_batch`."""
    before = [[], *(pairs[p].prompt_ids for p in row)]
    again = sum(
        len(pairs[p].prompt_ids) for p, prompt in zip(row, before, strict=False) if pairs[p].prompt_ids == prompt
    )
    return sum(shared_length(pairs[p]) for p in row) - again * group_prompts


def group_rows(pairs: Sequence[TokenizedPair]) -> list[list[int]]:
    """Indices of the pairs in each row: those with the same prompt together, so many to a row as compute the fewest
    tokens (rows × width) over all. One to a row is best where one prompt has many pairs and the others have few."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for p, pair in enumerate(pairs):
        groups.setdefault(tuple(pair.prompt_ids), []).append(p)

    # Response tokens before each pair of a group and after its last: a row's length is a difference of two of them.
    before = [
        list(accumulate((shared_length(pairs[p]) - len(prompt) for p in group), initial=0))
        for prompt, group in groups.items()
    ]

    def computed(most: int) -> int:
        widths = [
            len(prompt) + ends[min(at + most, len(ends) - 1)] - ends[at]
            for prompt, ends in zip(groups, before, strict=True)
            for at in range(0, len(ends) - 1, most)
        ]
        return len(widths) * max(widths)

    most = min(range(1, 1 + max(map(len, groups.values()))), key=computed)
    return [group[at : at + most] for group in groups.values() for at in range(0, len(group), most)]


def pack_rows(lengths: Sequence[int], max_tokens_per_row: int) -> list[list[int]]:
    """Indices of the pairs in each row: rows of at most `max_tokens_per_row` tokens, a longer pair in one of its own.

    The number of rows is the one that computes the fewest tokens (rows × width), of equals the larger, whose
    attention is narrower; so packing never computes more than one pair a row does.
    """
    total, longest = sum(lengths), max(lengths)
    best, fewest = [[p] for p in range(len(lengths))], len(lengths) * longest
    for count in range(max(1, -(-total // max(max_tokens_per_row, longest))), len(lengths)):
        if count * longest > fewest:
            break  # no row is narrower than the longest pair
        rows = _balanced_rows(lengths, count)
        loads = [sum(lengths[p] for p in row) for row in rows]
        fits = all(load <= max_tokens_per_row or len(row) == 1 for load, row in zip(loads, rows, strict=True))
        if fits and (len(rows) * max(loads), -len(rows)) < (fewest, -len(best)):
            best, fewest = rows, len(rows) * max(loads)
    return best


def _balanced_rows(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Longest first, each to the row that is emptiest so far, of equals the first; pairs of a row in their order."""
    rows: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, r) for r in range(count)]
    for p in sorted(range(len(lengths)), key=lambda p: -lengths[p]):
        load, r = emptiest[0]
        rows[r].append(p)
        heapq.heapreplace(emptiest, (load + lengths[p], r))
    return [sorted(row) for row in rows]


@dataclass
class _Places:
    """Flat indices, one a pair: after its prompt's last token, and of its chosen response's first."""

    prompt_end: list[int]
    response: list[int]


def _response_tokens(pairs: Sequence[TokenizedPair], places: _Places) -> tuple[Tensor, Tensor, Tensor]:
    """Of the N response tokens, chosen before rejected: (flat index of the predicting state, token's, sequence)."""
    begins = torch.tensor(places.response)
    chosen = torch.tensor([len(p.chosen_ids) for p in pairs])
    rejected = torch.tensor([len(p.rejected_ids) for p in pairs])
    last_of_prompt = torch.tensor(places.prompt_end).repeat(2) - 1
    first = torch.cat([begins, begins + chosen])
    lengths = torch.cat([chosen, rejected])
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
    within = torch.arange(len(sequence)) - (lengths.cumsum(0) - lengths)[sequence]
    token = first[sequence] + within
    return torch.where(within == 0, last_of_prompt[sequence], token - 1), token, sequence


@dataclass
class PairCollator:
    """Collate tokenised pairs into the inputs of one step, in the layout chosen.

    A pair without a prompt has nothing to share, and nothing that predicts its first tokens: such a batch
    is always padded.

    Args:
        pad_token_id: fills rows.
        share_prefixes: compute a pair's prompt once (`shared_prefix_batch`); False: each response in a row of its own.
        max_tokens_per_row: pack pairs that share their prompt into rows of up to so many tokens.
        group_prompts: let pairs of a batch that have the same prompt share it too, where that pays (`group_rows`).

    Raises:
        ValueError: `max_tokens_per_row` or `group_prompts` without `share_prefixes`, or both of them.
    """

    pad_token_id: int
    share_prefixes: bool = False
    max_tokens_per_row: int | None = None
    group_prompts: bool = False
    reference_rows: Callable[[Sequence[TokenizedPair]], Tensor | None] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens_per_row is not None and not self.share_prefixes:
            raise ValueError(
                f"max_tokens_per_row={self.max_tokens_per_row} has no effect on padded rows; set share_prefixes=True "
                "or leave it out"
            )
        if self.group_prompts and (not self.share_prefixes or self.max_tokens_per_row is not None):
            raise ValueError("group_prompts needs share_prefixes=True, and rows that nothing else is packed into")

    def __call__(self, pairs: Sequence[TokenizedPair]) -> dict[str, Tensor]:
        batch = self._laid_out(pairs)
        if self.reference_rows is not None:
            batch = replace(batch, reference_rows=self.reference_rows(pairs))
        return batch.as_inputs()

    def _laid_out(self, pairs: Sequence[TokenizedPair]) -> PairBatch:
        if not (self.share_prefixes and all(pair.prompt_ids for pair in pairs)):
            return padded_batch(pairs, self.pad_token_id)
        rows = None
        if self.max_tokens_per_row is not None:
            rows = pack_rows([shared_length(pair) for pair in pairs], self.max_tokens_per_row)
        elif self.group_prompts:
            rows = group_rows(pairs)
        return shared_prefix_batch(pairs, self.pad_token_id, rows, group_prompts=self.group_prompts)

    def describe(self) -> str:
        """The layout in a few words for the log."""
        if not self.share_prefixes:
            return "padded rows"
        if self.group_prompts:
            return "pairs share their prompt, also with one another"
        if self.max_tokens_per_row is None:
            return "pairs share their prompt"
        return f"pairs share their prompt, packed into rows of at most {self.max_tokens_per_row} tokens"

    def tokens(self, pair: TokenizedPair) -> int:
        """Tokens that the body computes for this pair in a batch of its own, padding included."""
        if self.share_prefixes and pair.prompt_ids:
            return shared_length(pair)
        return 2 * (len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)))
