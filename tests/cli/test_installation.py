"""Hints name the place from which the package came, and no name that an index would look up."""

from __future__ import annotations

import json
import re
import shlex
import types
from pathlib import Path
from typing import Any

import pytest

from tdpo import installation
from tdpo.installation import extra_command, module_command

ROOT = Path(__file__).parents[2]


def installed_from(monkeypatch: pytest.MonkeyPatch, origin: Any) -> None:
    """Let the package be installed, and its metadata say `origin`."""
    text = origin if isinstance(origin, str) or origin is None else json.dumps(origin)
    monkeypatch.setattr(installation, "_SOURCE_TREE", Path("/nowhere"))
    monkeypatch.setattr(installation, "distribution", lambda name: types.SimpleNamespace(read_text=lambda file: text))


def test_a_clone_names_itself() -> None:
    root = installation._SOURCE_TREE
    assert extra_command("eval") == f"pip install -c {root}/constraints.txt -e '{root}[eval]'"


def test_a_folder_is_found_again_and_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clone = tmp_path / "a clone"
    clone.mkdir()
    installed_from(monkeypatch, {"url": clone.as_uri(), "dir_info": {"editable": True}})
    assert shlex.split(extra_command("demo")) == ["pip", "install", "-e", f"{clone}[demo]"]
    (clone / "constraints.txt").touch()
    installed_from(monkeypatch, {"url": clone.as_uri(), "dir_info": {}})
    pins = str(clone / "constraints.txt")
    assert shlex.split(extra_command("demo")) == ["pip", "install", "-c", pins, f"{clone}[demo]"]
    wheel = tmp_path / "tdpo-0.1-py3-none-any.whl"
    wheel.touch()
    installed_from(monkeypatch, {"url": wheel.as_uri(), "archive_info": {}})
    assert shlex.split(extra_command("demo")) == ["pip", "install", f"{wheel}[demo]"]


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        (
            {"url": "https://git.example/tdpo", "vcs_info": {"vcs": "git", "commit_id": "1abc"}},
            "git+https://git.example/tdpo@1abc",
        ),
        ({"url": "https://example.org/tdpo.whl", "archive_info": {}}, "https://example.org/tdpo.whl"),
    ],
)
def test_an_address_is_named(monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any], source: str) -> None:
    installed_from(monkeypatch, origin)
    assert extra_command("train") == f"pip install 'tdpo[train] @ {source}'"


@pytest.mark.parametrize("origin", [None, "no json", "[]", {"url": "file:///gone", "dir_info": {}}])
def test_without_a_known_place_it_is_the_clones_command(monkeypatch: pytest.MonkeyPatch, origin: Any) -> None:
    installed_from(monkeypatch, origin)
    assert extra_command("eval") == 'pip install -c constraints.txt ".[eval]" (in a clone of tdpo)'


def test_only_packages_that_are_meant_get_a_command() -> None:
    assert module_command("sentence_transformers.models") == extra_command("eval")
    assert module_command("yaml") == extra_command("train")
    assert module_command("comet_ml") == "pip install comet_ml"
    assert "pip" not in module_command("my_rewards"), "somebody else may have registered that name"


def test_no_hint_and_no_page_sends_to_an_index() -> None:
    by_name = re.compile(r"""install[^\n#]*['"\s]tdpo(\[|['"\s]*$)""", re.MULTILINE)
    assert by_name.search("pip install 'tdpo[eval]'") and by_name.search("pip install tdpo\n")
    places = [*ROOT.glob("*.md"), *ROOT.glob("src/**/*.*"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*")]
    texts = {path: path.read_text("utf-8") for path in places if path.suffix in {".md", ".py", ".html", ".yaml"}}
    hints = {path.name for path, text in texts.items() if path.name != "installation.py" and by_name.search(text)}
    assert hints == set() and len(texts) > 300
