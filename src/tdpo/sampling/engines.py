"""What draws responses: one interface for the model in this process and for a vLLM server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..config import SamplingEngine
from .sampler import OnComplete, Progress, SampledResponse, SamplingSettings, sample

if TYPE_CHECKING:
    from ..chat_templates import PromptInput
    from .vllm.sampler import OnceForAll


class ResponseSampler(Protocol):
    """Draws responses from a model.

    Attributes:
        identity: what the responses depend on beside model, prompts and settings, for files that are used again; empty
            for the built-in sampler.
    """

    identity: dict[str, str]

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
        """The responses, as `sampler.sample` gives them."""

    def prepare(self, model: Any, tokenizer: Any, prompt_ids: list[int], settings: SamplingSettings) -> None:
        """Raise what would stop sampling from this model with these settings later; `prompt_ids` is the longest prompt.

        Raises:
            WrongServer: the server does not serve this model, or does not draw so.
            ServerError: it cannot be reached, or cannot take the adapter.
        """

    def close(self) -> None:
        """Give back what is held outside of this process. Errors are logged: the work is done."""


class BuiltIn:
    """The model in this process draws itself (`sampler.sample`)."""

    identity: dict[str, str] = {}  # noqa: RUF012

    def __call__(self, *args: Any, **options: Any) -> list[SampledResponse]:
        return sample(*args, **options)

    def prepare(self, *_: Any) -> None:
        """Nothing has to be got ready."""

    def close(self) -> None:
        """Nothing is held."""


BUILT_IN: ResponseSampler = BuiltIn()


def response_sampler(
    engine: SamplingEngine,
    *,
    folder: str | Path,
    owner: str,
    with_logps: bool = False,
    once_for_all: OnceForAll = lambda make: make(),
) -> ResponseSampler:
    """The sampler that a recipe's section names, connected where it is a server.

    Args:
        engine: the section.
        folder: where adapters are put for a server, unless the section names another folder.
        owner: what the adapters are made for, such as the run's folder; what a killed process of the same owner left on
            the server is unloaded.
        with_logps: whether responses carry the log-probabilities of their tokens under the server.
        once_for_all: hands an adapter over on one of several processes that sample together.

    Raises:
        WrongServer, ServerError: as `ResponseSampler.prepare`.
    """
    if not engine.is_server:
        return BUILT_IN
    from .vllm.sampler import VLLMSampler

    return VLLMSampler.connected(
        str(engine.url),
        engine.timeout,
        Path(engine.adapter_dir or folder),
        owner,
        with_logps=with_logps,
        once_for_all=once_for_all,
    )
