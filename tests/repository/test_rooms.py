"""The folders of the tests mirror the rooms of the package, and no test file imports another."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

import tdpo

TESTS = Path(__file__).parents[1]
SOURCE = Path(tdpo.__file__).parent
# Folders of tests that are no rooms of their own, with the files of the package that they test.
ELSEWHERE: dict[str, set[str]] = {
    "mathematics": {"divergences", "kl_choices", "losses", "policy_gradient", "scores"},
    "repository": set(),  # the repository itself: layers, documents, examples, benchmarks
    "helpers": set(),
    "engines": set(),  # the real vLLM server, by a make target of its own
}
# Rooms without a folder, with the folder whose tests are about them.
TESTED_IN = {
    "bootstrap": "evaluation",
    "embeddings": "diversity",
    "guards": "config",
    "installation": "cli",
    "methods": "config",
    "workflows": "cli",
}


def rooms(source: Path) -> set[str]:
    """Folders and files of the package, other than its entry points."""
    names = {path.stem for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    return names - {"__init__", "__main__"}


def folders_of_tests(tests: Path) -> set[str]:
    return {path.parent.relative_to(tests).parts[0] for path in tests.rglob("test_*.py")}


def without_a_mirror(rooms: Iterable[str], folders: Iterable[str]) -> list[str]:
    """Rooms that no folder of tests is about, and folders of tests that are about no room."""
    rooms, folders = set(rooms), set(folders)
    covered = {room for folder in folders for room in ELSEWHERE.get(folder, {folder})}
    covered |= {room for room, folder in TESTED_IN.items() if folder in folders}
    return sorted(rooms - covered) + sorted(folders - rooms - set(ELSEWHERE))


def test_every_room_has_a_folder_of_tests_and_every_folder_a_room() -> None:
    assert without_a_mirror(rooms(SOURCE), folders_of_tests(TESTS)) == []
    assert set(TESTED_IN) <= rooms(SOURCE) and not set(TESTED_IN) & folders_of_tests(TESTS), "an exception that is none"


def test_what_has_no_mirror_is_noticed() -> None:
    assert without_a_mirror({"batches", "scores"}, {"batches", "mathematics"}) == []
    assert without_a_mirror({"batches", "newcomer"}, {"batches", "leftover"}) == ["newcomer", "leftover"]
    assert without_a_mirror({"guards"}, {"batches"}) == ["guards", "batches"]


def imports_of_tests(files: Mapping[str, str]) -> list[str]:
    """Imports of a test file or a conftest, among files given as name → source."""
    wrong = []
    for name, source in files.items():
        for node in ast.walk(ast.parse(source)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{name}: {m}" for m in modules if m.split(".")[-1].startswith(("test_", "conftest"))]
    return wrong


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports them by it, and refuses the second one that a process meets."""
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, files in names.items() if files > 1] == []


def test_no_test_file_imports_another() -> None:
    assert imports_of_tests({p.name: p.read_text(encoding="utf-8") for p in TESTS.rglob("*.py")}) == []


@pytest.mark.parametrize(
    "source", ["import test_ppo", "from test_ppo import x", "def f():\n    from conftest import x"]
)
def test_imports_of_tests_are_noticed(source: str) -> None:
    assert len(imports_of_tests({"test_new.py": source})) == 1
