"""Products are timed once and recorded; trained weights are held in float32, and everything else as it was loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from helpers.tiny_models import build_model
from tdpo.config import Precision as Choice
from tdpo.models import product_speed as speeds
from tdpo.models.precision import CHOICES, choose_precision, hold_weights
from tdpo.models.product_speed import ProductSpeed, measure, product_speed, recorded_in, why_slow

FAST, SLOW = ProductSpeed("bfloat16", 200.0, 80.0), ProductSpeed("bfloat16", 120.0, 200.0)
CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


def test_a_measurement_has_both_speeds_and_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "CPU_SHAPES", ((8, 8, 8),))
    threads: list[int] = []
    before, mm = torch.get_num_threads(), torch.mm

    def watched(*operands: Any) -> Any:
        threads.append(torch.get_num_threads())
        return mm(*operands)

    monkeypatch.setattr(torch, "mm", watched)
    measure.cache_clear()
    first, again = measure("bfloat16", "cpu"), measure("bfloat16", "cpu")
    measure.cache_clear()
    assert first is again and first.half > 0 and first.float32 > 0
    assert set(threads) == {1} and torch.get_num_threads() == before, "others on the machine do not change it"
    with pytest.raises(ValueError, match="dtype must be one of bfloat16, float16, got 'int8'"):
        measure("int8", "cpu")


def test_only_a_clear_difference_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FAST.prefers_half and not FAST.is_slower
    assert SLOW.is_slower and not SLOW.prefers_half
    even = ProductSpeed("bfloat16", 105.0, 100.0)
    assert not even.prefers_half and not even.is_slower
    monkeypatch.setattr(speeds, "measure", lambda *_: SLOW)
    assert why_slow("float32", CPU) is None
    assert "120 GFLOP/s in bfloat16, 200 in float32" in str(why_slow("bfloat16", CPU))
    monkeypatch.setattr(speeds, "measure", lambda *_: even)
    assert why_slow("bfloat16", CPU) is None
    assert SLOW.describe() == "120 GFLOP/s in bfloat16, 200 in float32"


def test_processes_that_share_a_file_share_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([FAST, SLOW])
    monkeypatch.setattr(speeds, "measure", lambda *_: next(answers))
    for _ in range(2):  # the second as another process would, with another measurement at hand
        with recorded_in(tmp_path / "speed.json"):
            assert product_speed(CPU) == FAST
    assert json.loads((tmp_path / "speed_bfloat16.json").read_text())["half"] == 200.0
    assert [p.name for p in tmp_path.iterdir()] == ["speed_bfloat16.json"], "nothing else is left"
    assert product_speed(CPU) == SLOW, "outside it is measured"


def test_what_is_measured_is_the_device_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's GPU says nothing of a training on its CPU."""
    monkeypatch.setattr(speeds, "measure", lambda dtype, device: {"cpu": SLOW, "cuda:1": FAST}[device])
    chosen = {
        str(device): choose_precision("auto", "bfloat16", adapters=None, device=device).products
        for device in (CPU, GPU)
    }
    assert chosen == {"cpu": "float32", "cuda:1": "bfloat16"}
    assert why_slow("bfloat16", CPU) is not None and why_slow("bfloat16", GPU) is None
    slow = "products in float32 are slow on this machine (200 GFLOP/s in bfloat16, 80 in float32): model.dtype=bfloat16"
    assert str(why_slow("float32", GPU)).startswith(slow)
    monkeypatch.setattr(speeds, "measure", lambda dtype, device: FAST)
    assert why_slow("float32", CPU) is None and why_slow("float64", GPU) is None, "on a CPU it is the careful choice"


def test_an_adapter_is_multiplied_in_the_dtype_of_its_base_on_a_gpu() -> None:
    def chosen(device: torch.device, choice: str, saved: str, adapters: str | None = "float32") -> tuple[bool, str]:
        precision = choose_precision(choice, saved, adapters=adapters, device=device, measured=lambda _: SLOW)
        return precision.is_mixed, precision.dtypes()

    rounded = "weights bfloat16, adapters float32, all products bfloat16"
    for choice, saved in (("auto", "bfloat16"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")):
        assert chosen(GPU, choice, saved) == (True, rounded)
        assert chosen(CPU, choice, saved) == (False, rounded.replace("all ", "")), "there it stays what it was"
    for device in (CPU, GPU):
        mixed = (True, "weights float32, adapters float32, products bfloat16")
        assert chosen(device, "bfloat16-mixed", "bfloat16") == mixed
        for saved in ("float32", "float64", "float16"):  # float16 would need a scaler of losses
            assert chosen(device, "auto", saved) == (False, f"weights {saved}, adapters float32, products {saved}")
        assert not chosen(device, "auto", "bfloat16", adapters="bfloat16")[0], "peft was told to keep it so"
        assert not chosen(device, "bfloat16", "bfloat16", adapters=None)[0], "all weights have the products' dtype"
    asked = choose_precision("auto", "bfloat16", adapters="float32", device=GPU, autocast="bfloat16")
    assert asked.dtypes() == rounded.replace("all ", ""), "checkpoints of earlier versions say it so"
    precision = choose_precision("auto", "bfloat16", adapters="float32", device=GPU)
    assert precision.is_as_loaded and precision.as_dict()["load_as"] == ""
    again = choose_precision(precision.choice, "bfloat16", adapters="float32", device=GPU)
    assert again.dtypes() == precision.dtypes() and again.is_mixed, "a resumed run goes by the recorded choice"


def test_a_slow_bfloat16_is_not_chosen_whatever_a_flag_says() -> None:
    fast = choose_precision("auto", "bfloat16", adapters=None, device=CPU, measured=lambda _: FAST)
    slow = choose_precision("auto", "bfloat16", adapters=None, device=CPU, measured=lambda _: SLOW)
    assert (fast.weights, fast.products, fast.choice) == ("float32", "bfloat16", "bfloat16-mixed")
    assert (slow.weights, slow.products, slow.choice) == ("float32", "float32", "float32")
    assert "120 GFLOP/s in bfloat16, 200 in float32" in slow.describe()


def test_what_does_not_depend_on_speed_measures_nothing() -> None:
    def never(device: torch.device) -> ProductSpeed:
        raise AssertionError("measured")

    def chosen(choice: str, saved: str, adapters: str | None, autocast: str | None = None) -> tuple[str, str]:
        precision = choose_precision(choice, saved, adapters=adapters, device=CPU, autocast=autocast, measured=never)
        return precision.weights, precision.products

    assert chosen("auto", "float32", None) == ("float32", "float32"), "a float32 model stays what it was"
    assert chosen("auto", "float64", None) == ("float64", "float64")
    assert chosen("auto", "bfloat16", "float32") == ("bfloat16", "bfloat16"), "an adapter's base is not trained"
    assert chosen("auto", "bfloat16", None, "bfloat16") == ("float32", "bfloat16")
    assert chosen("auto", "bfloat16", "float32", "bfloat16") == ("bfloat16", "bfloat16")
    for choice, dtypes in CHOICES.items():
        assert chosen(choice, "float16", None) == chosen(choice, "float32", "float32") == dtypes
    assert {"auto", *CHOICES} == set(get_args(Choice)), "a recipe has the choices that there are"


@pytest.mark.parametrize("adapter", [False, True])
def test_weights_are_held_without_loss_and_ties_stay(adapter: bool) -> None:
    model: Any = build_model("llama", dtype=torch.bfloat16)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    held = model
    if adapter:
        from peft import get_peft_model

        from helpers.training_cases import lora

        held = get_peft_model(model, lora("q_proj"))
    hold_weights(held, "float32")
    assert {p.dtype for p in held.parameters()} == {torch.float32}
    names = {n.removeprefix("base_model.model.").replace(".base_layer", ""): p for n, p in held.named_parameters()}
    assert all(torch.equal(names[name], value.float()) for name, value in before.items())
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    hold_weights(held, "bfloat16")
    assert {p.dtype for n, p in held.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    assert {p.dtype for n, p in held.named_parameters() if "lora_" in n} == ({torch.float32} if adapter else set())
    assert all(torch.equal(b, buffers[n.removeprefix("base_model.model.")]) for n, b in held.named_buffers())


def test_what_a_gpu_loads_with_its_first_products_is_not_their_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of loading would end the measurement, and decide between the dtypes."""
    loads, multiplies = {torch.float32: 0.5, torch.bfloat16: 1.0}, {torch.float32: 2e-3, torch.bfloat16: 1e-3}

    def seconds_of(left: torch.Tensor, _: torch.Tensor) -> float:
        return loads.pop(left.dtype, multiplies[left.dtype])

    monkeypatch.setattr(speeds, "_seconds_of", seconds_of)
    operands = {dtype: speeds._operands(2, 2, 2, dtype, "meta") for dtype in multiplies}
    assert speeds._best_seconds(operands) == multiplies
