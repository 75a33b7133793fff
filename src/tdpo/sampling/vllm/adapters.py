"""The policy's adapter on its way to a vLLM server: through a folder that both see, under a name of its weights."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .client import GO_ON, Client, ServerError, WrongServer, models_in, said

logger = logging.getLogger(__name__)
START = "vllm serve MODEL --enable-lora --max-lora-rank {rank}, with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
# vLLM drives out the adapter that was used longest ago, and reads it from its folder again when it is asked for. These
# are its words where it may drive out none, and (in some versions, not in 0.32) where one driven out is unloaded.
FULL = ("All items are pinned", "LoRA slots", "lora slots")
NOT_IN_ENGINE = "Failed to remove lora adapter"


class AdapterHandover:
    """Keeps one adapter on the server: that of the policy's last update.

    A name belongs to its weights. So an old adapter never answers for a new one, and the server's cache of prompts,
    which knows names and paths, is never used with other weights than it was made with.

    A name also says for what and by which process it was made, on which machine. So what a killed process left behind
    can be told from what another one still uses.

    Args:
        client: of the server.
        folder: where adapters are written, under the same path for the server.
        owner: what the adapters are made for, such as a run's folder.
    """

    def __init__(self, client: Client, folder: Path, owner: str) -> None:
        self.client, self.folder = client, folder.absolute()
        # Two machines may have a folder of the same name each, and one server between them.
        self.owner = f"tdpo-{hashlib.sha256(f'{platform.node()}:{owner}'.encode()).hexdigest()[:8]}-"
        self.prefix = f"{self.owner}{os.getpid()}-"
        self.loaded: str | None = None  # or was to be: what failed to load may be there, and is taken away too
        self._is_taken = self._is_swept = False

    def hand_over(self, model: Any) -> str:
        """The name under which the server has the adapter of the peft model `model` as it is now.

        Raises:
            WrongServer: the server takes no adapters, or none of this kind or rank; or it does not see the folder.
            ServerError: it cannot be reached.
            OSError: the folder cannot be written.
        """
        weights = adapter_weights(model)
        name = self.prefix + weights_digest(weights)
        if name == self.loaded and self._is_taken:
            if not (self.folder / name).is_dir():  # moved away with the run that this one replaces
                self._write(model, name)
            return name
        self._sweep()
        self._unload(self.loaded)  # first, so that a server with room for one adapter is enough
        self.loaded, self._is_taken = name, False
        self._write(model, name)
        self._load(name, max(weight.shape[0] for key, weight in weights.items() if ".lora_A." in key))
        self._is_taken = True
        return name

    def close(self) -> None:
        """Take the last adapter off the server and the disk, unless the server is gone or slow."""
        self._unload(self.loaded, self.client.parting())
        self.loaded = None

    def _sweep(self) -> None:
        """Unload and delete what processes of the same owner left behind when they were killed."""
        if self._is_swept:
            return
        listed = self.client.json_of(self.client.call("GET", "/v1/models"), "the list of its models")
        for name in [str(model.get("id")) for model in models_in(listed)]:
            if self._is_left_over(name):
                self._unload(name)
        for place in [*self.folder.glob(f"{self.owner}*"), *self.folder.glob(f".{self.owner}*")]:
            if self._is_left_over(place.name.removeprefix(".")):
                shutil.rmtree(place, ignore_errors=True)
        self._is_swept = True

    def _is_left_over(self, name: str) -> bool:
        """Whether this is the name of an adapter that its owner's process can unload no more."""
        process, _, _ = name.removeprefix(self.owner).partition("-")
        if not name.startswith(self.owner) or not process.isdecimal():
            return False
        return int(process) == os.getpid() or not _is_alive(int(process))

    def _write(self, model: Any, name: str) -> None:
        """Write the adapter as peft does, whole or not at all under its name."""
        staging, adapter = self.folder / f".{name}", str(model.active_adapter)
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        staging.mkdir(parents=True)
        model.save_pretrained(
            staging, selected_adapters=[adapter], state_dict=_own_weights(model), save_embedding_layers=False
        )
        (staging if adapter == "default" else staging / adapter).rename(self.folder / name)
        shutil.rmtree(staging, ignore_errors=True)

    def _load(self, name: str, rank: int) -> None:
        place = self.folder / name
        answer = self.client.call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(place)})
        if answer.status_code == 200 or (answer.status_code == 400 and "already been" in answer.text):
            return  # a repeated request finds what the first one loaded: the same weights, or the name would differ
        if any(words in answer.text for words in FULL):
            raise ServerError(
                f"the vLLM server has no room for the adapter {place} beside those of others ({said(answer)}): unload "
                f"some, or start it with a larger --max-loras and --max-cpu-loras. {GO_ON}"
            )
        if answer.status_code >= 500 and "rank" not in answer.text and "LoRA" not in answer.text:
            raise ServerError(f"the vLLM server could not load the adapter {place}: {said(answer)}. {GO_ON}")
        raise WrongServer(
            f"the vLLM server at {self.client.url} does not take the adapter {place} ({answer.status_code}: "
            f"{said(answer)}). It must have been started with {START.format(rank=rank)}, and must see this folder "
            "under the same path (sampling.adapter_dir)"
        )

    def _unload(self, name: str | None, client: Client | None = None) -> None:
        if name is None:
            return
        answer = (client or self.client).call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        # 404: the server was started anew in between. Not in the engine: others' adapters have taken its place there.
        if answer.status_code not in (200, 404) and NOT_IN_ENGINE not in answer.text:
            raise ServerError(f"the vLLM server could not unload the adapter {name}: {said(answer)}. {GO_ON}")
        shutil.rmtree(self.folder / name, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _own_weights(model: Any) -> dict[str, Tensor]:
    """The weights of `model` by their names, whole where they are whole now.

    `model.state_dict()` would have FSDP2 let go of what it has gathered, and on this process alone.
    """
    return {name: weight.detach() for name, weight in model.named_parameters()}


def adapter_weights(model: Any) -> dict[str, Tensor]:
    """The adapter's weights by their names in a file.

    Raises:
        WrongServer: it is more than low-rank factors of linear layers, which vLLM would not compute.
    """
    from peft import get_peft_model_state_dict

    adapter = str(model.active_adapter)
    weights: dict[str, Tensor] = get_peft_model_state_dict(
        model, _own_weights(model), adapter_name=adapter, save_embedding_layers=False
    )
    if parameters := _adapted_parameters(model):
        raise WrongServer(
            f"the adapter changes parameters themselves (target_parameters: {', '.join(parameters)}), as all-linear "
            "does with routers and experts of some mixtures. vLLM refuses them, or leaves them out without a word. "
            "Take sampling.engine built-in, or adapt attention alone (model.lora.targets: [q_proj, k_proj, v_proj, "
            "o_proj])"
        )
    other = [name for name in weights if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if other or not weights:
        what = f"holds {other[0]}, which" if other else "has no weights that"
        raise WrongServer(
            f"the adapter {what} vLLM does not sample with: it takes plain LoRA on linear layers; use sampling.engine "
            "built-in with this adapter"
        )
    return weights


def _adapted_parameters(model: Any) -> list[str]:
    """The kinds of parameters that a LoRA adapter changes themselves, without a linear layer around them."""
    from peft.tuners.lora.layer import ParamWrapper

    wrappers = ((name, module) for name, module in model.named_modules() if isinstance(module, ParamWrapper))
    return sorted({f"{kind_of(name)}.{wrapper.parameter_name}" for name, wrapper in wrappers})


def kind_of(name: str) -> str:
    """The name of a peft model's module in its base, with * for the numbers of blocks."""
    inside = name.removeprefix("base_model.model.").replace(".base_layer", "")  # of wrappers around wrappers
    return re.sub(r"\.\d+(?=\.)", ".*", inside)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A hash of names, kinds and every bit of the weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        # A copy in any case: numpy pins the memory of a tensor that it shares, and FSDP2 lets go of its own later.
        weight = weights[name].detach().to("cpu", copy=True).contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def uses_adapter(model: Any) -> bool:
    """Whether `model` is a peft model whose adapter is switched on."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, PeftModel):
        return False
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return any(not layer.disable_adapters for layer in layers)
