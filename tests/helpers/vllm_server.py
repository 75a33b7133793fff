"""The real vLLM server as a process on this machine, for the tests of tests/engines."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

MAX_RANK = 8
CONTEXT = 512
STARTING = 900.0  # seconds; it is up within one minute on a machine that does nothing else


class RunningServer:
    """A server with the bundled model, started with the options that `Server` has."""

    def __init__(self, url: str) -> None:
        self.url = url


class Server(RunningServer):
    """A vLLM process with the model of a folder; `options` come last on its command line."""

    def __init__(self, program: Path, model: Path, port: int, log: Path, *options: str) -> None:
        super().__init__(f"http://127.0.0.1:{port}")
        self.log = log
        environment = {
            **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # A busy machine: small functions that vLLM compiles take longer than it waits for a step by default.
            "TORCH_COMPILE_DISABLE": "1", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "3000",
        }  # fmt: skip
        environment.pop("PYTHONPATH", None)  # of the environment of the tests, which is another one
        command = [
            str(program), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
            "--max-model-len", str(CONTEXT), "--enforce-eager", "--enable-lora", "--max-lora-rank", str(MAX_RANK),
            # The build for CPUs ends where it reads a prompt with a seed in two pieces (docs/vllm.md).
            "--no-enable-chunked-prefill", *options,
        ]  # fmt: skip
        with socket.socket() as probe:  # another server would be taken for this one
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise RuntimeError(f"port {port} is taken: TDPO_VLLM_PORT names another, TDPO_VLLM_URL a server to use")
        self.output = log.open("wb")
        self.process = subprocess.Popen(
            command, env=environment, stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True
        )

    def wait(self) -> None:
        """Until it answers. Raises RuntimeError with the end of its log where it does not."""
        until = time.monotonic() + STARTING
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (URLError, OSError):
                time.sleep(1)
        raise RuntimeError(f"vLLM did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    def stop(self) -> None:
        """End it; it ends its own workers."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()
