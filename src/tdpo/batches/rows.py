"""Which pairs share a row: how long rows are, and how few tokens they can be made to compute."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import accumulate

from .tokenizing import TokenizedPair


def shared_length(pair: TokenizedPair) -> int:
    """Tokens of a pair whose responses share their prompt."""
    return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


def sequence_length(pair: TokenizedPair) -> int:
    """Tokens of the prompt with the longer response: the longest sequence that the model reads."""
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def row_length(pairs: Sequence[TokenizedPair], row: Sequence[int], group_prompts: bool) -> int:
    """Tokens of a row of pairs; `group_prompts` as in `shared_prefix_batch`."""
    before = [[], *(pairs[p].prompt_ids for p in row)]
    again = sum(
        len(pairs[p].prompt_ids) for p, prompt in zip(row, before, strict=False) if pairs[p].prompt_ids == prompt
    )
    return sum(shared_length(pairs[p]) for p in row) - again * group_prompts


def prompt_groups(pairs: Sequence[TokenizedPair]) -> list[list[TokenizedPair]]:
    """The pairs of each prompt, in the order in which prompts and pairs come."""
    groups: dict[tuple[int, ...], list[TokenizedPair]] = {}
    for pair in pairs:
        groups.setdefault(tuple(pair.prompt_ids), []).append(pair)
    return list(groups.values())


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


def fullest_row(pairs: Sequence[TokenizedPair], max_tokens_per_row: int) -> list[TokenizedPair]:
    """As many of the longest pairs as fit into one row beside at least one other; empty where no two fit."""
    by_length = sorted((pair for pair in pairs if pair.prompt_ids), key=shared_length)
    if len(by_length) < 2:
        return []
    room_beside_the_shortest = max_tokens_per_row - shared_length(by_length[0])
    row: list[TokenizedPair] = []
    room = max_tokens_per_row
    for pair in reversed(by_length):
        length = shared_length(pair)
        if length <= (room if row else room_beside_the_shortest):
            row.append(pair)
            room -= length
    return row if len(row) > 1 else []


def full_row(pairs: Sequence[TokenizedPair], max_tokens_per_row: int) -> list[TokenizedPair]:
    """`fullest_row`, with a made-up pair in the room that is left where other pairs may fill a row to its end."""
    row = fullest_row(pairs, max_tokens_per_row)
    total = sum(shared_length(pair) for pair in pairs if pair.prompt_ids)
    room = min(max_tokens_per_row, total) - sum(map(shared_length, row))
    if not row or room < 1:
        return row
    ids = row[0].prompt_ids + row[0].chosen_ids + row[0].rejected_ids
    ids = (ids * (1 + room // len(ids)))[:room]
    half = (room + 1) // 2
    return [*row, TokenizedPair(ids[:1], ids[1:half], ids[half:])]


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
