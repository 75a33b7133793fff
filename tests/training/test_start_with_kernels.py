"""The head's kernels in a trainer: an untrained policy is its reference, in every precision, live and cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.kernel_cases import kernels, needs_triton, quiet, use_tiles_of  # noqa: F401  # a fixture
from helpers.tiny_models import build_model
from helpers.training_cases import lora, make_trainer, train_logs
from tdpo.token_statistics import implementations

pytestmark = [needs_triton, quiet]

AT_MOST = 1e-5  # nats a token, which the issue of these kernels promises; here it is of a whole response
KLS = ("chosen_forward_kl", "rejected_forward_kl", "chosen_reverse_kl", "rejected_reverse_kl")
ROW = {"prompt": "q", "chosen": " yes", "rejected": " no"}  # few tokens: the interpreter runs a program for each
# Every precision from a cache, where most can differ, and every reference in what a GPU computes by default.
CASES = [
    *(("adapter", precision, "cache") for precision in ("float32", "bfloat16", "bfloat16-mixed", "float16-mixed")),
    *(("adapter", "as on a GPU", reference) for reference in ("model", "cache", "second model")),
    *(("all weights", precision, "cache") for precision in ("float32", "bfloat16", "float16-mixed")),
    *(("all weights", "bfloat16-mixed", reference) for reference in ("model", "cache", "second model")),
]


@pytest.mark.parametrize(("trained", "precision", "reference"), CASES, ids=[", ".join(case) for case in CASES])
def test_the_kl_starts_at_zero(
    trained: str,
    precision: str,
    reference: str,
    kernels: pytest.MonkeyPatch,  # noqa: F811
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    use_tiles_of(256, 256, kernels)
    walked: list[str] = []
    count_walks(walked, kernels)
    changes = {"precision": precision}
    if precision == "as on a GPU":
        kernels.setattr("tdpo.training.precision.device_of_training", lambda args: torch.device("cuda"))
        changes = {}
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    trainer = make_trainer(
        build_model("llama", dtype=dtype), tmp_path / "run", tokenizer, [ROW], max_steps=1,
        peft_config=lora("q_proj", "down_proj") if trained == "adapter" else None,
        ref_model=build_model("llama", dtype=dtype) if reference == "second model" else None,
        reference="cache" if reference == "cache" else "model", **changes,
    )  # fmt: skip
    trainer.train()
    [logged] = train_logs(trainer)
    assert [logged[name] for name in KLS] == pytest.approx([0.0] * 4, abs=AT_MOST)
    assert logged["margin"] == pytest.approx(0.0, abs=AT_MOST) and logged["grad_norm"] > 0
    assert set(walked) == ({"summarize", "frozen"} if trained == "adapter" else {"linear"}), "by the kernels"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="what rounds so is a GPU's library of products")
@pytest.mark.parametrize("trained", ["adapter", "all weights"])
def test_a_cache_of_batches_of_another_shape_starts_at_zero_too(
    trained: str,
    kernels: pytest.MonkeyPatch,  # noqa: F811
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    """The cache is made of two pairs at once and read for one; products of another shape may be summed in another
    order."""
    use_tiles_of(256, 256, kernels)
    trainer = make_trainer(
        build_model("llama", dtype=torch.bfloat16), tmp_path / "run", tokenizer,
        [{"prompt": "why", "chosen": " no", "rejected": " yes"}, ROW], max_steps=1, per_device_train_batch_size=1,
        peft_config=lora("q_proj") if trained == "adapter" else None, reference="cache", precision="bfloat16-mixed",
    )  # fmt: skip
    trainer.train()
    [logged] = train_logs(trainer)
    assert [logged[name] for name in KLS] == pytest.approx([0.0] * 4, abs=AT_MOST)


def count_walks(walked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Note each operation of the kernels as it is used."""
    from dataclasses import fields, replace

    def noted(name: str, operation: Any) -> Any:
        return lambda *args: (walked.append(name), operation(*args))[1]

    inner = implementations.KERNELS
    operations = {f.name: noted(f.name, getattr(inner, f.name)) for f in fields(inner)}
    monkeypatch.setattr(implementations, "KERNELS", replace(inner, **operations))
