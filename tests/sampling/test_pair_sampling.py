"""Pairs from a model's own samples: by hand, end to end, and interrupted at every point where that can happen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_models import model_here
from tdpo.environments import Environment, Prompt, RewardError, score
from tdpo.preferences import load_preferences
from tdpo.runs import RunError
from tdpo.sampling import pair_sampling
from tdpo.sampling.pair_sampling import PairSettings, sample_pairs
from tdpo.sampling.pairing import PairCounts, ScoredResponse, make_pairs
from tdpo.sampling.sampler import SamplingSettings, sample

Build = Callable[..., Any]


@pytest.fixture
def tiny_model() -> Build:
    """On the GPU where there is one."""
    return model_here


WORDS = [
    "the cat",
    "what a wonderful day it was",
    "a",
    "the dog ran away",
    "sat",
    "a terrible answer and the mat",
    "day",
]
PLAIN = [Prompt(f"p{i}", text) for i, text in enumerate(WORDS)]
CHATS = [Prompt(f"c{i}", [{"role": "user", "content": text}]) for i, text in enumerate(WORDS)]
# Two prompts a chunk, four chunks.
SETTINGS = PairSettings(SamplingSettings(num_samples=4, max_new_tokens=6, batch_size=8, seed=3), pairs_per_prompt=2)


def vowels(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(character in "aeiou" for character in text)) for text in completions]


def environment(prompts: list[Prompt], reward: Callable[..., Any] = vowels) -> Environment:
    return Environment("toy", prompts, [], reward, "vowels", 6, "")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def scored(*rewards: float, texts: str = "abcdefgh", prompt: int = 0) -> list[ScoredResponse]:
    return [ScoredResponse(prompt, k, texts[k], 1, k % 2 == 0, reward) for k, reward in enumerate(rewards)]


def test_best_with_worst_by_hand() -> None:
    made, counts = make_pairs(PLAIN, scored(0.1, 0.9, 0.5, 0.3), pairs_per_prompt=2)
    assert made == [
        {
            "prompt": "the cat", "chosen": "b", "rejected": "a", "chosen_reward": 0.9, "rejected_reward": 0.1,
            "chosen_finished": False, "rejected_finished": True, "prompt_id": "p0",
        },
        {
            "prompt": "the cat", "chosen": "c", "rejected": "d", "chosen_reward": 0.5, "rejected_reward": 0.3,
            "chosen_finished": True, "rejected_finished": False, "prompt_id": "p0",
        },
    ]  # fmt: skip
    assert counts == PairCounts(pairs=2)


def pairs(made: list[dict[str, Any]]) -> list[str]:
    return [row["chosen"] + row["rejected"] for row in made]


@pytest.mark.parametrize(
    ("samples", "limit", "expected", "counts"),
    [
        (scored(0.1, 0.9, 0.5, 0.3), 1, ["ba"], PairCounts(pairs=1)),
        # The middle one of an odd number is in no pair.
        (scored(1, 2, 3), 2, ["ca"], PairCounts(pairs=1)),
        (scored(0, 0, 1, 0), 2, ["cd"], PairCounts(pairs=1, ties=1)),
        (scored(1, 1), 1, [], PairCounts(ties=1, prompts_without_pair=1)),
        # The same text again is left out even if a noisy reward tells them apart; what is left is one pair.
        (scored(0, 1, 2, 5, texts="abca"), 2, ["ca"], PairCounts(pairs=1, identical=1)),
        (scored(0, 1, 2, 3, texts="  \0a"), 2, [], PairCounts(empty=3, prompts_without_pair=1)),
        (scored(0, 1) + scored(7, 7, prompt=1), 1, ["ba"], PairCounts(pairs=1, ties=1, prompts_without_pair=1)),
    ],
)
def test_ties_copies_and_empty_texts_are_counted(
    samples: list[ScoredResponse], limit: int, expected: list[str], counts: PairCounts
) -> None:
    made, counted = make_pairs(PLAIN, samples, limit)
    assert pairs(made) == expected
    assert counted == counts


@pytest.mark.parametrize("prompts", [PLAIN, CHATS], ids=["plain", "chat"])
def test_file_is_what_preferences_read(
    prompts: list[Prompt], tiny_model: Build, tokenizer: Any, tmp_path: Path
) -> None:
    out, toy, model = tmp_path / "new" / "pairs.jsonl", environment(prompts), tiny_model("llama")
    seen: list[tuple[int, int]] = []
    summary = sample_pairs(model, tokenizer, toy, out, SETTINGS, progress=lambda *now: seen.append(now))
    assert files(out.parent) == ["pairs.jsonl", "pairs.jsonl.meta.json"]

    # The samples are those of one plain call, whatever the batches.
    plain = sample(model, tokenizer, [prompt.prompt for prompt in prompts], SamplingSettings(4, 6, seed=3))
    rewards = score(toy, [prompts[item.prompt_index] for item in plain], [item.text for item in plain])
    samples = [
        ScoredResponse(item.prompt_index, item.sample_index, item.text, len(item.token_ids), item.finished, reward)
        for item, reward in zip(plain, rewards, strict=True)
    ]
    assert rows(out) == make_pairs(prompts, samples, 2)[0]

    loaded = load_preferences(out)
    assert len(loaded.rows) == summary.counts.pairs > 5
    assert all(row.conversational == (prompts is CHATS) for row in loaded.rows)
    assert all(row.extra["chosen_reward"] > row.extra["rejected_reward"] for row in loaded.rows)
    assert {row.chosen_finished for row in loaded.rows} <= {item.finished for item in plain}

    tokens = sum(len(item.token_ids) for item in plain)
    assert seen == sorted(seen) and seen[-1] == (tokens, 28)
    assert (summary.prompts, summary.samples, summary.resumed_samples) == (7, 28, 0)
    assert summary.reward_mean == pytest.approx(sum(rewards) / 28)
    assert summary.tokens_mean == pytest.approx(tokens / 28)
    assert summary.tokens_per_second == pytest.approx(tokens / summary.seconds)
    meta = json.loads((out.parent / "pairs.jsonl.meta.json").read_text())
    assert meta["summary"]["counts"]["pairs"] == len(loaded.rows)
    assert meta["origin"]["seed"] == 3 and meta["pairs_per_prompt"] == 2 and meta["versions"]["torch"]


class Stop(Exception):
    pass


def failing_after(calls: int) -> Callable[..., list[float]]:
    left = iter(range(calls))

    def reward(completions: list[str], **_: Any) -> list[float]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return vowels(completions)

    return reward


@pytest.mark.parametrize("done", [0, 1, 3])
@pytest.mark.parametrize("torn", [b"", b'{"samples": [{"prompt_index": 4, "text": "half'])
def test_resumed_is_uninterrupted_byte_for_byte(
    done: int, torn: bytes, tiny_model: Build, tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)  # in which another batch would show
    whole, out = tmp_path / "whole.jsonl", tmp_path / "pairs.jsonl"
    sample_pairs(model, tokenizer, environment(CHATS), whole, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        sample_pairs(model, tokenizer, environment(CHATS, failing_after(done)), out, SETTINGS)
    partial = tmp_path / "pairs.jsonl.partial.jsonl"
    assert not out.exists() and len(rows(partial)) == 1 + done
    with partial.open("ab") as file:
        file.write(torn)
    seen: list[tuple[int, int]] = []
    chunks: list[int] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        chunks.append(len(completions))
        return vowels(completions)

    summary = sample_pairs(
        model, tokenizer, environment(CHATS, reward), out, SETTINGS, progress=lambda *now: seen.append(now)
    )
    assert out.read_bytes() == whole.read_bytes()
    assert summary.resumed_samples == 8 * done and sum(chunks) == 28 - 8 * done
    assert seen[0][1] >= 8 * done and seen[-1][1] == 28
    assert not partial.exists()


def test_interrupted_while_writing_the_result(
    tiny_model: Build, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, whole, out = tiny_model("gpt2"), tmp_path / "whole.jsonl", tmp_path / "pairs.jsonl"
    sample_pairs(model, tokenizer, environment(CHATS), whole, SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(pair_sampling, "write_preferences", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            sample_pairs(model, tokenizer, environment(CHATS), out, SETTINGS)
    assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            sample_pairs(model, tokenizer, environment(CHATS, failing_after(0)), out, SETTINGS)  # nothing to score
    summary = sample_pairs(model, tokenizer, environment(CHATS, failing_after(0)), out, SETTINGS)
    assert summary.tokens_per_second is None and summary.resumed_samples == 28
    assert out.read_bytes() == whole.read_bytes()


def test_a_second_call_into_the_same_file_is_refused_while_the_first_runs(
    tiny_model: Build, tokenizer: Any, tmp_path: Path
) -> None:
    out, model = tmp_path / "pairs.jsonl", tiny_model("llama")
    refused: list[str] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        if not refused:
            with pytest.raises(RunError, match=r"another process samples into .*pairs\.jsonl; wait for it") as caught:
                sample_pairs(model, tokenizer, environment(CHATS), out, SETTINGS, overwrite=True)
            refused.append(str(caught.value))
        return vowels(completions)

    summary = sample_pairs(model, tokenizer, environment(CHATS, reward), out, SETTINGS)
    assert refused and (summary.samples, summary.resumed_samples) == (28, 0)
    assert files(tmp_path) == ["pairs.jsonl", "pairs.jsonl.meta.json"], "the lock goes with the call"
    with pytest.raises(FileExistsError):
        sample_pairs(model, tokenizer, environment(CHATS), out, SETTINGS)


def test_nothing_is_written_through_a_planted_link(tiny_model: Build, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine\n")
    out = tmp_path / "pairs.jsonl"
    for name in (".pairs.jsonl.lock", "pairs.jsonl.partial.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
        with pytest.raises((OSError, ValueError)):
            sample_pairs(tiny_model("llama"), tokenizer, environment(CHATS), out, SETTINGS)
        (tmp_path / name).unlink()
    (tmp_path / f".pairs.jsonl.{os.getpid()}.tmp").symlink_to(tmp_path / "mine")
    (tmp_path / "pairs.jsonl.meta.json").symlink_to(tmp_path / "mine")
    sample_pairs(tiny_model("llama"), tokenizer, environment(CHATS), out, SETTINGS)
    assert (tmp_path / "mine").read_text() == "mine\n" and len(rows(out)) > 5


def test_samples_of_another_call_are_refused(tiny_model: Build, tokenizer: Any, tmp_path: Path) -> None:
    out, model = tmp_path / "pairs.jsonl", tiny_model("llama")
    with pytest.raises(KeyboardInterrupt):
        sample_pairs(model, tokenizer, environment(CHATS, failing_after(1)), out, SETTINGS)
    partial = (tmp_path / "pairs.jsonl.partial.jsonl").read_bytes()
    hotter = PairSettings(SamplingSettings(num_samples=4, max_new_tokens=6, batch_size=8, seed=3, temperature=1.5))
    with pytest.raises(ValueError, match=r"another call \(temperature was 1.0, is 1.5\): repeat that call to finish"):
        sample_pairs(model, tokenizer, environment(CHATS), out, hotter)
    with pytest.raises(ValueError, match="prompts was"):
        sample_pairs(model, tokenizer, environment(CHATS[1:]), out, SETTINGS)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(1e-3)
    with pytest.raises(ValueError, match="weights was"):
        sample_pairs(model, tokenizer, environment(CHATS), out, SETTINGS)
    assert (tmp_path / "pairs.jsonl.partial.jsonl").read_bytes() == partial


def test_samples_may_be_paired_differently_after_an_interruption(
    tiny_model: Build, tokenizer: Any, tmp_path: Path
) -> None:
    out, model = tmp_path / "pairs.jsonl", tiny_model("llama")
    with pytest.raises(KeyboardInterrupt):
        sample_pairs(model, tokenizer, environment(CHATS, failing_after(3)), out, SETTINGS)
    summary = sample_pairs(model, tokenizer, environment(CHATS), out, PairSettings(SETTINGS.sampling, 1))
    assert summary.counts.pairs <= 7


def test_a_finished_file_is_not_overwritten_unasked(tiny_model: Build, tokenizer: Any, tmp_path: Path) -> None:
    out, model = tmp_path / "pairs.jsonl", tiny_model("llama")
    out.write_text("mine\n")
    with pytest.raises(FileExistsError, match=r"pairs\.jsonl is already there"):
        sample_pairs(model, tokenizer, environment(CHATS), out, SETTINGS)
    assert files(tmp_path) == ["pairs.jsonl"] and out.read_text() == "mine\n"
    sample_pairs(model, tokenizer, environment(CHATS), out, SETTINGS, overwrite=True)
    first = out.read_bytes()
    sample_pairs(model, tokenizer, environment(CHATS), out, SETTINGS, overwrite=True)
    assert out.read_bytes() == first
    other = PairSettings(SamplingSettings(num_samples=4, max_new_tokens=6, batch_size=8, seed=4))
    sample_pairs(model, tokenizer, environment(CHATS), out, other, overwrite=True)
    assert out.read_bytes() != first


def test_a_constant_reward_makes_no_pairs_and_says_so(tiny_model: Build, tokenizer: Any, tmp_path: Path) -> None:
    toy = environment(CHATS, lambda completions, **_: [0.5] * len(completions))
    with pytest.raises(ValueError, match=r"no pair can be made from 28 samples of 7 prompts \(14 ties, .*'vowels'"):
        sample_pairs(tiny_model("llama"), tokenizer, toy, tmp_path / "pairs.jsonl", SETTINGS)
    assert files(tmp_path) == ["pairs.jsonl.partial.jsonl"]


def test_a_broken_reward_keeps_the_samples_before_it(tiny_model: Build, tokenizer: Any, tmp_path: Path) -> None:
    def reward(prompts: list[Any], completions: list[str], **_: Any) -> list[float]:
        return [float("nan") if prompt[-1]["content"] == "sat" else 1.0 for prompt in prompts]

    with pytest.raises(RewardError, match=r"gave nan for prompt 'c4', response "):
        sample_pairs(tiny_model("llama"), tokenizer, environment(CHATS, reward), tmp_path / "pairs.jsonl", SETTINGS)
    kept = rows(tmp_path / "pairs.jsonl.partial.jsonl")
    assert 1 < len(kept) < 5


def test_nothing_is_started_that_cannot_be_finished(tiny_model: Build, tokenizer: Any, tmp_path: Path) -> None:
    model, out = tiny_model("llama"), tmp_path / "pairs.jsonl"
    with pytest.raises(ValueError, match="'toy' has no prompts"):
        sample_pairs(model, tokenizer, environment([]), out, SETTINGS)
    with pytest.raises(ValueError, match="does not fit into the model's context"):
        sample_pairs(model, tokenizer, environment([*CHATS, Prompt("long", "cat " * 300)]), out, SETTINGS)
    assert files(tmp_path) == []


@pytest.mark.parametrize(("samples", "wanted"), [(1, 1), (4, 3), (4, 0)])
def test_settings_that_cannot_give_pairs_are_refused(samples: int, wanted: int) -> None:
    with pytest.raises(ValueError, match=rf"pairs_per_prompt={wanted} needs .* num_samples is {samples}"):
        PairSettings(SamplingSettings(num_samples=samples), wanted)
