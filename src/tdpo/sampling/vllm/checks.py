"""Whether a server serves the model that is sampled here: asked before any work, and judged by the server's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config import why_no_temperature
from ..decoding_ways import whole_logits
from .client import Client, WrongServer, models_in, proxy_in_words, said, shortened
from .completions import Completion, read_completion

PROBE_TOKENS = 16
# The most that two implementations of one model may differ by in the log-probability of a token, in nats, where both
# compute in this dtype; docs/vllm.md says what was measured. A model in another dtype is outside for float32, other
# weights are outside for each.
TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


@dataclass(frozen=True)
class ServedModel:
    """The base model of a server: its name there, where it was loaded from, its context in tokens, vLLM's version."""

    name: str
    root: str
    context: int
    version: str


def served_model(client: Client) -> ServedModel:
    """The one base model that the server has.

    Raises:
        WrongServer: it has none, or is no vLLM server.
        ServerError: it cannot be reached.
    """
    answer = client.call("GET", "/v1/models")
    if answer.status_code in (401, 403):
        raise WrongServer(
            f"the server at {client.url} asks for a key ({said(answer)}): set the environment variable VLLM_API_KEY"
            f"{proxy_in_words(client.url)}"
        )
    if answer.status_code == 404:
        raise WrongServer(f"the server at {client.url} has no /v1/models: is it a vLLM server (`vllm serve MODEL`)?")
    content = client.json_of(answer, "the list of its models")
    models = [model for model in models_in(content) if not model.get("parent")]
    if not models or not isinstance(models[0].get("max_model_len"), int):
        raise WrongServer(client.nonsense("the list of its models", content))
    return ServedModel(
        str(models[0].get("id")), str(models[0].get("root")), models[0]["max_model_len"], _version(client)
    )


def _version(client: Client) -> str:
    answer = client.call("GET", "/version")
    try:
        return str(answer.json()["version"])
    except (ValueError, LookupError, TypeError):
        return "unknown"


def check_lengths(served: ServedModel, longest_prompt: int, max_new_tokens: int) -> None:
    """Raise `WrongServer` where the server's context is shorter than a prompt with its response."""
    if longest_prompt + max_new_tokens > served.context:
        raise WrongServer(
            f"the server's context is {served.context} tokens, and a prompt of {longest_prompt} tokens with a response "
            f"of {max_new_tokens} needs {longest_prompt + max_new_tokens}: start it with --max-model-len "
            f"{longest_prompt + max_new_tokens} or more"
        )


def check_temperature(temperature: float) -> None:
    """Raise `WrongServer` for a temperature that vLLM refuses, or replaces by another and says so in its own log."""
    if reason := why_no_temperature(temperature):
        raise WrongServer(reason)


def check_vocabulary(client: Client, served: ServedModel, vocab_size: int, largest_id: int) -> None:
    """Raise `WrongServer` where the server's model knows fewer or more tokens than `vocab_size`.

    vLLM tells no size, but refuses a prompt with an id that neither its model nor its tokenizer has; `largest_id` is
    that of the tokenizer here.
    """
    largest = _one_token(client, served, vocab_size - 1)
    if 400 <= largest.status_code < 500:
        raise WrongServer(
            f"the model here has {vocab_size} tokens, and the server's ({served.root}) refuses the last of them "
            f"({said(largest)}): start it with this model"
        )
    client.json_of(largest, "a token of its own")
    beyond = max(vocab_size, largest_id + 1)
    if _one_token(client, served, beyond).status_code == 200:
        raise WrongServer(
            f"the model here has {vocab_size} tokens, and the server's ({served.root}) takes id {beyond}: it has a "
            "larger vocabulary; start it with this model"
        )


def _one_token(client: Client, served: ServedModel, token: int) -> Any:
    body = {"model": served.name, "prompt": [[token]], "max_tokens": 1, "temperature": 0.0, "ignore_eos": True}
    return client.call("POST", "/v1/completions", body)


def check_same_model(client: Client, served: ServedModel, name: str, model: Any, prompt_ids: list[int]) -> float:
    """Compare a greedy completion of the server, token for token, with the forward of `model` on the same tokens.

    Every token must be the most probable one here, or less probable than that by no more than the tolerance; and the
    server must give it the log-probability that it has here, within the tolerance.

    Args:
        client: of the server.
        served: its base model.
        name: what is asked there: the base model, or an adapter.
        model: what it must be.
        prompt_ids: of a real prompt.

    Returns:
        The largest difference of a log-probability, in nats.

    Raises:
        WrongServer: they are not the same.
    """
    completion, logps = greedy_completion(client, served, name, model, prompt_ids)
    differences, behind = _apart(completion, logps)
    tolerance = tolerance_of(model)
    wrong = (torch.maximum(differences, behind) > tolerance).nonzero()
    if len(wrong):
        place = int(wrong[0])
        raise WrongServer(_not_the_same(completion, logps[place], place, served, name, computes_in(model), tolerance))
    return float(differences.max())


def greedy_differences(
    client: Client, served: ServedModel, name: str, model: Any, prompt_ids: list[int]
) -> tuple[Tensor, Tensor]:
    """What `check_same_model` compares, in nats, of each token: (how far its two log-probabilities are apart, how far
    it is behind the most probable token here), `[T]` each. Raises WrongServer for an answer that is none."""
    return _apart(*greedy_completion(client, served, name, model, prompt_ids))


def greedy_completion(
    client: Client, served: ServedModel, name: str, model: Any, prompt_ids: list[int]
) -> tuple[Completion, Tensor]:
    """The server's T tokens with their log-probabilities, and what `model` gives every token at their places, `[T, V]`
    in nats. Raises WrongServer for an answer that is none."""
    tokens = min(PROBE_TOKENS, served.context - len(prompt_ids))
    body = {
        "model": name, "prompt": [prompt_ids], "max_tokens": tokens, "temperature": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": 0, "ignore_eos": True, "stop_token_ids": [],
        "return_token_ids": True, "logprobs": 0,
    }  # fmt: skip
    answer = client.json_of(client.call("POST", "/v1/completions", body), f"a completion by {name}")
    vocab_size = model.config.get_text_config().vocab_size
    try:
        completion = read_completion(answer, max_new_tokens=tokens, vocab_size=vocab_size, with_logps=True)
    except ValueError as error:
        raise WrongServer(client.nonsense(f"a completion by {name}", error)) from None
    return completion, log_probabilities(model, prompt_ids, completion.token_ids)


@torch.no_grad()
def log_probabilities(model: Any, prompt_ids: list[int], token_ids: list[int]) -> Tensor:
    """What `model` gives every token at the places of `token_ids`: `[T, V]` float32, in nats."""
    was_training = model.training
    model.eval()
    try:
        logits = whole_logits(model, prompt_ids + token_ids, len(token_ids) + 1)
    finally:
        model.train(was_training)
    return logits[:-1].float().log_softmax(-1).cpu()


def _apart(completion: Completion, logps: Tensor) -> tuple[Tensor, Tensor]:
    own = logps[torch.arange(len(completion.token_ids)), torch.tensor(completion.token_ids)]
    assert completion.logps is not None
    return (torch.tensor(completion.logps) - own).abs(), logps.amax(-1) - own


def _not_the_same(
    completion: Completion, logps: Tensor, place: int, served: ServedModel, name: str, dtype: torch.dtype, most: float
) -> str:
    """What is wrong at `place`, where every token has `logps` `[V]` here."""
    assert completion.logps is not None
    kind, token = str(dtype).removeprefix("torch."), completion.token_ids[place]
    return (
        f"the server does not compute what this model computes. Greedy, {shortened(name)} (loaded from {served.root}) "
        f"took token {token} at place {place + 1} with log-probability {completion.logps[place]:.4f}; here it has "
        f"{float(logps[token]):.4f}, and the most probable token {int(logps.argmax())} {float(logps.max()):.4f}. "
        f"{most:g} nats are allowed in {kind}. Start the server with this model's own weights, --dtype {kind}, and no "
        "quantization"
    )


def tolerance_of(model: Any) -> float:
    """What a log-probability of a server's may differ by from that of `model`, in nats."""
    return TOLERANCES.get(computes_in(model), max(TOLERANCES.values()))


def computes_in(model: Any) -> torch.dtype:
    """The dtype of the products of `model` here and now: autocast's where it is on, else that of its weights."""
    kind = model.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    floating = (p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float64)
    dtypes = set(floating)
    low = [dtype for dtype in (torch.bfloat16, torch.float16) if dtype in dtypes]
    return low[0] if low else torch.float32
