"""Preference pairs from a model's own responses: sample, score, pair the best with the worst (`tdpo pairs`).

Scored samples are appended to `<out>.partial.jsonl` batch by batch, so that an interrupted call goes on where it
stopped; the rows and their manifest `<out>.meta.json` are written at the end, each whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import Sampling
from ..environments import Environment, check_reward, score
from ..preferences import write_preferences
from ..records.files import open_no_link
from ..records.json_files import append_jsonl, read_jsonl, write_json
from ..records.locks import holder, lock
from ..runs import RunError, versions
from .engines import BUILT_IN, ResponseSampler
from .pairing import PairCounts, ScoredResponse, make_pairs
from .sampler import Progress, SampledResponse, SamplingSettings, check_fit, encode_prompts


@dataclass(frozen=True)
class PairSettings:
    """How many responses each prompt gets (`sampling.num_samples`), and how many pairs are made of them at most."""

    sampling: SamplingSettings = field(default_factory=lambda: SamplingSettings(num_samples=4))
    pairs_per_prompt: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.pairs_per_prompt <= self.sampling.num_samples // 2:
            raise ValueError(
                f"pairs_per_prompt={self.pairs_per_prompt} needs {2 * max(1, self.pairs_per_prompt)} samples a prompt "
                f"and must be at least 1; num_samples is {self.sampling.num_samples}"
            )


def pair_settings(section: Sampling, environment: Environment, seed: int) -> PairSettings:
    """The section `sampling` of a recipe, for an environment."""
    sampling = SamplingSettings(
        num_samples=section.samples_per_prompt,
        max_new_tokens=section.max_new_tokens or environment.max_new_tokens,
        temperature=section.temperature,
        top_p=section.top_p,
        top_k=section.top_k,
        seed=seed,
        batch_size=section.batch_size,
    )
    return PairSettings(sampling, section.pairs_per_prompt)


@dataclass(frozen=True)
class PairSummary:
    """The outcome of `sample_pairs`, which the manifest holds too.

    Rewards and lengths are over all responses. `seconds` and `tokens_per_second` (None if nothing was left to sample)
    are of this call, without the `resumed_samples` of earlier ones.
    """

    prompts: int
    samples: int
    resumed_samples: int
    counts: PairCounts
    reward_mean: float
    reward_std: float
    tokens_mean: float
    finished_share: float
    seconds: float
    tokens_per_second: float | None


def sample_pairs(
    model: Any,
    tokenizer: Any,
    environment: Environment,
    out: str | Path,
    settings: PairSettings,
    *,
    sampler: ResponseSampler = BUILT_IN,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> PairSummary:
    """Sample responses to `environment.train`, score them, and write preference rows with their rewards to `out`.

    A call that was interrupted is continued by the same call, with the built-in sampler to the same bytes. `progress`
    is called after every step with the number of tokens sampled by this call and of complete samples, earlier ones
    included.

    Raises FileExistsError if `out` is there (unless `overwrite`), RunError while another process samples into it,
    ValueError for unfinished samples of another model, environment or setting and where no pair can be made,
    RewardError for a reward that cannot be called or fails, and what `sampler` raises.
    """
    out = Path(out)
    lock_file = out.with_name(f".{out.name}.lock")
    with lock(lock_file, remove=True) as is_locked:
        if not is_locked:
            raise RunError(
                f"another process samples into {out}; wait for it, or give another name (it is {holder(lock_file)})"
            )
        return _sample_pairs(model, tokenizer, environment, out, settings, sampler, progress, overwrite)


def _sample_pairs(
    model: Any,
    tokenizer: Any,
    environment: Environment,
    out: Path,
    settings: PairSettings,
    sampler: ResponseSampler,
    progress: Progress | None,
    overwrite: bool,
) -> PairSummary:
    partial = _beside(out, "partial.jsonl")
    if out.exists() and not overwrite and not partial.exists():
        raise FileExistsError(f"{out} is already there: give another name, or allow it to be overwritten")
    if not environment.train:
        raise ValueError(f"environment {environment.name!r} has no prompts to train on")
    check_reward(environment, environment.train, settings.sampling.max_new_tokens)
    inputs, names = [p.rendered_from for p in environment.train], [p.id for p in environment.train]
    encoded = dict(enumerate(encode_prompts(tokenizer, inputs, names)))
    check_fit(model, encoded, settings.sampling.max_new_tokens)
    sampler.prepare(model, tokenizer, max(encoded.values(), key=len), settings.sampling)
    origin = {**_origin(model, environment, encoded, settings.sampling), **sampler.identity}
    done = _resume(partial, origin)
    resumed = len(done)

    def keep(responses: list[SampledResponse]) -> None:
        scored = _scored(environment, responses)
        _append(partial, {"samples": [asdict(item) for item in scored]})
        done.extend(scored)

    left = sorted(encoded.keys() - {item.prompt_index for item in done})
    started = time.monotonic()
    if left:
        sampler(
            model,
            tokenizer,
            [inputs[index] for index in left],
            settings.sampling,
            progress=_with_earlier(progress, resumed),
            prompt_indices=left,
            on_complete=keep,
        )
    seconds = time.monotonic() - started
    tokens = sum(item.tokens for item in done[resumed:])
    done.sort(key=lambda item: (item.prompt_index, item.sample_index))
    rows, counts = make_pairs(environment.train, done, settings.pairs_per_prompt)
    if not rows:
        raise ValueError(
            f"no pair can be made from {len(done)} samples of {len(encoded)} prompts ({counts.ties} ties, "
            f"{counts.identical} identical texts, {counts.empty} empty ones): draw more samples, raise the temperature "
            f"or check the reward {environment.reward_name!r}. The samples are kept in {partial}"
        )
    summary = _summary(done, counts, len(encoded), resumed, tokens, seconds)
    # The manifest goes first: where `out` exists, everything is there.
    write_json(
        _beside(out, "meta.json"),
        {
            "model": getattr(model.config, "_name_or_path", ""),
            "origin": origin,
            "pairs_per_prompt": settings.pairs_per_prompt,
            "summary": asdict(summary),
            "versions": versions(),
        },
    )
    write_preferences(out, rows)
    partial.unlink()
    return summary


def _scored(environment: Environment, responses: list[SampledResponse]) -> list[ScoredResponse]:
    prompts = [environment.train[item.prompt_index] for item in responses]
    rewards = score(environment, prompts, [item.text for item in responses])
    return [
        ScoredResponse(item.prompt_index, item.sample_index, item.text, len(item.token_ids), item.finished, reward)
        for item, reward in zip(responses, rewards, strict=True)
    ]


def _with_earlier(progress: Progress | None, samples: int) -> Progress | None:
    if progress is None:
        return None
    return lambda new_tokens, new_samples: progress(new_tokens, samples + new_samples)


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.{suffix}")


def _origin(
    model: Any, environment: Environment, encoded: dict[int, list[int]], sampling: SamplingSettings
) -> dict[str, Any]:
    """What the responses depend on. The batch size changes rounding alone, but resuming promises the same bytes."""
    prompts = [[prompt.id, prompt.prompt, encoded[index]] for index, prompt in enumerate(environment.train)]
    return {
        "environment": environment.name,
        "reward": environment.reward_name,
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "weights": _weights_digest(model),
        **asdict(sampling),
    }


def _weights_digest(model: Any) -> str:
    """A hash of about 1024 evenly spread values of every parameter: fast, and enough to tell two trainings apart."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().reshape(-1)
        spread = values[:: max(1, values.numel() // 1024)].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + spread.numpy().tobytes())
    return digest.hexdigest()


def _resume(partial: Path, origin: dict[str, Any]) -> list[ScoredResponse]:
    """The responses of an interrupted call; starts the file where there is none."""
    lines = read_jsonl(partial) if partial.exists() else []
    if not lines:
        partial.parent.mkdir(parents=True, exist_ok=True)
        _append(partial, {"origin": origin})
        return []
    before = lines[0].get("origin", {})
    changed = [
        f"{key} was {before.get(key)!r}, is {origin.get(key)!r}"
        for key in dict.fromkeys([*origin, *before])  # a server's engine is named, the built-in sampler is not
        if before.get(key) != origin.get(key)
    ]
    if changed:
        raise ValueError(
            f"{partial} holds the samples of another call ({'; '.join(changed)}): repeat that call to finish it, "
            "delete the file, or write to another name"
        )
    return [ScoredResponse(**item) for line in lines[1:] for item in line["samples"]]


def _append(path: Path, entry: dict[str, Any]) -> None:
    append_jsonl(path, entry)
    with open_no_link(path, "ab") as file:
        os.fsync(file.fileno())


def _summary(
    samples: list[ScoredResponse], counts: PairCounts, prompts: int, resumed: int, tokens: int, seconds: float
) -> PairSummary:
    rewards = [item.reward for item in samples]
    return PairSummary(
        prompts=prompts,
        samples=len(samples),
        resumed_samples=resumed,
        counts=counts,
        reward_mean=statistics.fmean(rewards),
        reward_std=statistics.pstdev(rewards),
        tokens_mean=statistics.fmean(item.tokens for item in samples),
        finished_share=statistics.fmean(item.finished for item in samples),
        seconds=seconds,
        tokens_per_second=tokens / seconds if tokens else None,
    )
