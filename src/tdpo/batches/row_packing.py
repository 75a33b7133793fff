"""Which prompts share a row: how long rows are, and how few tokens they can be made to compute."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import accumulate

from .responses import PromptResponses, shared_length


def row_length(prompts: Sequence[PromptResponses], row: Sequence[int], group_prompts: bool) -> int:
    """Tokens of a row that holds the prompts with these indices; `group_prompts` as in `shared_prefix_batch`."""
    before = [[], *(prompts[p].prompt_ids for p in row)]
    repeated = sum(
        len(prompts[p].prompt_ids) for p, ids in zip(row, before, strict=False) if prompts[p].prompt_ids == ids
    )
    return sum(shared_length(prompts[p]) for p in row) - repeated * group_prompts


def prompt_groups(prompts: Sequence[PromptResponses]) -> list[list[PromptResponses]]:
    """Those with the same prompt together, in the order in which prompts come, and within a group as they come."""
    groups: dict[tuple[int, ...], list[PromptResponses]] = {}
    for prompt in prompts:
        groups.setdefault(tuple(prompt.prompt_ids), []).append(prompt)
    return list(groups.values())


def group_rows(prompts: Sequence[PromptResponses]) -> list[list[int]]:
    """Indices of what stands in each row: those with the same prompt together, and so many of them to a row that the
    rows compute the fewest tokens (rows × width) over all. One to a row is best where one prompt comes often and the
    others do not."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for p, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt.prompt_ids), []).append(p)

    # Response tokens before each member of a group and after its last: a row's length is a difference of two of them.
    before = [
        list(accumulate((shared_length(prompts[p]) - len(ids) for p in group), initial=0))
        for ids, group in groups.items()
    ]

    def computed(most: int) -> int:
        widths = [
            len(ids) + ends[min(at + most, len(ends) - 1)] - ends[at]
            for ids, ends in zip(groups, before, strict=True)
            for at in range(0, len(ends) - 1, most)
        ]
        return len(widths) * max(widths)

    most = min(range(1, 1 + max(map(len, groups.values()))), key=computed)
    return [group[at : at + most] for group in groups.values() for at in range(0, len(group), most)]


def fullest_row(prompts: Sequence[PromptResponses], max_tokens_per_row: int) -> list[PromptResponses]:
    """As many of the longest as fit into one row beside at least one other; empty where no two fit."""
    by_length = sorted((prompt for prompt in prompts if prompt.prompt_ids), key=shared_length)
    if len(by_length) < 2:
        return []
    room_beside_the_shortest = max_tokens_per_row - shared_length(by_length[0])
    row: list[PromptResponses] = []
    room = max_tokens_per_row
    for prompt in reversed(by_length):
        length = shared_length(prompt)
        if length <= (room if row else room_beside_the_shortest):
            row.append(prompt)
            room -= length
    return row if len(row) > 1 else []


def full_row(prompts: Sequence[PromptResponses], max_tokens_per_row: int) -> list[PromptResponses]:
    """`fullest_row`, with a made-up prompt and responses in the room that is left where others may fill a row."""
    row = fullest_row(prompts, max_tokens_per_row)
    total = sum(shared_length(prompt) for prompt in prompts if prompt.prompt_ids)
    room = min(max_tokens_per_row, total) - sum(map(shared_length, row))
    if not row or room < 1:
        return row
    ids = [*row[0].prompt_ids, *(token for response in row[0].responses for token in response)]
    ids = (ids * (1 + room // len(ids)))[:room]
    half = (room + 1) // 2
    return [*row, PromptResponses(ids[:1], [ids[1:half], ids[half:]])]


def pack_rows(lengths: Sequence[int], max_tokens_per_row: int) -> list[list[int]]:
    """Rows of at most `max_tokens_per_row` tokens, as indices into `lengths`; what is longer has a row of its own.

    The number of rows is the one that computes the fewest tokens (rows × width), and of equals the larger, whose
    attention is narrower. So packing never computes more than rows of one do.
    """
    total, longest = sum(lengths), max(lengths)
    best, fewest = [[p] for p in range(len(lengths))], len(lengths) * longest
    for count in range(max(1, -(-total // max(max_tokens_per_row, longest))), len(lengths)):
        if count * longest > fewest:
            break  # no row is narrower than the longest entry
        rows = _balanced_rows(lengths, count)
        loads = [sum(lengths[p] for p in row) for row in rows]
        fits = all(load <= max_tokens_per_row or len(row) == 1 for load, row in zip(loads, rows, strict=True))
        if fits and (len(rows) * max(loads), -len(rows)) < (fewest, -len(best)):
            best, fewest = rows, len(rows) * max(loads)
    return best


def _balanced_rows(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Longest first, each to the row that is emptiest so far, of equals the first; a row keeps the order of indices."""
    rows: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, r) for r in range(count)]
    for p in sorted(range(len(lengths)), key=lambda p: -lengths[p]):
        load, r = emptiest[0]
        rows[r].append(p)
        heapq.heapreplace(emptiest, (load + lengths[p], r))
    return [sorted(row) for row in rows]
