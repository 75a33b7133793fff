"""The pages of the site, and the files that they link to, under the paths that they have in the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def pages(root: Path = ROOT) -> list[Path]:
    """The Markdown files that become pages."""
    return sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md"), root / "benchmarks/README.md"])


def linked_files(page: Path) -> set[Path]:
    """What a page links to that is a file and no page: pictures, numbers, recipes, sources."""
    targets = (target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target)
    paths = {(page.parent / target).resolve() for target in targets}
    return {path for path in paths if path.is_file() and path.suffix != ".md"}


def on_files(files: Files, *, config: Any) -> Files:
    """Called by MkDocs: keep the theme's files, and take the repository's from where they are."""
    kept = Files([file for file in files if not str(file.abs_src_path).startswith(str(ROOT / "docs"))])
    shown = pages()
    for path in [*shown, *sorted(set().union(*map(linked_files, shown)))]:
        kept.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return kept
