"""The adapter's way to a server: names, what is left behind, what is refused."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_models import build_model, build_tokenizer, shake_adapter
from helpers.vllm_stand_in import VLLM, connected, running_vllm, with_adapter
from tdpo.sampling.sampler import SamplingSettings, sample
from tdpo.sampling.vllm.client import ServerError, WrongServer

PROMPTS = ["the cat", "what a wonderful day it was", "a terrible answer and the mat", "day"]
GREEDY = SamplingSettings(max_new_tokens=8, temperature=0.0)

pytestmark = pytest.mark.usefixtures("impatient")


def test_an_adapter_has_the_name_of_its_weights_and_the_old_one_goes(vllm: VLLM, tmp_path: Path) -> None:
    policy, tokenizer, sampler = with_adapter(), build_tokenizer(), connected(vllm, tmp_path)
    for _ in range(2):  # the same weights are handed over once, after the random ones that tell layers left out
        sampler(policy, tokenizer, PROMPTS[:1], GREEDY)
        assert len(vllm.loads) == 2
    shake_adapter(policy, 2, std=0.3)
    changed = sampler(policy, tokenizer, PROMPTS, GREEDY)
    assert [r.token_ids for r in changed] == [r.token_ids for r in sample(policy, tokenizer, PROMPTS, GREEDY)]
    assert len(set(vllm.loads)) == 3 and list(vllm.adapters) == vllm.loads[2:]
    assert [path.name for path in tmp_path.iterdir()] == vllm.loads[2:]
    sampler.close()
    assert not vllm.adapters and not any(tmp_path.iterdir())


def test_what_a_killed_process_left_is_unloaded(vllm: VLLM, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    connected(vllm, tmp_path)(with_adapter(), tokenizer, PROMPTS[:1], GREEDY)
    vllm.adapters["somebody-elses"] = vllm.model
    connected(vllm, tmp_path)(with_adapter(2), tokenizer, PROMPTS[:1], GREEDY)
    assert sorted(vllm.adapters) == sorted([vllm.loads[-1], "somebody-elses"])


def test_an_adapter_that_the_server_cannot_take_is_refused(vllm: VLLM, tmp_path: Path) -> None:
    def asked(policy: Any) -> Any:
        return connected(vllm, tmp_path)(policy, build_tokenizer(), PROMPTS[:1], GREEDY)

    vllm.max_rank = 1
    with pytest.raises(WrongServer, match=r"LoRA rank 2 .*--max-lora-rank 2.*sampling\.adapter_dir"):
        asked(with_adapter())
    vllm.max_rank = 0
    with pytest.raises(WrongServer, match=r"404.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        asked(with_adapter())
    from peft import LoraConfig, get_peft_model

    for option, weight in (("use_dora", "lora_magnitude_vector"), ("lora_bias", r"lora_B\.bias")):
        more = LoraConfig(r=2, target_modules=["q_proj"], **{option: True})
        with pytest.raises(WrongServer, match=rf"{weight}.*vLLM does not sample with"):
            asked(get_peft_model(build_model("llama"), more))


def test_what_is_left_is_told_from_what_is_in_use(vllm: VLLM, tmp_path: Path) -> None:
    """Two evaluations of one run may go on at once, and one of them may have been killed."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    sampler: Any = connected(vllm, tmp_path)
    left, used = (f"{sampler.adapters.owner}{process}-0123" for process in (gone.pid, os.getppid()))
    for name in (left, used):
        vllm.adapters[name] = vllm.model
        (tmp_path / name).mkdir()
        (tmp_path / f".{name}").mkdir()
    sampler(with_adapter(), build_tokenizer(), PROMPTS[:1], GREEDY)
    assert sorted(vllm.adapters) == sorted([used, vllm.loads[-1]])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f".{used}", used, vllm.loads[-1]])


def test_two_machines_with_folders_of_one_name_share_a_server(
    vllm: VLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samplers = []
    for machine in ("one", "two"):
        monkeypatch.setattr(platform, "node", lambda machine=machine: machine)
        samplers.append(connected(vllm, tmp_path))
    for sampler in samplers:
        sampler(with_adapter(), build_tokenizer(), PROMPTS[:1], GREEDY)
    assert len(vllm.adapters) == 2
    samplers[1].close()
    assert samplers[0](with_adapter(), build_tokenizer(), PROMPTS[:1], GREEDY)


def test_the_end_does_not_wait_for_a_server_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running_vllm() as vllm:
        sampler: Any = connected(vllm, tmp_path)
        sampler(with_adapter(), build_tokenizer(), PROMPTS[:1], GREEDY)
    sampler.close()
    assert "The last adapter stays on the server" in caplog.text and "in 1 attempt (" in caplog.text


def test_adapters_of_others_drive_out_ours_and_it_comes_back(vllm: VLLM, tmp_path: Path) -> None:
    """vLLM reads it from its folder again, which must be there; and may know it no more when it is to be unloaded."""
    vllm.slots = 1
    tokenizer, samplers = build_tokenizer(), [connected(vllm, tmp_path / name) for name in ("one", "two")]
    policies = [with_adapter(1), with_adapter(2)]
    expected = [[r.token_ids for r in sample(policy, tokenizer, PROMPTS, GREEDY)] for policy in policies]
    assert expected[0] != expected[1]
    samplers[1].adapters.owner, samplers[1].adapters.prefix = "tdpo-other-", f"tdpo-other-{os.getpid()}-"
    for _ in range(2):
        for sampler, policy, tokens in zip(samplers, policies, expected, strict=True):
            assert [r.token_ids for r in sampler(policy, tokenizer, PROMPTS, GREEDY)] == tokens
    assert len(vllm.loads) == 4 and vllm.in_engine() == vllm.loads[3:]
    shake_adapter(policies[0], 3, std=0.3)  # the next update, whose old adapter was driven out
    assert samplers[0](policies[0], tokenizer, PROMPTS, GREEDY)
    assert [path.name for path in (tmp_path / "one").iterdir()] == vllm.loads[4:]
    for sampler in samplers:
        sampler.close()
    assert not any((tmp_path / "one").iterdir()) and not any((tmp_path / "two").iterdir())


def test_a_server_without_room_says_so_and_takes_the_adapter_when_there_is(vllm: VLLM, tmp_path: Path) -> None:
    vllm.slots, vllm.is_pinned = 1, True
    vllm.adapters["somebody-elses"] = vllm.model
    policy, tokenizer, sampler = with_adapter(), build_tokenizer(), connected(vllm, tmp_path)
    with pytest.raises(ServerError, match=r"no room for the adapter .*All items are pinned.*--max-cpu-loras.*--resume"):
        sampler(policy, tokenizer, PROMPTS, GREEDY)
    assert list(vllm.adapters) == ["somebody-elses"]
    del vllm.adapters["somebody-elses"]
    # The same process asks again, as a notebook does.
    found = sampler(policy, tokenizer, PROMPTS, GREEDY)
    assert [r.token_ids for r in found] == [r.token_ids for r in sample(policy, tokenizer, PROMPTS, GREEDY)]
    sampler.close()
    assert not vllm.adapters and not any(tmp_path.iterdir())
