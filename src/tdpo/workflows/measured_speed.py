"""How fast this machine samples and learns with the model of a recipe, measured for a few seconds.

Estimates of time rest on it. It is one process alone: runs beside it take memory bandwidth from one another.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..batches import ResponseBatch, TokenizedPair
from ..config import AnyRecipe, Loss, Model, OnlineRecipe, Recipe
from ..models import load_tokenizer, merged_adapter, reference_at_start
from ..models.devices import describe_device
from ..sampling.sampler import SamplingSettings, encode_prompts, sample
from ..scores import score_pairs
from ..scoring.configured_loss import configured_loss
from ..scoring.layout import choose_layout
from ..scoring.policy_statistics import PolicyStatistics
from ..training.policy import switch_off_dropout
from .policy_of_recipe import load_policy
from .run_size import RunSize
from .train import updates_of

SAMPLED = 8  # tokens of each response of the measurement; more where these take less than `LEAST`
LEAST = 0.05  # seconds: what is shorter is noise of the clock and of the machine
MOST_RESPONSES, MOST_PAIRS = 16, 2
# Forwards of one model in what `Speed.pair` measures: policy forward and backward (three), reference forward.
PASSES_OF_UPDATE, PASSES_OF_BACKWARD, PASSES_OF_JUDGING = 4, 3, 2
ENOUGH = 2.0  # seconds: what libraries set up once is small beside them


@dataclass(frozen=True)
class Speed:
    """Seconds for the parts of a run.

    Attributes:
        start: loading the model.
        token: a sampled token of one response, in a batch.
        pair: one pair in an update of TDPO2: forward and backward of the policy, forward of the reference.
        tokens_of_pair: how many tokens that pair has, its prompt counted once.
        description: what was measured, in a sentence.
    """

    start: float
    token: float
    pair: float
    tokens_of_pair: int
    description: str

    def update(self, pairs: float, tokens_of_pair: float) -> float:
        """Seconds for updates on so many pairs of such a length."""
        return pairs * self.pair * tokens_of_pair / self.tokens_of_pair


def measure_speed(model: Model, prompts: Sequence[Any], response_tokens: int, *, pairs: int, responses: int) -> Speed:
    """Load the model, sample a little and learn from one batch, and time each.

    Args:
        model: the recipe's section.
        prompts: some of the run's prompts, as the sampler takes them.
        response_tokens: the length of the responses in the measured batch.
        pairs, responses: how many pairs a forward has, and how many responses are sampled at a time, 0 for no
            sampling. Fewer are measured if that is enough.

    Raises what loading the model, sampling from it or learning would raise.
    """
    began = time.perf_counter()
    policy = load_policy(model)
    tokenizer = load_tokenizer(model.name, trust_remote_code=model.trust_remote_code)
    switch_off_dropout(policy)
    start = time.perf_counter() - began
    count, token, sampled = min(responses, MOST_RESPONSES), 0.0, ""
    if count:
        with merged_adapter(policy):
            asked = [prompts[i % len(prompts)] for i in range(count)]
            token, length = _seconds_of_token(policy, tokenizer, asked, max(SAMPLED, response_tokens))
        sampled = f"{length} tokens of {count} responses in {_readable(token * length * count)}, "
    ids = encode_prompts(tokenizer, [prompts[i % len(prompts)] for i in range(min(pairs, MOST_PAIRS))])
    learned = [_made_up(prompt, response_tokens, len(tokenizer), row) for row, prompt in enumerate(ids)]
    update = _seconds_of_update(policy, learned, tokenizer.pad_token_id)
    tokens = sum(len(pair.prompt_ids) + sum(map(len, pair.responses)) for pair in learned) // len(learned)
    description = (
        f"{model.name} on {_place(policy.device)}: loaded in {start:.1f} s, {sampled}"
        f"an update of {len(learned)} pair{'s' * (len(learned) > 1)} of {tokens} tokens in {_readable(update)}"
    )
    return Speed(start, token, update / len(learned), tokens, description)


def learning_seconds(recipe: AnyRecipe, speed: Speed, size: RunSize) -> float:
    """The seconds of a recipe's updates; with own responses, at full length, also of sampling (and PPO's judging)."""
    if isinstance(recipe, Recipe):
        updates = updates_of(recipe.training, size.pairs)
        return speed.update(updates * recipe.training.batch_size, size.prompt + 2 * size.response)
    completions = recipe.rollouts.completions * recipe.optimization.iterations
    if isinstance(recipe, OnlineRecipe):
        learned = recipe.pairs * recipe.online.iterations * recipe.online.passes
        return completions * size.response * speed.token + speed.update(learned, size.prompt + 2 * size.response)
    shared = 2 if recipe.rollouts.samples_per_prompt % 2 == 0 else 1  # so many completions share their prompt's tokens
    tokens = size.prompt / shared + size.response
    passes = PASSES_OF_JUDGING + PASSES_OF_BACKWARD * recipe.ppo.epochs
    return completions * size.response * speed.token + speed.update(completions, tokens) * passes / PASSES_OF_UPDATE


def _place(device: torch.device) -> str:
    threads = torch.get_num_threads()
    return describe_device(device) if device.type != "cpu" else f"{threads} thread{'s' * (threads > 1)} of the CPU"


def _readable(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds:.4f} s"


def _seconds_of_token(policy: Any, tokenizer: Any, prompts: Sequence[Any], longest: int) -> tuple[float, int]:
    """Seconds for one token of one response, above 0, and how many tokens a response had for it at most.

    A call for one token alone is taken off: it has what happens once. Where the rest is too short to be measured, it is
    sampled longer, up to `longest` tokens; if that is too short too, the whole last call counts.
    """

    def timed(most: int) -> tuple[float, int]:
        began = time.perf_counter()
        made = sample(policy, tokenizer, prompts, SamplingSettings(max_new_tokens=most, batch_size=len(prompts)))
        return time.perf_counter() - began, sum(len(response.token_ids) for response in made)

    once, first_tokens = timed(1)
    length = SAMPLED
    while True:
        seconds, tokens = timed(1 + length)
        if seconds - once >= LEAST and tokens > first_tokens:
            return (seconds - once) / (tokens - first_tokens), length
        if length >= longest:
            return seconds / max(1, tokens), length
        length = min(4 * length, longest)


def _seconds_of_update(policy: Any, pairs: Sequence[TokenizedPair], pad_token_id: int) -> float:
    """Seconds of a forward and backward; of the second one where the first is so short that it is mostly set-up."""
    reference = reference_at_start(policy, None)
    statistics = PolicyStatistics.of(policy, reference)
    collator = choose_layout(policy, pairs, pad_token_id, "auto", None, other_models=[statistics.reference_model])
    device = next(policy.parameters()).device
    batch = ResponseBatch.from_inputs(collator(pairs), device)
    loss = configured_loss("tdpo2", Loss.DEFAULT_BETA, Loss.DEFAULT_ALPHA, 0.0)
    policy.train()
    for _ in range(2):
        began = time.perf_counter()
        stats = statistics(policy, batch, extras=loss.extras, learned_tokens=loss.learned_tokens(batch))
        scores = score_pairs(stats, batch.sequence_index, batch.num_prompts)
        loss(stats, scores, batch.sequence_index, batch.num_prompts).per_pair.mean().backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        policy.zero_grad()
        if seconds > ENOUGH:
            break
    return seconds


def _made_up(prompt_ids: list[int], length: int, vocabulary: int, row: int) -> TokenizedPair:
    draw = random.Random(row)
    chosen, rejected = ([draw.randrange(vocabulary) for _ in range(length)] for _ in range(2))
    return TokenizedPair.of(prompt_ids, chosen, rejected, "made up", row)
