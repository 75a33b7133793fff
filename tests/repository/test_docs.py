"""What README and docs show is what happens: their commands and snippets are executed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path, *languages: str) -> list[tuple[str, str]]:
    return [(lang, text) for lang, text in BLOCK.findall(path.read_text(encoding="utf-8")) if lang in languages]


def run(language: str, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = {"bash": ["bash", "-euo", "pipefail", "-c", text], "python": [sys.executable, "-c", text]}[language]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=600
    )


def shown_to_work(language: str, text: str, folder: Path) -> str:
    done = run(language, text, folder)
    assert done.returncode == 0, f"{text}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.bundled
def test_every_command_of_the_tutorial_works_in_an_empty_folder(tmp_path: Path) -> None:
    found = blocks(ROOT / "docs/tutorial.md", "bash", "python")
    assert len(found) >= 8
    printed = [shown_to_work(language, text, tmp_path) for language, text in found]
    assert (tmp_path / "report.html").stat().st_size > 10_000
    # The last block is plain transformers: what was saved answers there as it does here.
    ours = 'tdpo generate merged --prompt "How was your day?" --temperature 0 --max-new-tokens 24 --json'
    answer = json.loads(shown_to_work("bash", ours, tmp_path))
    assert answer["text"] == printed[-1].removesuffix("\n") != ""


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


def test_the_snippet_about_the_two_kls_prints_what_the_page_says(tmp_path: Path) -> None:
    page = ROOT / "docs/the_two_kls.md"
    [(language, text)] = blocks(page, "python")
    [(_, printed)] = blocks(page, "text")
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


def test_the_fast_paths_name_functions_and_log_lines_that_exist() -> None:
    from tdpo.scoring.head_path import SENTENCES

    page = (ROOT / "docs/the_fast_paths.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::([\w.]+)`", page)
    assert len(named) > 20
    for file, name in named:
        source = (ROOT / "src/tdpo" / file).read_text(encoding="utf-8")
        for part in name.split("."):
            assert re.search(rf"^\s*(def|class) {part}\b", source, re.MULTILINE), f"{file} has no {name}"
    for sentence in SENTENCES.values():
        assert sentence.replace("{why}", "…") in page


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


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_the_recipe_of_the_page_on_ppo_is_one(tmp_path: Path) -> None:
    """Its prompts and rewards, with the function and the model that they name."""
    from tdpo.config import PPORecipe, load_recipe
    from tdpo.environments import load_function

    [(_, text)] = blocks(ROOT / "docs/ppo.md", "yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text(f"run_dir: runs/x\nppo: {{}}\n{text}")
    recipe = load_recipe(path)
    assert isinstance(recipe, PPORecipe) and recipe.rewards is not None and len(recipe.rewards) == 2
    snippet = next(text for _, text in blocks(ROOT / "docs/ppo.md", "text") if "PPOTrainer" in text)
    definition = snippet[snippet.index("def ") : snippet.index("trainer =")]
    (tmp_path / "my_rewards.py").write_text(definition)
    reward = load_function(str(recipe.rewards[0].function).replace("my_rewards", str(tmp_path / "my_rewards")))
    assert reward(prompts=["a", "b"], completions=["yes, please", "no"]) == [1.0, 0.0]
