"""The reference cache by itself: found again, finished by whoever comes, refused to whoever it is not for."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.tiny_models import build_model
from tdpo.batches import PromptResponses, TokenizedPair, counted_tokens, padded_batch, shared_prefix_batch
from tdpo.models import LoraSettings, add_lora, causal_lm_of
from tdpo.records.caches import readable_bytes
from tdpo.reference_cache import (
    BrokenCache,
    CacheLayout,
    CachePlan,
    Field,
    Fingerprint,
    ForeignCache,
    ReferenceCache,
    build_cache,
    building,
    model_digest,
    storage,
)
from tdpo.reference_cache.fingerprint import tokens_digest
from tdpo.training.offline.reference_caching import reason_against

FIELDS = [
    Field("expected_weight", torch.float32, 5),
    Field("offset", torch.float64),
    Field("hidden", torch.bfloat16, 3),
    Field("likeliest", torch.int32, 2),
]


def made_up_pairs(count: int, seed: int = 0) -> list[TokenizedPair]:
    draw = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [draw.randrange(300) for _ in range(draw.randint(least, most))]

    return [TokenizedPair.of(ids(0, 6), [i, *ids(0, 9)], [*ids(1, 9), 300 + i]) for i in range(count)]


def value_of(pair: TokenizedPair, rejected: bool, position: int, field: Field) -> Tensor:
    """Made from the pair's own tokens, so that a value at a wrong row shows."""
    ids = pair.rejected_ids if rejected else pair.chosen_ids
    seed = sum((i + 1) * (k + 1) for k, i in enumerate(pair.prompt_ids + ids)) * 7 + position * 2 + rejected
    make = torch.Generator().manual_seed(seed)
    return torch.randint(-99, 99, (field.width or 1,), generator=make).to(field.dtype)


def values(pairs: Sequence[TokenizedPair]) -> dict[str, Tensor]:
    """As a reference would give them: all chosen responses, then all rejected ones."""
    found: dict[str, list[Tensor]] = {field.name: [] for field in FIELDS}
    for rejected in (False, True):
        for pair in pairs:
            for position in range(counted_tokens(pair)[rejected]):
                for field in FIELDS:
                    found[field.name].append(value_of(pair, rejected, position, field))
    return {f.name: torch.stack(found[f.name]) if f.width else torch.cat(found[f.name]) for f in FIELDS}


def made_plan(root: Path, pairs: Sequence[TokenizedPair], model: str = "m") -> CachePlan:
    layout = CacheLayout.of(pairs, FIELDS)
    return CachePlan(root, Fingerprint(model, "no", layout.data_digest, "made up", "padded rows"), layout)


def check(cache: ReferenceCache, pairs: Sequence[TokenizedPair]) -> None:
    rows = cache.rows(pairs)
    assert rows is not None
    for name, expected in values(pairs).items():
        assert torch.equal(cache.fetch(rows)[name], expected), name


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "CHUNK_TOKENS", 40)
    monkeypatch.setattr(building, "POLL_SECONDS", 0.01)


def test_what_was_said_is_found_again_in_any_order(tmp_path: Path) -> None:
    pairs = made_up_pairs(30)
    cache = build_cache(made_plan(tmp_path, pairs), values, batch_size=4)
    assert len(cache.layout.chunks) > 5
    shuffled = random.Random(1).sample(pairs, 30)
    for batch in ([pairs[3]], pairs[5:9], shuffled, [pairs[2], pairs[2]]):
        check(cache, batch)
    assert cache.rows([pairs[0], TokenizedPair.of([1], [2], [3])]) is None


@pytest.mark.parametrize("layout", [padded_batch, shared_prefix_batch])
def test_rows_follow_the_flat_tokens_of_a_batch(layout: Any) -> None:
    pairs = [pair for pair in made_up_pairs(9) if pair.prompt_ids]
    batch = layout(pairs, 0)
    rows = CacheLayout.of(pairs, FIELDS).rows(pairs)
    assert rows is not None and rows.shape == batch.target_ids.shape
    assert sorted(rows.tolist()) == list(range(len(rows)))
    counts = torch.bincount(batch.sequence_index, minlength=2 * len(pairs)).tolist()
    assert counts == [counted_tokens(p)[0] for p in pairs] + [counted_tokens(p)[1] for p in pairs]


def test_the_same_pairs_in_another_order_are_the_same_data(tmp_path: Path) -> None:
    pairs = made_up_pairs(12)
    one, other = made_plan(tmp_path, pairs), made_plan(tmp_path, [*reversed(pairs), pairs[4]])
    assert one.fingerprint == other.fingerprint and one.folder == other.folder
    changed = TokenizedPair.of(pairs[3].prompt_ids, [*pairs[3].chosen_ids, 7], pairs[3].rejected_ids)
    # Tokens that move from the prompt to the response change what is asked of the reference.
    moved = (
        TokenizedPair.of([1, 2], [3, 4], pairs[5].rejected_ids),
        TokenizedPair.of([1], [2, 3, 4], pairs[5].rejected_ids),
    )
    variants = [[*pairs[:3], changed, *pairs[4:]], [*pairs, moved[0]], [*pairs, moved[1]], pairs[1:]]
    assert len({made_plan(tmp_path, v).fingerprint.key for v in [pairs, *variants]}) == 5
    assert made_plan(tmp_path, pairs, model="another").folder != one.folder


def test_any_number_of_responses_is_found_again(tmp_path: Path) -> None:
    """A value of every token, by its prompt and its response; the rows follow the flat tokens of a batch."""
    prompts = [PromptResponses([1, 2], [[i, *range(k)] for k in range(1 + i % 4)]) for i in range(9)]
    fields = [Field("said", torch.int32)]

    def said(batch: Sequence[PromptResponses]) -> dict[str, Tensor]:
        flat = padded_batch(batch, 0)
        return {"said": (flat.target_ids * 100 + flat.response_index % flat.input_ids.shape[1]).int()}

    layout = CacheLayout.of(prompts, fields)
    plan = CachePlan(tmp_path, Fingerprint("m", "no", layout.data_digest, "made up", "padded rows"), layout)
    cache = build_cache(plan, said, batch_size=2)
    for batch in (prompts, prompts[3:4], [prompts[7], prompts[0], prompts[5]]):
        rows = cache.rows(batch)
        assert rows is not None
        assert cache.fetch(rows)["said"].equal(said(batch)["said"])
    split = [PromptResponses([1, 2], [ids]) for prompt in prompts for ids in prompt.responses]
    assert CacheLayout.of(split, fields).data_digest != layout.data_digest


def test_caches_of_pairs_are_still_found() -> None:
    """The digests that earlier versions wrote: they say which cache is whose, and which inputs a run had."""
    pair = TokenizedPair.of([1, 2], [3], [4, 5])
    assert tokens_digest(pair).hex() == "c30f4f4e0b105fbf91b923cacbaaef33"
    with_gap = TokenizedPair.of([1, 2], [3, 7, 8], [4, 5], chosen_gaps=((1, 2),))
    assert tokens_digest(with_gap).hex() == "eefa13d5b6927c280ee83438a4b006ce"


def test_a_second_run_computes_nothing(tmp_path: Path) -> None:
    pairs = made_up_pairs(10)
    build_cache(made_plan(tmp_path, pairs), values, batch_size=3)
    said: list[str] = []

    def never(_: Any) -> dict[str, Tensor]:
        raise AssertionError("the reference ran again")

    check(build_cache(made_plan(tmp_path, pairs), never, batch_size=3, say=said.append), pairs)
    assert "read from" in said[0]


def test_an_interrupted_cache_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pairs, seen = made_up_pairs(30), []

    def until_the_twelfth(some: Sequence[TokenizedPair]) -> dict[str, Tensor]:
        if len(seen) >= 12:
            raise KeyboardInterrupt
        seen.extend(some)
        return values(some)

    plan = made_plan(tmp_path, pairs)
    with pytest.raises(KeyboardInterrupt):
        build_cache(plan, until_the_twelfth, batch_size=1)
    assert not plan.is_finished
    again: list[TokenizedPair] = []
    progress: list[tuple[int, int, str]] = []
    said: list[str] = []

    def rest(some: Sequence[TokenizedPair]) -> dict[str, Tensor]:
        again.extend(some)
        return values(some)

    cache = build_cache(plan, rest, batch_size=1, say=said.append, progress=lambda *args: progress.append(args))
    check(cache, pairs)
    assert "are there already" in said[0]
    repeated = [pair for pair in again if pair in seen]
    longest = max(len(chunk) for chunk in cache.layout.chunks)
    assert len(again) < 30 and len(repeated) < longest, "no more than one unfinished chunk is repeated"
    assert progress[-1][:2] == (30, 30)
    assert not plan.staging.exists()


def _killed_child(root: str, ready: Any) -> None:
    calls = 0

    def slow(some: Sequence[TokenizedPair]) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls > 8:
            ready.set()
            time.sleep(60)
        return values(some)

    storage.CHUNK_TOKENS = 40
    build_cache(made_plan(Path(root), made_up_pairs(30)), slow, batch_size=2)


def test_a_killed_run_leaves_what_the_next_one_finishes(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    child = fork.Process(target=_killed_child, args=(str(tmp_path), ready))
    child.start()
    assert ready.wait(30)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    pairs, calls = made_up_pairs(30), []

    def counted(some: Sequence[TokenizedPair]) -> dict[str, Tensor]:
        calls.append(some)
        return values(some)

    check(build_cache(made_plan(tmp_path, pairs), counted, batch_size=2), pairs)
    assert sum(map(len, calls)) < 24, "what the killed run had finished was not computed again"


def test_two_runs_make_one_cache(tmp_path: Path) -> None:
    pairs, calls, said = made_up_pairs(20), [], []
    plan = made_plan(tmp_path, pairs)

    def slow(some: Sequence[TokenizedPair]) -> dict[str, Tensor]:
        calls.append(some)
        time.sleep(0.02)
        return values(some)

    def run() -> None:
        check(build_cache(plan, slow, batch_size=2, say=said.append), pairs)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(len, calls)) == 20
    assert any("Another run is making this reference cache" in sentence for sentence in said)


def test_processes_share_the_work(tmp_path: Path) -> None:
    pairs = made_up_pairs(30)
    done: dict[int, list[TokenizedPair]] = {0: [], 1: [], 2: []}

    def run(rank: int) -> None:
        def mine(some: Sequence[TokenizedPair]) -> dict[str, Tensor]:
            done[rank].extend(some)
            return values(some)

        check(build_cache(made_plan(tmp_path, pairs), mine, batch_size=2, rank=rank, processes=3), pairs)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(done.values()) and sum(map(len, done.values())) == 30


def spoil(path: Path, offset: int = 100) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


DAMAGE = {
    "one bit": (lambda folder: spoil(folder / "hidden.bin"), "were changed or spoiled"),
    "cut short": (lambda folder: os.truncate(folder / "offset.bin", 64), "offset.bin has 64 bytes, expected"),
    "missing": (lambda folder: (folder / "likeliest.bin").unlink(), "likeliest.bin is missing"),
    "manifest": (lambda folder: (folder / "cache.json").write_text("{"), "cannot be read"),
    "no checksums": (
        lambda folder: (folder / "cache.json").write_text(
            json.dumps({**json.loads((folder / "cache.json").read_text()), "checksums": []})
        ),
        "lists 0 of",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_mended(damage: str, tmp_path: Path) -> None:
    harm, message = DAMAGE[damage]
    pairs = made_up_pairs(20)
    plan = made_plan(tmp_path, pairs)
    build_cache(plan, values, batch_size=4)
    harm(plan.folder)
    with pytest.raises(BrokenCache, match=message):
        ReferenceCache(plan.folder, plan.fingerprint, plan.layout)
    said: list[str] = []
    check(build_cache(plan, values, batch_size=4, say=said.append), pairs)
    assert "damaged" in said[0] and str(plan.folder) in said[0] and "made again" in said[0]


def test_a_foreign_cache_is_refused_and_kept(tmp_path: Path) -> None:
    pairs = made_up_pairs(8)
    theirs, ours = made_plan(tmp_path, pairs, model="theirs"), made_plan(tmp_path, pairs)
    build_cache(theirs, values, batch_size=4)
    shutil.copytree(theirs.folder, ours.folder)
    with pytest.raises(ForeignCache, match=r"made for another model, .*delete the folder"):
        build_cache(ours, values, batch_size=4)
    assert ours.folder.exists()


def test_a_full_disk_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = made_plan(tmp_path, made_up_pairs(8))
    monkeypatch.setattr(building, "free_bytes", lambda _: building.SPARE + plan.layout.bytes - 1)
    with pytest.raises(OSError, match=r"needs .* in .*, where .* are free .*reference_cache_dir.*reference: model"):
        build_cache(plan, values, batch_size=4)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(building, "free_bytes", lambda _: building.SPARE + plan.layout.bytes)
    build_cache(plan, values, batch_size=4)


def test_the_size_that_is_announced_is_the_size_that_is_written(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, made_up_pairs(25))
    build_cache(plan, values, batch_size=4)
    assert sum(p.stat().st_size for p in plan.folder.glob("*.bin")) == plan.layout.bytes
    assert building.readable_bytes(plan.layout.bytes) in plan.size()
    assert [building.readable_bytes(b) for b in (12, 1500, 75_300_000, 5.9e11, 2e12)] == [
        "12 B", "1.5 kB", "75.3 MB", "590 GB", "2 TB",
    ]  # fmt: skip


def test_the_models_digest_is_that_of_what_it_says() -> None:
    plain = model_digest(build_model("llama"))
    assert plain == model_digest(build_model("llama"))
    assert plain != model_digest(build_model("llama", seed=1))
    assert plain != model_digest(build_model("llama", dtype=torch.bfloat16))
    one_bit = build_model("llama")
    with torch.no_grad():
        one_bit.model.norm.weight[3] = torch.nextafter(one_bit.model.norm.weight[3], torch.tensor(9.0))
    assert plain != model_digest(one_bit)
    adapted = add_lora(build_model("llama"), LoraSettings(rank=2))
    assert plain == model_digest(causal_lm_of(adapted), adapter_prefix="lora_"), "with its adapter off it is the base"
    assert plain != model_digest(causal_lm_of(adapted))
    rotary = build_model("llama")
    rotary.config.rope_parameters = {**(rotary.config.rope_parameters or {}), "rope_theta": 7.0}
    assert plain != model_digest(rotary)


def test_bf16_keeps_its_bits() -> None:
    field = Field("hidden", torch.bfloat16, 4)
    given = torch.tensor([[1.5, -0.0, float("inf"), 1e-40], [3e38, -7.25, 0.1, -1e-3]], dtype=torch.bfloat16)
    stored = storage.as_array(given, field)
    assert stored.dtype == np.int16
    assert torch.equal(storage.as_tensor(stored, field).view(torch.int16), given.view(torch.int16))


def test_a_new_cache_keeps_the_limit_and_says_what_it_deleted(tmp_path: Path) -> None:
    pairs, said = made_up_pairs(20), []
    old = replace(made_plan(tmp_path, pairs, "old"), about={"model": "org/old", "data": "pairs.jsonl"})
    used = build_cache(made_plan(tmp_path, pairs, "used"), values, batch_size=4)
    build_cache(old, values, batch_size=4)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    plan = replace(made_plan(tmp_path, pairs, "new"), limit=size + old.layout.bytes - 1)
    assert plan.is_within_limit
    check(build_cache(plan, values, batch_size=4, say=said.append), pairs)
    assert said[0].startswith(f"Deleted the reference cache {old.folder.name} (org/old, pairs.jsonl, ")
    assert "last used 20" in said[0] and "(TDPO_CACHE_LIMIT)" in said[0] and used.folder.exists()
    full = replace(made_plan(tmp_path, pairs, "another"), limit=old.layout.bytes)
    limit = f"{readable_bytes(old.layout.bytes)} (TDPO_CACHE_LIMIT)"
    said_by_auto = f"a cache ({full.size()}) would exceed the limit of all caches, {limit}"
    assert not full.is_within_limit and reason_against(full, 100.0, 20, False) == said_by_auto
    with pytest.raises(OSError, match=r"would exceed the limit .*\(TDPO_CACHE_LIMIT\)\. Raise it, name a folder"):
        build_cache(full, values, batch_size=4)
    assert not full.staging.exists() and plan.folder.exists()
