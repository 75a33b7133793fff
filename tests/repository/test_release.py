"""Version, archives and site: one place for the version, and checks that notice what is missing or foreign."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import tdpo

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    """A module of the folder release/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"release/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


check_dist, check_site = script("check_dist"), script("check_site")


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"] and "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "tdpo.__version__"}
    assert check_dist.package_version() == tdpo.__version__
    newest = re.search(r"^## (\S+),", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None and newest[1] == tdpo.__version__
    asked = [p.name for p in (ROOT / "src").rglob("*.py") if 'version("tdpo")' in p.read_text(encoding="utf-8")]
    assert asked == [], "an editable installation keeps the number of its first day"


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """A tiny source tree in tmp_path, with its two archives in tmp_path/dist, which is returned."""
    package = tmp_path / "src/tdpo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "3.1"\n')
    (package / "page.html").write_text("x")
    for name in check_dist.NEEDED:
        (tmp_path / name).write_text("x")
    dist = tmp_path / "dist"
    dist.mkdir()
    with tarfile.open(dist / "tdpo-3.1.tar.gz", "w:gz") as sdist:
        for name in (*check_dist.NEEDED, "src/tdpo/__init__.py", "src/tdpo/page.html"):
            sdist.add(tmp_path / name, f"tdpo-3.1/{name}")
    with zipfile.ZipFile(dist / "tdpo-3.1-py3-none-any.whl", "w") as wheel:
        for name in ("tdpo/__init__.py", "tdpo/page.html"):
            wheel.write(tmp_path / "src" / name, name)
    return dist


def test_whole_archives_pass_and_what_is_missing_is_named(archives: Path) -> None:
    root = archives.parent
    assert check_dist.problems(archives, root) == []
    (root / "src/tdpo/data.yaml").write_text("x")  # as a file that package-data forgets
    with zipfile.ZipFile(archives / "tdpo-3.1-py3-none-any.whl", "a") as wheel:
        wheel.writestr("tests/test_x.py", "")
    assert check_dist.problems(archives, root) == [
        "the wheel lacks tdpo/data.yaml", "the wheel would install tests beside the package",
        "the sdist lacks src/tdpo/data.yaml",
    ]  # fmt: skip
    (root / "src/tdpo/__init__.py").write_text('__version__ = "3.2"\n')
    assert [line for line in check_dist.problems(archives, root) if "lacks the wheel tdpo-3.2" in line]


def test_a_site_that_loads_from_elsewhere_or_links_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/index.html").write_text('<h1 id="there">x</h1><a href="../page.html">x</a>')
    page = tmp_path / "page.html"
    page.write_text('<link rel="next" href="https://x/"><a href="https://x/">x</a><a href="sub/#there">x</a>')
    assert check_site.problems(tmp_path) == []
    page.write_text(
        '<script src="//x/a.js"></script><link rel="stylesheet" href="https://x/a.css"><a href="sub/#not">x</a>'
        '<a href="gone.html">x</a><img src="gone.png">'
    )
    (tmp_path / "own.css").write_text("@import 'https://x/b.css'; a { background: url(https://x/c.png) }")
    said = check_site.problems(tmp_path)
    expected = (
        "b.css",
        "c.png",
        "loads //x/a.js",
        "a.css",
        "sub/#not: there is no such place",
        "gone.html",
        "gone.png",
    )
    assert [part for part in expected if not any(part in line for line in said)] == []
    assert [line for line in said if not any(part in line for part in expected)] == []
    assert check_site.problems(tmp_path / "none") == [f"{tmp_path / 'none'} holds no page; build it first: make site"]


def test_every_page_is_in_the_sites_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": (\S+\.md)$", config, re.MULTILINE))
    pages = {p.relative_to(ROOT).as_posix() for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))}
    assert pages - named == set() and all((ROOT / name).is_file() for name in named)
    assert yaml.safe_load(config)["strict"] is True and yaml.safe_load(config)["theme"]["font"] is False


def test_what_the_api_pages_read_from_docstrings_is_there() -> None:
    names = [n for page in (ROOT / "docs/api").glob("*.md") for n in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
    assert len(names) > 40
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            entry = getattr(importlib.import_module(module), attribute)
        except AttributeError:
            entry = importlib.import_module(name)
        assert entry.__doc__, name
