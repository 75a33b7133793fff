"""Check the archives in a folder: one sdist and one wheel of the version of the code, with every file of the package.

python release/check_dist.py dist
"""

from __future__ import annotations

import ast
import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = ("LICENSE", "README.md", "pyproject.toml")  # in the sdist, beside the package
NOT_SHIPPED = re.compile(r"(^|/)(__pycache__|[^/]*\.pyc|\.)")


def package_version(root: Path = ROOT) -> str:
    """`__version__` as it is written in the package, which is not imported."""
    tree = ast.parse((root / "src/tdpo/__init__.py").read_text(encoding="utf-8"))
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return str(ast.literal_eval(assigned["__version__"]))


def problems(folder: Path, root: Path = ROOT) -> list[str]:
    """A sentence about each archive that is missing or one too many, and each file that an archive lacks."""
    version = package_version(root)
    names = {"sdist": f"tdpo-{version}.tar.gz", "wheel": f"tdpo-{version}-py3-none-any.whl"}
    there = {path.name for path in folder.glob("*")} if folder.is_dir() else set()
    said = [f"{folder} lacks the {kind} {name}" for kind, name in names.items() if name not in there]
    said += [f"{folder} holds {name}, which is not of this version" for name in sorted(there - set(names.values()))]
    if said:
        return said
    sources = [path.relative_to(root / "src").as_posix() for path in (root / "src/tdpo").rglob("*") if path.is_file()]
    shipped = [name for name in sorted(sources) if not NOT_SHIPPED.search(name)]
    with zipfile.ZipFile(folder / names["wheel"]) as wheel:
        packed = set(wheel.namelist())
    said += [f"the wheel lacks {name}" for name in shipped if name not in packed]
    foreign = sorted({name.partition("/")[0] for name in packed} - {"tdpo", f"tdpo-{version}.dist-info"})
    said += [f"the wheel would install {name} beside the package" for name in foreign]
    with tarfile.open(folder / names["sdist"]) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = [*NEEDED, *(f"src/{name}" for name in shipped)]
    return said + [f"the sdist lacks {name}" for name in wanted if name not in packed]


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]))
    sys.exit("\n".join(found) if found else None)
