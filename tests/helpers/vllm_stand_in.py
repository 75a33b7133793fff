"""A small server that speaks vLLM's protocol and drives a tiny model, so that answers are real; and what goes wrong.

Its answers depend on request and weights alone, so two runs that ask the same learn the same. The real server is tested
by `make test-engines`.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch

from helpers.tiny_models import build_model, shake_adapter
from tdpo.config import SamplingEngine
from tdpo.models import LoraSettings, add_lora
from tdpo.sampling.engines import ResponseSampler, response_sampler


@dataclass
class VLLM:
    """What the stand-in holds, what it was asked, and how it fails.

    Attributes:
        model: the base model.
        context: `max_model_len`.
        max_rank: of adapters; 0 takes none.
        key: that requests must carry.
        broken: calls of /v1/completions that fail, by their number from 0; None as a key stands for every call. Values:
            "gone" drops the connection, "slow" answers after a second, a number is a status, any other value is the
            answer itself.
        logp_shift: what its log-probabilities differ by from the model's.
        adapter_factor: what it multiplies adapters by, which an honest server does not.
        left_out: a pattern for names of layers whose part of an adapter it takes and does not compute.
        slots: how many adapters its engine holds at once, `--max-cpu-loras`. As vLLM it drives out the one that was
            used longest ago, which keeps its name and is read from its folder again when it is asked for. To unload
            such a one is refused, as some versions of vLLM refuse it (0.32 does not).
        is_pinned: whether it may drive out none.
    """

    model: Any
    url: str = ""
    context: int = 256
    max_rank: int = 16
    key: str | None = None
    broken: dict[int | None, Any] = field(default_factory=dict)
    logp_shift: float = 0.0
    adapter_factor: float = 1.0
    left_out: str | None = None
    slots: int = 100
    is_pinned: bool = False
    adapters: dict[str, Any] = field(default_factory=dict)  # by name: a model with it, or the folder of one driven out
    asked: list[dict[str, Any]] = field(default_factory=list)  # completions
    loads: list[str] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    lock: Lock = field(default_factory=Lock)

    def engine(self, **more: Any) -> SamplingEngine:
        """The section of a recipe that names this server."""
        return SamplingEngine(engine="vllm", url=self.url, **more)

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """One completion, with the whole sequence computed anew for every token."""
        [ids], made, logps = body["prompt"], [], []
        model = self.model if body["model"] == "tiny" else self.held(body["model"])
        draws = torch.Generator().manual_seed(body["seed"] if body.get("seed") is not None else 0)
        while len(made) < body["max_tokens"] and not (made and made[-1] in (body.get("stop_token_ids") or [])):
            logits = model(torch.tensor([ids + made])).logits[0, -1].float()
            own = logits.log_softmax(-1)
            if body["temperature"] == 0:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial((logits / body["temperature"]).softmax(-1), 1, generator=draws))
            made.append(token)
            logps.append(float(own[token]) + self.logp_shift)
        probabilities = None if body.get("logprobs") is None else {"token_logprobs": logps}
        return {"choices": [{"text": "", "token_ids": made, "logprobs": probabilities}]}

    def held(self, name: str) -> Any:
        """The model with this adapter, which is in the engine after that, as the one that was used last."""
        model = self.adapters.pop(name)
        if isinstance(model, Path):
            self.make_room()
            model = self.read(model)
        self.adapters[name] = model
        return model

    def read(self, place: Path) -> Any:
        """The model with the adapter of this folder."""
        from peft import PeftModel

        model = PeftModel.from_pretrained(copy.deepcopy(self.model), str(place)).eval()
        for key, weight in model.named_parameters():
            if ".lora_B." in key:
                weight.data *= 0.0 if self.left_out and re.search(self.left_out, key) else self.adapter_factor
        model.read_from = place
        return model

    def in_engine(self) -> list[str]:
        """The names of the adapters that the engine holds, the one that was used longest ago first."""
        return [name for name, model in self.adapters.items() if not isinstance(model, Path)]

    def make_room(self) -> None:
        """Drive out an adapter where the engine is full. Raises RuntimeError, as vLLM, where it may not."""
        if len(engine := self.in_engine()) < self.slots:
            return
        if self.is_pinned:
            raise RuntimeError("All items are pinned, cannot remove oldest from the cache.")
        self.adapters[engine[0]] = self.adapters[engine[0]].read_from


def connected(vllm: VLLM, folder: Path, **more: Any) -> ResponseSampler:
    """A sampler of this server."""
    return response_sampler(vllm.engine(**more), folder=folder, owner="test", with_logps=True)


def with_adapter(seed: int = 1) -> Any:
    """A tiny policy whose adapter matters."""
    policy = add_lora(build_model("llama"), LoraSettings(rank=2, alpha=4.0)).eval()
    shake_adapter(policy, seed, std=0.3)
    return policy


@contextmanager
def running_vllm(model: Any | None = None, **settings: Any) -> Iterator[VLLM]:
    """A server that runs as long as the context lasts; its model is that of `build_model("llama")`."""
    held = VLLM(copy.deepcopy(model) if model is not None else build_model("llama"), **settings)

    class Handler(_Handler):
        vllm = held

    server = _Server(("127.0.0.1", 0), Handler)
    held.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # many connect at once, and one that is turned away tries again after a second


class _Handler(BaseHTTPRequestHandler):
    vllm: VLLM
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._refused():
            return
        if self.path == "/v1/models":
            base = {"id": "tiny", "root": "/models/tiny", "parent": None, "max_model_len": self.vllm.context}
            with self.vllm.lock:
                listed = [base, *({"id": name, "root": "", "parent": "tiny"} for name in self.vllm.adapters)]
            self._answer(200, {"data": listed})
        elif self.path == "/version":
            self._answer(200, {"version": "0.0.stand-in"})
        else:
            self._answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        if self._refused():
            return
        if self.path == "/v1/completions":
            self._completions(body)
        elif self.path == "/v1/load_lora_adapter" and self.vllm.max_rank:
            self._load(body["lora_name"], Path(body["lora_path"]))
        elif self.path == "/v1/unload_lora_adapter" and self.vllm.max_rank:
            self._unload(body["lora_name"])
        else:
            self._answer(404, {"detail": "Not Found"})

    def _refused(self) -> bool:
        if self.vllm.key is None or self.headers.get("Authorization") == f"Bearer {self.vllm.key}":
            return False
        self._answer(401, {"error": "Unauthorized"})
        return True

    def _completions(self, body: dict[str, Any]) -> None:
        vllm = self.vllm
        with vllm.lock:
            number = len(vllm.asked)
            vllm.asked.append(body)
            vllm.under_way += 1
            vllm.most_under_way = max(vllm.most_under_way, vllm.under_way)
        try:
            failure = vllm.broken.get(number, vllm.broken.get(None))
            if failure == "gone":
                self.close_connection = True
                self.connection.close()
                return
            if failure == "slow":
                time.sleep(1.0)
            elif isinstance(failure, int):
                self._answer(failure, {"error": {"message": "not now"}})
                return
            elif failure is not None:
                self._answer(200, failure)
                return
            self._complete(body)
        finally:
            with vllm.lock:
                vllm.under_way -= 1

    def _complete(self, body: dict[str, Any]) -> None:
        name, vocab_size = body["model"], self.vllm.model.config.vocab_size
        with self.vllm.lock:
            if name != "tiny" and name not in self.vllm.adapters:
                status, answer = 404, {"error": {"message": f"The model `{name}` does not exist."}}
            elif max(body["prompt"][0]) >= vocab_size:
                status, answer = 400, {"error": {"message": f"Token id {max(body['prompt'][0])} is out of vocabulary"}}
            else:
                status, answer = 200, self.vllm.complete(body)
        self._answer(status, answer)

    def _load(self, name: str, place: Path) -> None:
        self.vllm.loads.append(name)
        rank = json.loads((place / "adapter_config.json").read_text())["r"]
        if rank > self.vllm.max_rank:
            self._answer(500, {"error": {"message": f"LoRA rank {rank} is greater than max_lora_rank"}})
            return
        with self.vllm.lock:
            try:
                self.vllm.make_room()
            except RuntimeError as error:
                self._answer(500, {"error": {"message": str(error)}})
                return
            self.vllm.adapters[name] = self.vllm.read(place)
        self._answer(200, "Success")

    def _unload(self, name: str) -> None:
        with self.vllm.lock:
            model = self.vllm.adapters.get(name)
            if isinstance(model, Path):
                said = f"Failed to remove lora adapter '{name}' from the engine."
                self._answer(500, {"error": {"message": said}})
                return
            self.vllm.adapters.pop(name, None)
        self._answer(404 if model is None else 200, {"error": {"message": "unloaded or not there"}})

    def _answer(self, status: int, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client has given up
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass
