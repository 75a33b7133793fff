"""Code that a folder brings along does not run where nobody trusted it, whoever loads the folder."""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tdpo
from helpers.ppo_cases import make_ppo
from helpers.tiny_models import build_model, build_tokenizer
from tdpo.cli._model_checks import model_checks
from tdpo.embeddings import SentenceEmbedder
from tdpo.models import load_causal_lm, load_tokenizer, model_facts
from tdpo.models.trust import UntrustedCode
from tdpo.preferences import UnreadablePreferences, load_preferences
from tdpo.rewards.functions import RewardModel
from tdpo.training import TDPOConfig, TDPOTrainer

CODE = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
class Config(LlamaConfig): model_type = "brought"
class Lm(LlamaForCausalLM): config_class = Config
class Judge(LlamaForSequenceClassification): config_class = Config
class Words(PreTrainedTokenizerFast): pass
class Part: pass
"""
AUTO = {
    "AutoConfig": "brought.Config",
    "AutoModel": "brought.Lm",
    "AutoModelForCausalLM": "brought.Lm",
    "AutoModelForSequenceClassification": "brought.Judge",
}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@pytest.fixture(autouse=True)
def _somebody_says_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `yes | tdpo …` would."""
    monkeypatch.setattr(builtins, "input", lambda *_: "yes")


@pytest.fixture
def foreign(tmp_path: Path, mark: Path) -> Path:
    """A folder of a model, an embedder and a dataset that all need the code in it."""
    folder = tmp_path / "foreign"
    build_model("llama").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    code = CODE.format(mark=str(mark))
    (folder / "brought.py").write_text(code)
    (folder / "foreign.py").write_text(code)  # a dataset's script
    edit(folder / "config.json", model_type="brought", auto_map=AUTO)
    auto = {"AutoTokenizer": ["brought.Words", "brought.Words"]}
    edit(folder / "tokenizer_config.json", tokenizer_class="Words", auto_map=auto)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "brought.Part"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def ppo(folder: Path, **given: Any) -> Any:
    reward = given.pop("reward", len)
    return make_ppo(build_model("llama"), folder.parent / "run", build_tokenizer(), reward, ["a"], **given)


def tdpo_trainer(folder: Path) -> Any:
    args = TDPOConfig(output_dir=str(folder.parent / "run"), use_cpu=True, report_to="none")
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}]
    return TDPOTrainer(str(folder), args=args, train_dataset=rows, processing_class=build_tokenizer())


def adapter_of(folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    adapter = folder.parent / "adapter"
    get_peft_model(build_model("llama"), LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(adapter)
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(folder))
    return adapter


def words_only(folder: Path) -> Path:
    """The folder as a reward model would be whose weights need no code, but whose tokenizer does."""
    (folder / "config.json").write_text((build_config()).to_json_string())
    return folder


def build_config() -> Any:
    return build_model("llama").config


LOADERS: dict[str, Callable[[Path], Any]] = {
    "tokenizer": load_tokenizer,
    "causal language model": load_causal_lm,
    "adapter": lambda folder: load_causal_lm(adapter_of(folder)),
    "facts": lambda folder: model_facts(folder, build_tokenizer()),
    "doctor": lambda folder: list(model_checks({"model.name": str(folder)}, False)),
    "reward model": lambda folder: RewardModel(folder, build_tokenizer()),
    "reward adapter": lambda folder: RewardModel(adapter_of(folder), build_tokenizer()),
    "tokenizer of a reward model": lambda folder: RewardModel(words_only(folder), build_tokenizer()),
    "reward of PPO": lambda folder: ppo(folder, reward=str(folder)),
    "critic": lambda folder: ppo(folder, reward=lambda completions, **_: [0.0], value_model=str(folder)),
    "reference": lambda folder: ppo(folder, reward=lambda completions, **_: [0.0], ref_model=str(folder)),
    "policy": tdpo_trainer,
    "embedder": lambda folder: SentenceEmbedder.load(str(folder)),
    "plain embedder": lambda folder: SentenceEmbedder.load(str(without_modules(folder))),
}


def without_modules(folder: Path) -> Path:
    (folder / "modules.json").unlink()
    return folder


@pytest.mark.parametrize("kind", LOADERS)
def test_code_of_a_folder_leaves_no_mark(kind: str, foreign: Path, mark: Path) -> None:
    with pytest.raises(UntrustedCode, match=r"brings Python code of its own, which may not run.*trust_remote_code"):
        LOADERS[kind](foreign)
    assert not mark.exists()


def test_a_script_is_no_dataset(foreign: Path, mark: Path) -> None:
    with pytest.raises(UnreadablePreferences, match="was not saved by `datasets`"):
        load_preferences(foreign)
    assert not mark.exists()


def test_code_that_is_trusted_runs(foreign: Path, mark: Path) -> None:
    """Or the tests above prove nothing."""
    load_causal_lm(foreign, trust_remote_code=True)
    assert mark.read_text() == "ran"
    mark.unlink()
    with pytest.raises(ValueError, match="lacks weights"):  # it got as far as the missing head
        RewardModel(foreign, build_tokenizer(), trust_remote_code=True)


# Callees that take no such argument: they run no code of the folder.
TRUSTING_NOTHING = {"GenerationConfig", "PeftModel"}
SOURCE = Path(tdpo.__file__).parent


def loads_without_a_word(source: str) -> list[str]:
    """Calls of loaders without an explicit trust_remote_code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, method = called.rpartition(".")
        loads = method in ("from_pretrained", "load_dataset", "SentenceTransformer", "CrossEncoder", "pipeline")
        if not loads or owner in TRUSTING_NOTHING:
            continue
        if not any(keyword.arg == "trust_remote_code" for keyword in node.keywords):
            found.append(f"line {node.lineno}: {called}")
    return found


def test_every_loader_says_whether_it_trusts() -> None:
    silent = {str(path): loads_without_a_word(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")}
    assert {path: calls for path, calls in silent.items() if calls} == {}


@pytest.mark.parametrize(
    ("source", "silent"),
    [
        ("AutoModel.from_pretrained(folder)", 1),
        ("AutoModel.from_pretrained(folder, trust_remote_code=False)", 0),
        ("x = SentenceTransformer(name)", 1),
        ("datasets.load_dataset(name, split=split)", 1),
        ("load_dataset(name, trust_remote_code=trust)", 0),
        ("GenerationConfig.from_pretrained(folder)", 0),
        ("loader.from_pretrained(**options)", 1),
    ],
)
def test_the_search_for_silent_loaders_can_fail(source: str, silent: int) -> None:
    assert len(loads_without_a_word(source)) == silent
