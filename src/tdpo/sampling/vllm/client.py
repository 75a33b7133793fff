"""HTTP with a vLLM server: requests with bounded retries, and every failure as a sentence."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx2

Result = TypeVar("Result")
ATTEMPTS = 5
PAUSE = 0.5  # seconds before the second attempt; twice as long before each further one
CONNECT_SECONDS = 10.0
# What a server or a proxy before it answers when it cannot now and may soon. 500 is vLLM's word on the request itself.
TRY_AGAIN = frozenset({429, 502, 503, 504})
GO_ON = "What was written is intact: when the server answers, give the command again (training: with --resume)."


class ServerError(RuntimeError):
    """The server is gone or slow, or answers what it should not; the message says what to do."""


class WrongServer(ValueError):
    """The server does not serve what this recipe needs; the message says how to start it."""


class Client:
    """A vLLM server at `url`, which may take `timeout` seconds for an answer.

    Its key, if it asks for one, is in the environment variable VLLM_API_KEY, where vLLM itself looks for it.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self._certificates = httpx2.create_ssl_context()  # read once, and not for every call

    def open(self) -> httpx2.AsyncClient:
        """Connections to the server, for one event loop; a context manager. Callers bound how many are used."""
        key = os.environ.get("VLLM_API_KEY")
        return httpx2.AsyncClient(
            base_url=self.url,
            verify=self._certificates,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(self.timeout, connect=min(CONNECT_SECONDS, self.timeout), pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        """One request, with retries. Raises `ServerError` where no answer comes."""

        async def alone() -> httpx2.Response:
            async with self.open() as http:
                return await self.request(http, method, path, body)

        return run(alone())

    async def request(
        self, http: httpx2.AsyncClient, method: str, path: str, body: dict[str, Any] | None = None
    ) -> httpx2.Response:
        """The server's answer, whatever its status is, to a request that is repeated while none comes.

        Raises:
            ServerError: no answer in `timeout` seconds, or none in `ATTEMPTS` attempts.
        """
        why = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                response = await http.request(method, path, json=body)
            except httpx2.ConnectTimeout:
                why = f"no connection within {min(CONNECT_SECONDS, self.timeout):g} s"
            except httpx2.TimeoutException:
                raise ServerError(
                    f"the vLLM server at {self.url} gave no answer within {self.timeout:g} s (sampling.timeout): raise "
                    f"that, or have fewer requests under way (the key batch_size). {GO_ON}"
                ) from None
            except httpx2.TransportError as error:
                why = str(error) or type(error).__name__
            else:
                if response.status_code not in TRY_AGAIN:
                    return response
                why = f"{response.status_code}: {said(response)}"
        raise ServerError(
            f"the vLLM server at {self.url} did not answer {method} {path} in {ATTEMPTS} attempts ({why}). {GO_ON}"
        )

    def json_of(self, response: httpx2.Response, what: str) -> Any:
        """The content of an answer. Raises `ServerError` for another status than 200, and for what is no JSON."""
        if response.status_code != 200:
            refusal = f"{response.status_code}: {said(response)}"
            raise ServerError(f"the vLLM server at {self.url} refused {what} ({refusal}). {GO_ON}")
        try:
            return response.json()
        except ValueError:
            raise ServerError(self.nonsense(what, response.text)) from None

    def nonsense(self, what: str, answer: Any) -> str:
        """The sentence about an answer that cannot be read."""
        return (
            f"what the server at {self.url} answered to {what} is no answer of vLLM's: {shortened(answer)}. Is it a "
            "vLLM server (0.32 was tested) that is asked directly, without a proxy that changes answers?"
        )


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end in an event loop of its own, also where one is running, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def said(response: httpx2.Response) -> str:
    """What an answer says of an error: vLLM's message, else the beginning of the text."""
    try:
        content = response.json()
        message = content.get("error", content)
        message = message.get("message", message) if isinstance(message, dict) else message
    except (ValueError, AttributeError):
        message = response.text
    return shortened(message)


def shortened(value: Any) -> str:
    """A value in one line of at most 300 printable characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= 300 else f"{text[:300]}…"
