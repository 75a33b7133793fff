"""The numbers of one cell, from what its evaluation left behind: measured.json in its folder.

prompts    ids of the held-out prompts
clusters   the group of each of them, such as its theme
by_prompt  {metric: [a value or null for each prompt]}
overall    {metric: a value or null}, what is not a mean over prompts
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import Study
from ..diversity import Diversity, measure_diversity
from ..embeddings import SentenceEmbedder
from ..environments import Environment
from ..evaluation import metrics_of_lines
from ..models.devices import device_of
from ..records.json_files import read_jsonl, write_json
from ..records.names import ANSWERS_FILE, EVALUATION_FILE, MEASURED_FILE, SAMPLES_FILE
from ..records.study_tables import CellKey
from ..runs import RunDirectory
from .cells import StudyFiles, task_environment, task_of
from .costs import costs
from .meeting import adapter_factor

Line = dict[str, Any]


@dataclass(frozen=True)
class Responses:
    """Lines of samples.jsonl as `[prompts][samples]`: responses of policy and reference, in one order."""

    prompts: list[str]
    own: list[list[Line]]
    reference: list[list[Line]]

    @classmethod
    def read(cls, run: RunDirectory, *, is_reference: bool) -> Responses:
        lines = read_jsonl(run.path / SAMPLES_FILE)
        prompts = list(dict.fromkeys(line["prompt_id"] for line in lines))

        def by_prompt(model: str) -> list[list[Line]]:
            groups: dict[str, list[Line]] = {prompt: [] for prompt in prompts}
            for line in lines:
                if line["model"] == model:
                    groups[line["prompt_id"]].append(line)
            return [sorted(groups[prompt], key=lambda line: line["sample_index"]) for prompt in prompts]

        return cls(prompts, by_prompt("base" if is_reference else "trained"), by_prompt("base"))

    def values(self, name: str) -> list[list[Any]]:
        return [[line[name] for line in group] for group in self.own]


def judge(study: Study, files: StudyFiles, cell: CellKey) -> None:
    """Measure a cell that has been evaluated, and write measured.json."""
    run = RunDirectory(files.run(cell))
    responses = Responses.read(run, is_reference=cell.arm == "reference")
    environment = task_environment(task_of(study, cell.task))
    by_prompt = _means(responses) | _exact_modes(run, responses, is_reference=cell.arm == "reference")
    overall: dict[str, float | None] = _overall(responses, run.read_json(EVALUATION_FILE))
    diversity = _diversity(responses, environment, study.embeddings, study.model.device)
    overall |= diversity.overall | costs(study, files, cell, run) | adapter_factor(files, cell)
    write_json(
        files.cell(cell) / MEASURED_FILE,
        {
            "prompts": responses.prompts,
            "clusters": _clusters(responses.prompts, environment),
            "by_prompt": by_prompt | diversity.per_prompt,
            "overall": overall,
        },
    )


def _clusters(prompt_ids: Sequence[str], environment: Environment | None) -> list[str]:
    """The cluster of each prompt as the environment names it; the prompt's id where there is none."""
    if environment is None:
        return list(prompt_ids)
    by_id = {prompt.id: prompt for prompt in environment.held_out}
    return [environment.cluster_of(by_id[prompt_id]) for prompt_id in prompt_ids]


def _means(responses: Responses) -> dict[str, list[float | None]]:
    """Metrics that are the mean over the responses to a prompt: one value a prompt."""

    def means(groups: Sequence[Sequence[Line]], value: Callable[[Line], float | None]) -> list[float | None]:
        return [_mean([value(line) for line in group]) for group in groups]

    def squared(line: Line) -> float | None:
        return None if line["reward"] is None else line["reward"] ** 2

    numbers = {
        "reward_mean": means(responses.own, lambda line: line["reward"]),
        "reward_square": means(responses.own, squared),
        "forward_kl": means(responses.reference, lambda line: line["forward_kl"]),
        "forward_kl_tokens": means(responses.reference, lambda line: _tokens_where(line, "forward_kl")),
        "reverse_kl": means(responses.own, lambda line: line["reverse_kl"]),
        "reverse_kl_tokens": means(responses.own, lambda line: _tokens_where(line, "reverse_kl")),
        "response_tokens": means(responses.own, lambda line: line["tokens"]),
        "policy_entropy": means(responses.own, lambda line: line["policy_entropy"]),
    }
    return {name: values for name, values in numbers.items() if any(value is not None for value in values)}


def _exact_modes(run: RunDirectory, responses: Responses, *, is_reference: bool) -> dict[str, list[float | None]]:
    """Metrics of the modes from the exact probabilities of their answers, where the task knows answers."""
    path = run.path / ANSWERS_FILE
    if not path.exists():
        return {}
    return metrics_of_lines(read_jsonl(path), responses.prompts, "base" if is_reference else "trained")


def _tokens_where(line: Line, metric: str) -> float | None:
    return None if line[metric] is None else float(line["tokens"])


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def _overall(responses: Responses, evaluation: dict[str, Any] | None) -> dict[str, float | None]:
    finished = [line["finished"] for group in responses.own for line in group]
    pairs = (evaluation or {}).get("pairs")
    accuracy = {} if pairs is None else {"accuracy": pairs["accuracy"]}
    return {"finished": sum(finished) / len(finished), **accuracy}


def _diversity(responses: Responses, environment: Environment | None, embedder: str | None, device: str) -> Diversity:
    texts = responses.values("text")
    rewards = responses.values("reward") if environment is not None else None
    prompts = {prompt.id: prompt for prompt in environment.held_out} if environment is not None else {}
    labels, modes = None, None
    if environment is not None and environment.mode_of is not None:
        held_out = [prompts[prompt_id] for prompt_id in responses.prompts]
        modes = [environment.modes_of(prompt) for prompt in held_out]
        labels = [
            [environment.mode_of(prompt, text) for text in group] for prompt, group in zip(held_out, texts, strict=True)
        ]
    return measure_diversity(
        texts,
        rewards=rewards,
        threshold=None if environment is None else environment.threshold,
        modes=modes,
        labels=labels,
        embeddings=None if embedder is None else _embedded(texts, embedder, device),
    )


def _embedded(texts: list[list[str]], name: str, device: str) -> list[Any]:
    embedder = SentenceEmbedder.load(name, device=str(device_of(device)))
    rows = iter(embedder.embed([text for group in texts for text in group]))
    return [np.stack([next(rows) for _ in group]) for group in texts]
