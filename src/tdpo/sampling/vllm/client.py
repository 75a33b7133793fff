"""HTTP with a vLLM server: requests with bounded retries, and every failure as a sentence."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from ...records.metric_names import counted

Result = TypeVar("Result")
ATTEMPTS = 5
PAUSE = 0.5  # seconds before the second attempt; twice as long before each further one
CONNECT_SECONDS = 10.0
WATCH_SECONDS = 10.0  # between two looks at a server that has not answered yet
PARTING_SECONDS = 10.0  # for what is tidied up when the work is done, or has failed because the server is gone
# What a server or a proxy before it answers when it cannot now and may soon. 500 is vLLM's word on the request itself.
TRY_AGAIN = frozenset({429, 502, 503, 504})
GO_ON = "What was written is intact: when the server answers, give the command again (training: with --resume)."


class ServerError(RuntimeError):
    """The server is gone or slow, or answers what it should not; the message says what to do."""


class WrongServer(ValueError):
    """The server does not serve what this recipe needs; the message says how to start it."""


class Client:
    """A vLLM server at `url`, which may take `timeout` seconds for an answer.

    Its key, if it asks for one, is in the environment variable VLLM_API_KEY, where vLLM itself looks for it. A server
    on this machine is spoken to directly; on the way to any other the environment may name a proxy.
    """

    def __init__(self, url: str, timeout: float, attempts: int = ATTEMPTS) -> None:
        self.url, self.timeout, self.attempts = url.rstrip("/"), timeout, attempts
        self._certificates = httpx2.create_ssl_context()  # read once, and not for every call

    def parting(self) -> Self:
        """A client of the same server that asks once and does not wait long."""
        return type(self)(self.url, min(self.timeout, PARTING_SECONDS), attempts=1)

    def open(self) -> httpx2.AsyncClient:
        """Connections to the server, for one event loop; a context manager. Callers bound how many are used.

        Raises:
            WrongServer: the key in the environment can be none.
        """
        key = api_key()
        return httpx2.AsyncClient(
            base_url=self.url,
            verify=self._certificates,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(self.timeout, connect=min(CONNECT_SECONDS, self.timeout), pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=not is_loopback(self.url),  # a proxy would look for the server on its own machine
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
            ServerError: no answer in `timeout` seconds, or none in `attempts` attempts.
        """
        why = ""
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                response = await self._watched(http.request(method, path, json=body))
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
        attempts = counted(self.attempts, "attempt")
        raise ServerError(
            f"the vLLM server at {self.url} did not answer {method} {path} in {attempts} ({why})"
            f"{proxy_in_words(self.url)}. {GO_ON}"
        )

    async def _watched(self, asked: Coroutine[Any, Any, httpx2.Response]) -> httpx2.Response:
        """The answer to what was asked. A vLLM server that is ended may keep its connections open without a word, but
        takes no new ones: it is given up when two in succession are refused.

        Raises:
            ServerError: they were.
        """
        waiting, refused = asyncio.ensure_future(asked), 0
        try:
            while not (await asyncio.wait([waiting], timeout=WATCH_SECONDS))[0]:
                refused = refused + 1 if await self._is_refused() else 0
                if refused == 2:
                    raise ServerError(
                        f"the vLLM server at {self.url} takes no connections any more, and has not answered what it "
                        f"was asked before: it is ending, or has ended. {GO_ON}"
                    )
            return waiting.result()
        finally:
            waiting.cancel()

    async def _is_refused(self) -> bool:
        try:
            async with self.open() as another:
                await another.get("/health", timeout=CONNECT_SECONDS)
        except httpx2.ConnectError:
            return True
        except httpx2.TransportError:  # a server that is busy
            return False
        return False

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


def models_in(content: Any) -> list[dict[str, Any]]:
    """The models that the content of an answer lists; none where it is no list of models."""
    listed = content.get("data") if isinstance(content, dict) else None
    return [model for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []


def api_key() -> str | None:
    """What VLLM_API_KEY holds, without the white space around it. Raises `WrongServer` for what no header may hold."""
    key = os.environ.get("VLLM_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):  # the message of httpx2 would show the key
        raise WrongServer("the environment variable VLLM_API_KEY holds characters that no key has: set it anew")
    return key or None


def is_loopback(url: str) -> bool:
    """Whether this is an address of the machine itself."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def proxy_in_words(url: str) -> str:
    """By which variable of the environment a proxy is asked for this address; "" for none. The proxy's own address is
    not shown: it may hold a password."""
    parts, proxies = urlsplit(url), getproxies()
    variable = next((f"{kind}_proxy" for kind in (parts.scheme, "all") if kind in proxies), None)
    if variable is None or is_loopback(url) or proxy_bypass(parts.hostname or ""):
        return ""
    return f", asked by way of the proxy that {variable} names (no_proxy={parts.hostname} leaves it out)"


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
