"""What README and docs show is what happens: their commands and snippets are executed."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.bundled_stand_in import cache_with_stand_in
from helpers.warm_processes import WarmProcess, folder_with_tdpo
from tdpo.models import bundled_folder

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path, *languages: str) -> list[tuple[str, str]]:
    return [(lang, text) for lang, text in BLOCK.findall(path.read_text(encoding="utf-8")) if lang in languages]


def run(language: str, text: str, folder: Path, commands: Path | None = None) -> tuple[int, str, str]:
    """Run a block in `folder`: its exit status, and what it wrote to both streams.

    Commands come from the folder `commands`, or else from beside the interpreter. Python runs in a warm process.
    """
    path = [*([str(commands)] if commands else []), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(path)}
    if language == "python":
        script = folder.parent / "block.py"
        script.write_text(text, encoding="utf-8")
        process = WarmProcess(script, environment=environment, folder=folder)
        return process.wait(600), process.output, process.errors
    command = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


def shown_to_work(language: str, text: str, folder: Path, commands: Path | None = None) -> str:
    status, printed, said = run(language, text, folder, commands)
    assert status == 0, f"{text}\nended with {status}:\n{printed}\n{said}"
    return printed


@pytest.mark.slow
@pytest.mark.bundled
def test_every_command_of_the_tutorial_works_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As written, but with a small stand-in under the bundled model's name, whose numbers the page does not quote."""
    shown = blocks(ROOT / "docs/tutorial.md", "bash", "python")
    assert len(shown) >= 8
    folder, cache = tmp_path / "empty", tmp_path / "cache"
    folder.mkdir()
    cache_with_stand_in(cache)
    monkeypatch.setenv("TDPO_CACHE", str(cache))
    commands = folder_with_tdpo(tmp_path / "commands")
    printed = [shown_to_work(language, text, folder, commands) for language, text in shown]
    assert (folder / "report.html").stat().st_size > 10_000
    # The last block is plain transformers: what was saved answers there as it does here.
    ours = 'tdpo generate merged --prompt "How was your day?" --temperature 0 --max-new-tokens 24 --json'
    response = json.loads(shown_to_work("bash", ours, folder, commands))
    assert response["text"] == printed[-1].removesuffix("\n") != ""


@pytest.mark.slow
@pytest.mark.bundled
def test_the_bundled_model_itself_is_asked_as_the_tutorial_does(tmp_path: Path) -> None:
    """In its real size, by the installed command: it says what it says in plain transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = 'tdpo generate smollm2-135m --prompt "How was your day?" --temperature 0 --max-new-tokens 8 --json'
    response = json.loads(shown_to_work("bash", ours, tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(bundled_folder())
    model = AutoModelForCausalLM.from_pretrained(bundled_folder(), dtype="float32")
    messages = [{"role": "user", "content": "How was your day?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert response["text"] == tokenizer.decode(tokens, skip_special_tokens=True) != ""


def test_a_block_that_fails_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ended with 1"):
        shown_to_work("bash", "false\ntrue", tmp_path)


def test_the_review_of_the_study_prints_the_intervals_that_its_page_quotes(tmp_path: Path) -> None:
    page = (ROOT / "docs/study/README.md").read_text(encoding="utf-8")
    claim = page[page.index("**Claim 1") : page.index("**Claim 2")].replace("−", "-")
    quoted = re.findall(r"-0\.\d+ \[[^\]]+\]", claim)
    printed = shown_to_work("bash", f"{sys.executable} {ROOT}/docs/study/review.py", tmp_path).replace("+", "")
    assert len(quoted) == 7
    assert [interval for interval in quoted if interval not in printed] == []


def test_the_page_of_the_study_at_a_target_says_what_its_tables_say(tmp_path: Path) -> None:
    folder = ROOT / "docs/study/two_cores"
    page = (folder / "README.md").read_text(encoding="utf-8")
    printed = shown_to_work("bash", f"{sys.executable} {ROOT}/docs/study/tables.py {folder}", tmp_path)
    rows = [line.rstrip() for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) >= 80 and [row for row in rows if row not in page] == []
    found = page[page.index("## What was found") : page.index("## The answers")]
    quoted = re.findall(r"[−+]?[\d.]+\s\[[^\]]+\]", found)
    questions = json.loads((folder / "questions.json").read_text(encoding="utf-8"))["questions"]
    answers = [[answer[key] for key in ("value", "low", "high")] for q in questions for answer in q["answers"]]
    assert len(quoted) == 10
    for text in quoted:
        numbers = re.findall(r"[\d.]+", text)
        rounded = [sorted(f"{abs(number):.{len(numbers[0]) - 2}f}" for number in answer) for answer in answers]
        assert sorted(numbers) in rounded, text


def test_what_is_read_besides_in_the_study_at_a_target_is_printed(tmp_path: Path) -> None:
    folder = ROOT / "docs/study/two_cores"
    page = (folder / "README.md").read_text(encoding="utf-8")
    besides = page[page.index("## What can be read besides") : page.index("## How far it can be trusted")]
    quoted = {tuple(re.findall(r"[\d.]+", text)) for text in re.findall(r"0\.\d{3} [a-z\s]*\[[^\]]+\]", besides)}
    printed = shown_to_work("bash", f"{sys.executable} {ROOT}/docs/study/readings.py {folder}", tmp_path)
    rows = [line for line in printed.splitlines() if re.search(r"\| \[", line)]
    known = {tuple(sorted(re.findall(r"[\d.]+", "".join(row.split("|")[3:5])))) for row in rows}
    assert len(quoted) == 12 and {tuple(sorted(numbers)) for numbers in quoted} <= known


def test_the_snippet_about_the_two_kls_prints_what_the_page_says(tmp_path: Path) -> None:
    page = ROOT / "docs/the_two_kls.md"
    [(language, text)] = blocks(page, "python")
    (_, printed), *_ = blocks(page, "text")
    assert shown_to_work(language, text, tmp_path) == printed


def test_the_page_on_diversity_prints_what_it_says_and_names_what_there_is(tmp_path: Path) -> None:
    from tdpo import diversity

    page = ROOT / "docs/diversity.md"
    [(language, text)] = blocks(page, "python")
    [(_, printed)] = blocks(page, "text")
    assert shown_to_work(language, text, tmp_path) == printed
    rows = re.findall(r"^\| (`.+?) \| `(\w+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    for _, function in rows:
        assert callable(getattr(diversity, function))
    everything = {"rewards": [[1.0]], "threshold": 0.5, "modes": ["m"], "labels": [["m"]], "embeddings": [[[1.0]]]}
    measured = diversity.measure_diversity([["a"]], **everything).overall
    per_input = {name for name in measured if not re.match("(across|gated)_|valid_share", name)}
    assert {name for names, _ in rows for name in re.findall(r"`(\w+)`", names)} == per_input


def test_the_snippets_about_the_fast_paths_run(tmp_path: Path) -> None:
    found = blocks(ROOT / "docs/the_fast_paths.md", "python")
    assert len(found) >= 3
    for language, text in found:
        shown_to_work(language, text, tmp_path)


SOURCE = ROOT / "src/tdpo"


def defines(body: list[ast.stmt], parts: Sequence[str]) -> bool:
    """Whether a function or class of the dotted name `parts` is defined in `body`."""
    named = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == parts[0]]
    return any(len(parts) == 1 or defines(node.body, parts[1:]) for node in named)


@functools.cache
def parsed_sources() -> dict[str, ast.Module]:
    files = sorted(SOURCE.rglob("*.py"))
    return {file.relative_to(SOURCE).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def files_defining(name: str) -> list[str]:
    return [file for file, tree in parsed_sources().items() if defines(tree.body, name.split("."))]


def names_of_code(page: str) -> list[tuple[str, str]]:
    """(where, name) of every `room::name` and `room/file.py::name` of a page."""
    return re.findall(r"`([\w/]+(?:\.py)?)::([\w.]+)`", page)


def wrong_names(page: str) -> list[str]:
    """What a page names that is not defined where it says, each with where it is defined."""
    wrong = []
    for where, name in names_of_code(page):
        files = files_defining(name)
        if not any(file in (where, f"{where}.py") or file.startswith(f"{where}/") for file in files):
            wrong.append(f"{where}::{name} is defined in: {', '.join(files) or 'no file'}")
    return wrong


def test_the_fast_paths_name_functions_and_log_lines_that_exist() -> None:
    from tdpo.scoring.head_path import SENTENCES

    page = (ROOT / "docs/the_fast_paths.md").read_text(encoding="utf-8")
    assert len(names_of_code(page)) > 20
    assert wrong_names(page) == []
    for sentence in SENTENCES.values():
        assert sentence.replace("{why}", "…") in page


def test_wrong_names_are_noticed() -> None:
    assert wrong_names("`losses.py::dpo_loss`, `losses::dpo_loss`, `token_statistics::Head.logits`") == []
    assert wrong_names("`scores.py::dpo_loss`") == ["scores.py::dpo_loss is defined in: losses.py"]
    assert wrong_names("`losses.py::no_loss`") == ["losses.py::no_loss is defined in: no file"]
    assert len(wrong_names("`token_statistics::Head.no_method`, `token::Head`")) == 2


def test_the_test_files_that_pages_name_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for file in re.findall(r"`(tests/[\w/]+\.py)", page.read_text(encoding="utf-8")):
            assert (ROOT / file).exists(), f"{page.name} names {file}, which does not exist"


def test_the_snippets_of_the_readme_run(tmp_path: Path) -> None:
    found = blocks(ROOT / "README.md", "python")
    assert found
    for language, text in found:
        shown_to_work(language, text, tmp_path)


def test_the_recipe_of_the_readme_is_valid(tmp_path: Path) -> None:
    from tdpo.config import load_recipe

    found = blocks(ROOT / "README.md", "yaml")
    assert found
    for _, text in found:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        assert load_recipe(path).loss.name == "tdpo2"


FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@functools.cache
def places(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor or "") of every link of a page that does not lead out of the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    parts = [target.partition("#") for target in targets if "://" not in target]
    return [((page.parent / path).resolve() if path else page, anchor) for path, _, anchor in parts]


def all_pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"]


def test_links_between_pages_lead_somewhere() -> None:
    for page in all_pages():
        for target, anchor in links(page):
            assert target.exists(), f"{page.name} links to {target}, which does not exist"
            assert not anchor or anchor in places(target), f"{page.name} links to {anchor} of {target.name}"


def test_formulas_are_plain_text() -> None:
    """The site loads nothing from elsewhere, so nothing there draws TeX."""
    with_tex = [page.name for page in all_pages() if re.search(r"\$\$|\$[^$\n]*\\\w+[^$\n]*\$|\$\w\$", prose(page))]
    assert with_tex == []


def test_the_recipe_of_the_page_on_ppo_is_one(tmp_path: Path) -> None:
    """Its prompts and rewards, with the function and the model that they name."""
    from tdpo.config import PPORecipe, load_recipe
    from tdpo.environments import load_function

    (_, text), (_, without_critic) = blocks(ROOT / "docs/ppo.md", "yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text(f"run_dir: runs/x\nenvironment: {{name: sentiment}}\n{without_critic}")
    rloo = load_recipe(path)
    assert isinstance(rloo, PPORecipe) and rloo.ppo.advantage == "rloo" and rloo.kl.constraint.estimator == "exact"
    path.write_text(f"run_dir: runs/x\nppo: {{}}\n{text}")
    recipe = load_recipe(path)
    assert isinstance(recipe, PPORecipe) and recipe.rewards is not None and len(recipe.rewards) == 2
    snippet = next(text for _, text in blocks(ROOT / "docs/ppo.md", "text") if "PPOTrainer" in text)
    definition = snippet[snippet.index("def ") : snippet.index("trainer =")]
    (tmp_path / "my_rewards.py").write_text(definition)
    reward = load_function(str(recipe.rewards[0].function).replace("my_rewards", str(tmp_path / "my_rewards")))
    assert reward(prompts=["a", "b"], completions=["yes, please", "no"]) == [1.0, 0.0]


def test_the_reverse_kl_has_one_name() -> None:
    """KL(policy‖reference) is the reverse KL everywhere. The glossary alone names the other word, which is not used."""
    other = re.compile(r"backwards?[ _-]kl|kl[ _]backward|KL\((?:ref|policy)‖(?:ref|pi)\)", re.IGNORECASE)
    kinds = ("*.md", "*.py", "*.jinja", "*.js", "*.yaml")
    pages = [path for folder in ("src", "docs", "examples") for kind in kinds for path in (ROOT / folder).rglob(kind)]
    pages += list(ROOT.glob("*.md"))
    uses = {path.name: other.findall(path.read_text(encoding="utf-8")) for path in pages}
    assert {name: words for name, words in uses.items() if words} == {"ARCHITECTURE.md": ["backward KL"]}
