"""`tdpo push` and `trainer.push_to_hub` against a small hub on this machine, over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from safetensors.torch import load

from helpers.hub_stand_in import TOKEN, Hub, running_hub
from helpers.training_cases import lora, make_trainer
from tdpo.models import load_causal_lm, load_tokenizer
from tdpo.runs import RunDirectory
from tdpo.training import TDPOTrainer
from tdpo.workflows.hub_upload import planned_upload

Call = Callable[..., Result]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path], tokenizer: Any) -> Any:
    """(trainer, folder) of one update of an adapter; the folder holds what training leaves."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    base = str(tiny_folder("llama"))
    trainer = make_trainer(base, folder, tokenizer, peft_config=lora("q_proj"), max_steps=1, logging_steps=1)
    trainer.train()
    trainer.save_model(folder / "model")
    return trainer, folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants
    from transformers.utils import hub as of_transformers

    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in has plain HTTP alone
        monkeypatch.setattr(of_transformers, "_hf_api", None)  # else it keeps the endpoint of its first use
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_adapter_card_and_report_are_uploaded_in_one_commit(call: Call, trained: Any, hub: Hub) -> None:
    _, folder = trained
    plan = call("push", str(folder), "me/mine", "--dry-run")
    assert plan.exit_code == 0 and "nothing was sent" in plan.output and hub.private == {}, plan.output
    done = call("push", str(folder), "me/mine")
    assert done.exit_code == 0 and f"uploaded to {hub.url}/me/mine" in done.output, done.output
    assert hub.private == {"me/mine": True} and hub.commits == ["mine, trained by tdpo"]
    sent = hub.files["me/mine"]
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "report.html", "tokenizer.json"} <= {*sent}
    assert {"training_args.bin", "trainer.json"} & {*sent} == set() and "left out: " in done.output
    weights = (folder / "model/adapter_model.safetensors").read_bytes()
    assert sent["adapter_model.safetensors"] == weights and load(weights)
    assert b"<html" in sent["report.html"]
    card = sent["README.md"].decode()
    assert 'from_pretrained("me/mine")' in card and "this folder" not in card
    # The base is a folder here: its path belongs into no public metadata, and nobody else can load the adapter by it.
    assert "base_model:" not in card and "tdpo merge" in done.output


def test_what_is_there_keeps_its_visibility(call: Call, trained: Any, hub: Hub) -> None:
    _, folder = trained
    hub.private["me/open"], hub.files["me/open"] = False, {}
    done = call("push", str(folder / "model"), "me/open", "--no-report", "-m", "second")
    assert done.exit_code == 0 and "is there and public" in done.output, done.output
    assert hub.private["me/open"] is False and hub.commits == ["second"] and "report.html" not in hub.files["me/open"]
    hub.private["me/hidden"] = True
    refused = call("push", str(folder), "me/hidden", "--public")
    assert refused.exit_code == 2 and "is there and private" in refused.output


def test_a_whole_model_is_uploaded_and_to_another_branch(
    call: Call, hub: Hub, tmp_path: Path, tiny_folder: Callable[[str], Path], tokenizer: Any
) -> None:
    """What was sent is loaded from there as it was from here, and main is left alone until it is asked for."""
    folder, got = tmp_path / "whole", tmp_path / "got"
    trainer = make_trainer(str(tiny_folder("llama")), folder, tokenizer, max_steps=1)
    trainer.train()
    trainer.save_model(folder)
    for number in (1, 2):  # the second time the branch is there
        done = call("push", str(folder), "me/whole", "--revision", "second", "-m", f"commit {number}")
        assert done.exit_code == 0 and f"uploaded to {hub.url}/me/whole" in done.output, done.output
    assert hub.commits == ["commit 1", "commit 2"]
    assert hub.files["me/whole"] == {} and [*hub.branches["me/whole"]] == ["second"]
    sent = hub.branches["me/whole"]["second"]
    assert {"model.safetensors", "config.json", "generation_config.json", "README.md", "tokenizer.json"} <= {*sent}
    assert "adapter_config.json" not in sent and 'from_pretrained("me/whole")' in sent["README.md"].decode()
    got.mkdir()
    for name, content in sent.items():
        (got / name).write_bytes(content)
    theirs = load_causal_lm(got).state_dict()
    assert all(weight.equal(theirs[name]) for name, weight in trainer.model.state_dict().items())
    assert load_tokenizer(got).get_vocab() == tokenizer.get_vocab()
    done = call("push", str(folder), "me/whole")
    assert done.exit_code == 0 and hub.files["me/whole"].keys() == sent.keys(), done.output


def test_refusals_are_sentences(call: Call, trained: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = trained
    for arguments, said in (
        ((str(folder), "mine"), "expected OWNER/NAME"),
        ((str(folder), "https://x/me/mine"), "expected OWNER/NAME"),
        ((str(folder / "none"), "me/mine"), "no such folder"),
    ):
        done = call("push", *arguments)
        assert done.exit_code == 2 and said in done.output, done.output
    hub.status = 403
    done = call("push", str(folder), "me/mine", "--no-report")
    assert done.exit_code == 1 and "may write to this owner's" in done.output and "not expected" not in done.output
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    done = call("push", str(folder), "me/mine", "--no-report")
    assert done.exit_code == 1 and "hf auth login" in done.output and "not expected" not in done.output, done.output
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = call("push", str(folder), "me/mine", "--no-report")
    assert done.exit_code == 1 and "HF_HUB_OFFLINE=1" in done.output, done.output
    assert hub.private == {}


def test_what_an_adapter_needs_goes_along_and_no_path_of_this_machine(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(trained[1] / "model", model)
    (model / "base_quantization.json").write_text("{}")
    assert "base_quantization.json" in planned_upload(model, "me/mine").files, "else the adapter is another model"
    # A whole model that was trained from a folder, which the recipe named by a relative path.
    (model / "adapter_config.json").unlink()
    (tmp_path / "models/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = '---\nbase_model: "{0}"\n---\n# {0}, trained with TDPO2\n'
    for name, is_shown in (("models/mine", False), (str(tmp_path / "models/mine"), False), ("org/mine", True)):
        (model / "README.md").write_text(card.format(name))
        sent = planned_upload(model, "me/mine").files["README.md"]
        assert isinstance(sent, bytes)
        assert ("base_model:" in sent.decode(), f"# {name}," in sent.decode()) == (is_shown, is_shown), name
        assert is_shown or "# mine, trained with" in sent.decode()


def test_a_model_of_an_earlier_end_is_pointed_out(call: Call, trained: Any) -> None:
    _, folder = trained
    run = RunDirectory(folder)
    run.set_status("interrupted", step=3)
    try:
        for command in (["push", str(folder), "me/mine", "--dry-run", "--no-report"], ["merge", str(folder), "out"]):
            said = " ".join(call(*command).output.split())
            assert "was interrupted at update 3" in said and "the model in it was saved before that" in said, said
    finally:
        run.set_status("finished", step=1)
    assert "was saved before" not in call("push", str(folder), "me/mine", "--dry-run", "--no-report").output


def test_a_folder_without_safe_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"no weights as safetensors.*pytorch_model\.bin"):
        planned_upload(tmp_path, "me/mine")


def test_the_trainer_pushes_model_and_our_card(trained: Any, hub: Hub) -> None:
    trainer, _ = trained
    assert isinstance(trainer, TDPOTrainer)
    trainer.args.hub_model_id = "me/from-python"
    trainer.push_to_hub(commit_message="from Python")
    sent = hub.files["me/from-python"]
    assert "adapter_model.safetensors" in sent and hub.commits[-1] == "from Python"
    assert "trained with TDPO2" in sent["README.md"].decode()
