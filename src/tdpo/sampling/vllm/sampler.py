"""`VLLMSampler`: responses from a vLLM server, each with a seed of its own, many requests under way."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from weakref import WeakKeyDictionary

from ...chat_templates import Stopping
from ...models.quantization import is_quantized_model
from ..sampler import OnComplete, Progress, SampledResponse, SamplingSettings, check_fit, encode_prompts
from .adapter_checks import check_whole_adapter
from .adapters import AdapterHandover, uses_adapter
from .checks import ServedModel, check_lengths, check_same_model, check_temperature, check_vocabulary, served_model
from .client import Client, ServerError, WrongServer, run
from .completions import Completion, completion_request, read_completion, until_the_end

if TYPE_CHECKING:
    from ...chat_templates import PromptInput

logger = logging.getLogger(__name__)
# Calls a function on one process and gives all of them what it returned, or raises there what it raised.
OnceForAll = Callable[[Callable[[], str]], str]

_State = Literal["base", "adapter"]


@dataclass(frozen=True)
class _Asked:
    """One response that is asked for."""

    prompt_index: int
    sample_index: int
    prompt_ids: list[int]

    def seed(self, seed: int) -> int:
        """A number of 63 bits, by the rule of the built-in sampler: it belongs to the response, not to the batch."""
        return random.Random(f"{seed}/{self.prompt_index}/{self.sample_index}").getrandbits(63)


class VLLMSampler:
    """Draws from the model that a server serves, with the policy's adapter handed over where it is switched on.

    The arguments are those of `engines.response_sampler`; `connected` makes one.
    """

    def __init__(
        self, client: Client, served: ServedModel, adapters: AdapterHandover, with_logps: bool, once_for_all: OnceForAll
    ) -> None:
        self.client, self.served, self.adapters = client, served, adapters
        self.with_logps, self.once_for_all = with_logps, once_for_all
        self.identity = {"engine": f"vLLM {served.version}, model {served.root}"}
        # Of each model, in which states it was compared with the server's.
        self._checked: WeakKeyDictionary[Any, set[_State]] = WeakKeyDictionary()

    @classmethod
    def connected(
        cls, url: str, timeout: float, folder: Path, owner: str, *, with_logps: bool, once_for_all: OnceForAll
    ) -> Self:
        """Raises WrongServer, ServerError: there is no vLLM server at this address."""
        client = Client(url, timeout)
        return cls(client, served_model(client), AdapterHandover(client, folder, owner), with_logps, once_for_all)

    def prepare(self, model: Any, tokenizer: Any, prompt_ids: list[int], settings: SamplingSettings) -> None:
        """As `engines.ResponseSampler`."""
        check_temperature(settings.temperature)
        check_lengths(self.served, len(prompt_ids), settings.max_new_tokens)
        self._name_of(model, tokenizer, prompt_ids)

    def close(self) -> None:
        """As `engines.ResponseSampler`."""
        try:
            self.adapters.close()
        except (ServerError, OSError) as error:
            logger.warning("The last adapter stays on the server: %s", error)

    def __call__(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[PromptInput],
        settings: SamplingSettings,
        *,
        progress: Progress | None = None,
        prompt_indices: Sequence[int] | None = None,
        on_complete: OnComplete | None = None,
    ) -> list[SampledResponse]:
        """As `engines.ResponseSampler`; `settings.batch_size` requests are under way at once, and with `on_complete`
        those of a few prompts.

        A response has its seed, but the server's batches round differently every time: at near ties the same seed may
        give another token.

        Raises:
            WrongServer: the server does not serve this model, or does not draw at this temperature.
            ServerError: it is gone or slow, or answers what it should not.
            ValueError: a prompt that does not fit the model.
        """
        indices = list(range(len(prompts))) if prompt_indices is None else list(prompt_indices)
        encoded = dict(zip(indices, encode_prompts(tokenizer, prompts), strict=True))
        if not encoded:
            return []
        check_fit(model, encoded, settings.max_new_tokens)
        check_temperature(settings.temperature)
        longest = max(encoded.values(), key=len)
        check_lengths(self.served, len(longest), settings.max_new_tokens)
        name = self._name_of(model, tokenizer, longest)
        asked = [_Asked(index, k, encoded[index]) for index in indices for k in range(settings.num_samples)]
        drawing = _Drawing(self, name, Stopping.of(model, tokenizer), settings, progress, model.config)
        if on_complete is None:
            return run(drawing.all_of(asked))
        responses: list[SampledResponse] = []
        size = max(1, settings.batch_size // settings.num_samples) * settings.num_samples  # of whole prompts
        for start in range(0, len(asked), size):
            complete = run(drawing.all_of(asked[start : start + size]))
            on_complete(complete)
            responses += complete
        return responses

    def _name_of(self, model: Any, tokenizer: Any, prompt_ids: list[int]) -> str:
        """What the server calls this model, which is compared with it the first time in each of its states."""
        if is_quantized_model(model):
            raise WrongServer("vllm with a quantised base (model.quantization) is not tested; take built-in")
        state: _State = "adapter" if uses_adapter(model) else "base"
        checked = self._checked.setdefault(model, set())
        is_first = state not in checked
        if not checked:
            largest_id = max(tokenizer.get_vocab().values())
            check_vocabulary(self.client, self.served, model.config.get_text_config().vocab_size, largest_id)
        name = self.served.name
        if state == "adapter":
            name = self.once_for_all(lambda: self._handed_over(model, prompt_ids, is_first=is_first))
        if is_first:
            difference = check_same_model(self.client, self.served, name, model, prompt_ids)
            logger.info(
                "vLLM %s serves %s; its log-probabilities (%s) differ from those here by up to %.2g nats.",
                self.served.version, self.served.root, state, difference,
            )  # fmt: skip
            checked.add(state)
        return name

    def _handed_over(self, model: Any, prompt_ids: list[int], *, is_first: bool) -> str:
        """What the server calls the adapter of `model`, of which the first is handed over with random weights before.

        Both on one process, or the others would still ask for the random one when it is gone.
        """
        if is_first:
            check_whole_adapter(self.client, self.served, self.adapters, model, prompt_ids)
        return self.adapters.hand_over(model)


@dataclass
class _Drawing:
    """Responses that are being drawn: how, and how many there are."""

    sampler: VLLMSampler
    name: str
    stop: Stopping
    settings: SamplingSettings
    progress: Progress | None
    config: Any
    tokens: int = 0
    complete: int = 0

    async def all_of(self, asked: Sequence[_Asked]) -> list[SampledResponse]:
        """The responses in this order. The first failure ends the others."""
        turn = asyncio.Semaphore(self.settings.batch_size)

        async def draw(one: _Asked) -> SampledResponse:
            async with turn:
                return await self._response(http, one)

        async with self.sampler.client.open() as http:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(draw(one)) for one in asked]
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _response(self, http: Any, one: _Asked) -> SampledResponse:
        settings, with_logps = self.settings, self.sampler.with_logps
        body = completion_request(
            self.name, one.prompt_ids, settings, self.stop, one.seed(settings.seed), with_logps=with_logps
        )
        completion = await self._completion(http, body)
        if self._stopped_within_a_token(completion):
            completion = await self._completion(http, {**body, "stop": []})
        try:
            completion, finished = until_the_end(completion, self.stop, settings.max_new_tokens)
        except ValueError as error:
            raise ServerError(self.sampler.client.nonsense("a completion", error)) from None
        self.tokens += len(completion.token_ids)
        self.complete += 1
        if self.progress is not None:
            self.progress(self.tokens, self.complete)
        ids = completion.token_ids
        text = self.stop.text_before(ids, finished)
        return SampledResponse(one.prompt_index, one.sample_index, ids, text, finished, completion.logps)

    async def _completion(self, http: Any, body: dict[str, Any]) -> Completion:
        client, vocab_size = self.sampler.client, self.config.get_text_config().vocab_size
        answer = client.json_of(await client.request(http, "POST", "/v1/completions", body), "a completion")
        try:
            return read_completion(
                answer,
                max_new_tokens=self.settings.max_new_tokens,
                vocab_size=vocab_size,
                with_logps=self.sampler.with_logps,
            )
        except ValueError as error:
            raise ServerError(client.nonsense("a completion", error)) from None

    def _stopped_within_a_token(self, completion: Completion) -> bool:
        """Whether the server saw the end's text where it is no end: vLLM looks for it within tokens too, and a token
        may hold more than the end of that text."""
        ids = completion.token_ids
        if not self.stop.text or len(ids) == self.settings.max_new_tokens or self.stop.ends(ids):
            return False
        return self.stop.text in self.stop.tokenizer.decode(ids)
