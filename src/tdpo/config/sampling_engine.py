"""What draws responses: the model in this process, or a vLLM server that the user has started."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import ValidationInfo, field_validator

from ._sections import PositiveFloat, Section, Text
from .training_defaults import trains_adapter

Engine = Literal["built-in", "vllm"]
TIMEOUT = 600.0
# vLLM raises what is below without refusing it; above, it answers 400 (0.32).
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0
# Keys of the section that only a server gives a meaning.
OF_A_SERVER = {"url": None, "adapter_dir": None, "timeout": TIMEOUT}


class SamplingEngine(Section):
    """What draws the responses of pairs, rollouts and evaluations (docs/vllm.md)."""

    engine: Engine = "built-in"
    """`built-in` is the model in this process; `vllm` is a vLLM server that you started with the recipe's base model.
    What is trained must then be an adapter, which the server gets after every iteration."""
    url: Text | None = None
    """Address of the vLLM server, such as http://127.0.0.1:8000. A key that it asks for is taken from the environment
    variable VLLM_API_KEY."""
    adapter_dir: Text | None = None
    """Folder in which the server finds the adapters, under the same path on its machine; null is the folder
    sampler_adapters of the run's directory."""
    timeout: PositiveFloat = TIMEOUT
    """Seconds that the server may take for a response before the command gives up."""

    @field_validator("url", "adapter_dir", "timeout")
    @classmethod
    def _belongs_to_the_engine(cls, value: str | float | None, info: ValidationInfo) -> str | float | None:
        reason = why_not_of_engine(str(info.field_name), value, info.data.get("engine"))
        if reason is not None:
            raise ValueError(reason)
        return value

    @property
    def is_server(self) -> bool:
        """Whether a server draws."""
        return self.engine == "vllm"

    def engine_alone(self) -> SamplingEngine:
        """The keys of this section without those that a larger section has besides."""
        return SamplingEngine(**{name: getattr(self, name) for name in SamplingEngine.model_fields})


def why_not_of_engine(key: str, value: str | float | None, engine: str | None) -> str | None:
    """What is wrong with a key of the section beside this engine; None where nothing is, or the engine is wrong."""
    if engine == "built-in" and value != OF_A_SERVER[key]:
        return "has no effect with engine built-in; set sampling.engine to vllm, or remove it"
    if engine == "vllm" and key == "url":
        return "is missing: engine vllm needs the address of the server" if value is None else why_no_url(str(value))
    return None


def why_no_url(url: str) -> str | None:
    """Why this is no address of a server; None where it is one."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or True)
    except ValueError:  # of a port that is no number
        is_address = False
    if not is_address:
        return f"{url!r} is no address; expected http://HOST:PORT"
    if parts.username is not None or parts.password is not None:
        return "holds a password, which would be written into the run's files; set VLLM_API_KEY in the environment"
    if parts.query or parts.fragment or parts.path.strip("/"):
        return f"{url!r} has a path; give the address alone, http://HOST:PORT"
    return None


def engine_problems(values: object, names: dict[str, str]) -> Iterator[str]:
    """What is wrong with the section's keys that are attributes of `values`, by the names that they have there."""
    engine = getattr(values, names["engine"])
    for key in OF_A_SERVER:
        reason = why_not_of_engine(key, getattr(values, names[key]), engine)
        if reason is not None:
            yield f"{names[key]} {reason.replace('sampling.engine to vllm', names['engine'] + '=vllm')}"


def why_not_handed_over(engine: str, *, has_adapter: bool, is_quantized: bool = False) -> str | None:
    """Why a server cannot sample what is trained; None where it can."""
    if engine != "vllm":
        return None
    if is_quantized:
        return "vllm with a quantised base (model.quantization) is not tested; take built-in"
    if has_adapter:
        return None
    return (
        "vllm samples with the adapter that it is handed, and here all weights are trained; "
        "train an adapter (model.lora), or take built-in"
    )


def why_no_temperature(temperature: float) -> str | None:
    """Why a server does not draw at this temperature; None where it does."""
    if temperature == 0 or LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
        return None
    return (
        f"vLLM draws greedily at temperature 0, and from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}, not at "
        f"{temperature:g}; choose one of these, or sampling.engine built-in"
    )


def server_problems(engine: str, model: Any, temperatures: Iterable[float]) -> Iterator[tuple[str, str]]:
    """What a study with this section `model` and baselines at these temperatures would make and a server could not
    judge: keys with reasons."""
    if engine != "vllm":
        return
    has_adapter, is_quantized = trains_adapter(model.name, model.lora is not None), model.quantization is not None
    reason = why_not_handed_over(engine, has_adapter=has_adapter, is_quantized=is_quantized)
    if model.reference is not None and not trains_adapter(model.reference, False):
        reason = "vllm has one base, and model.reference is another one that would answer too; take built-in"
    if reason is not None:
        yield "sampling.engine", reason
    for temperature in temperatures:
        if reason := why_no_temperature(temperature):
            yield "temperatures", reason
