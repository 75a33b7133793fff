"""HTTP with a server: proxies, keys, and one that does not answer."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from helpers.tiny_models import build_model, build_tokenizer
from helpers.vllm_stand_in import VLLM, connected, running_vllm
from tdpo.sampling.sampler import SamplingSettings
from tdpo.sampling.vllm import client as client_module
from tdpo.sampling.vllm.client import Client, ServerError, WrongServer, models_in, proxy_in_words

GREEDY = SamplingSettings(max_new_tokens=4, temperature=0.0)

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with a proxy that is not there."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://me:password@127.0.0.1:9")


def test_a_server_on_this_machine_is_asked_past_a_proxy(proxy: None, vllm: VLLM, tmp_path: Path) -> None:
    assert connected(vllm, tmp_path)(build_model("llama"), build_tokenizer(), ["the cat"], GREEDY)


def test_the_proxy_to_another_machine_is_named(proxy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerError, match=r"in 5 attempts \(.*\), asked by way of the proxy that http_proxy") as caught:
        Client("http://elsewhere:8000", 5.0).call("GET", "/v1/models")
    assert "no_proxy=elsewhere" in str(caught.value) and "password" not in str(caught.value)
    assert proxy_in_words("https://elsewhere:8000") == proxy_in_words("http://localhost:8000") == ""
    monkeypatch.setenv("no_proxy", "elsewhere")
    assert proxy_in_words("http://elsewhere:8000") == ""


def test_a_key_with_a_line_feed_is_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret\n")
    with running_vllm(key="secret") as vllm:
        connected(vllm, tmp_path).prepare(build_model("llama"), build_tokenizer(), [5, 6], GREEDY)


@pytest.mark.parametrize("key", ["sécret", "sec\nret"])
def test_what_is_no_key_is_refused_and_not_shown(vllm: VLLM, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(WrongServer, match="VLLM_API_KEY") as caught:
        Client(vllm.url, 5.0).call("GET", "/v1/models")
    assert "ret" not in str(caught.value)


def test_parting_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PARTING_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client, started = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", 600.0), time.monotonic()
        with pytest.raises(ServerError, match=r"no answer within 0\.2 s"):
            client.parting().call("GET", "/v1/models")
        assert time.monotonic() - started < 10


def test_a_server_that_is_ending_with_its_connections_open_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM's after SIGTERM: it listens no more, and says nothing to who is connected."""
    monkeypatch.setattr(client_module, "WATCH_SECONDS", 0.1)
    door = socket.create_server(("127.0.0.1", 0))
    client, started, connections = Client(f"http://127.0.0.1:{door.getsockname()[1]}", 600.0), time.monotonic(), []

    def end() -> None:
        connections.append(door.accept()[0])
        connections[0].recv(1000)
        door.close()

    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(ServerError, match="takes no connections any more"):
        client.call("POST", "/v1/completions", {})
    assert time.monotonic() - started < 10
    ending.join()
    connections[0].close()


def test_a_server_that_is_slow_and_there_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its door is open while it says nothing at all."""
    monkeypatch.setattr(client_module, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(client_module, "CONNECT_SECONDS", 0.1)
    refusal = pytest.raises(ServerError, match=r"no answer within 0\.7 s")
    with socket.create_server(("127.0.0.1", 0)) as silent, refusal:
        Client(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.7).call("POST", "/v1/completions", {})


@pytest.mark.parametrize("content", [None, [], {"data": 5}, {"data": None}, {"data": ["a"]}, {}])
def test_what_is_no_list_of_models_has_none(content: object) -> None:
    assert models_in(content) == []
