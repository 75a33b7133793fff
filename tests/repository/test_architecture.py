"""The layers: each room sees itself and those above it; the mathematics needs torch and nothing else."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import pytest

import tdpo

SOURCE = Path(tdpo.__file__).parent


def layers_of(map_of_rooms: str) -> list[set[str]]:
    """The layers of ARCHITECTURE.md, from top to bottom. In its block, a room begins a line and "--" ends a layer."""
    block = map_of_rooms.split("```layers\n")[1].split("```")[0]
    return [{line.split()[0] for line in layer.splitlines() if line.strip()} for layer in block.split("\n--\n")]


# A new room gets its place in ARCHITECTURE.md before anything imports it.
LAYERS = layers_of((Path(__file__).parents[2] / "ARCHITECTURE.md").read_text("utf-8"))
MATHEMATICS = next(layer for layer in LAYERS if "divergences" in layer)
DEPTH = {room: depth for depth, layer in enumerate(LAYERS) for room in layer}


def imported_modules(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import anywhere in a file of `package`, lazy ones included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from tdpo import x`: x is a room, or a name that the package exports.
            yield from ((node.lineno, f"{name}.{a.name}" if name == "tdpo" else name) for a in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((node.lineno, a.value) for a in node.args if isinstance(a, ast.Constant))


def room_of(module: str) -> str:
    """The room of `tdpo.room.part`; an exported name belongs to the room that it comes from."""
    name = [*module.split("."), ""][1]
    if name in tdpo._LAZY:
        return tdpo._LAZY[name].split(".")[1]
    return "losses" if name in {"", "__version__"} else name


def violations(files: Mapping[str, str]) -> list[str]:
    """What breaks the layers among the files of the package, given as path inside `tdpo` → source."""
    found = []
    for path, source in files.items():
        parts = ("tdpo", *Path(path).with_suffix("").parts)
        # The package's own __init__ loads nothing itself (see the test below), but it may name the trainers.
        here = "training" if path == "__init__.py" else parts[1]
        if here not in DEPTH:
            found.append(f"{path}: {here!r} has no layer; give it one in ARCHITECTURE.md")
            continue
        for line, module in imported_modules(source, parts[:-1]):
            if module.split(".")[0] != "tdpo":
                continue
            there = room_of(module)
            if there not in DEPTH:
                found.append(f"{path}:{line}: imports {module}, which has no layer")
            elif DEPTH[there] > DEPTH[here]:
                found.append(f"{path}:{line}: {here} imports {there}, which lies below it")
    return found


def package_files() -> dict[str, str]:
    return {p.relative_to(SOURCE).as_posix(): p.read_text("utf-8") for p in sorted(SOURCE.rglob("*.py"))}


def test_each_room_sees_only_itself_and_those_above() -> None:
    files = package_files()
    assert {"losses.py", "__init__.py"} <= files.keys()
    assert violations(files) == []


def test_the_map_names_every_room_once_and_no_other() -> None:
    rooms = {path.split("/")[0].removesuffix(".py") for path in package_files()} - {"__init__"}
    named = [room for layer in LAYERS for room in layer]
    assert sorted(named) == sorted(rooms)
    assert layers_of("```layers\na  x\nb  y\n--\nc  z\n```") == [{"a", "b"}, {"c"}]


def test_the_map_names_files_that_exist() -> None:
    text = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text("utf-8").split("## Glossary")[0]
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]*\.?[a-z]*)`", text)) | set(re.findall(r"`([a-z_]+\.py)`", text))
    missing = [name for name in named if not any((root / name).exists() for root in (SOURCE, SOURCE.parents[1]))]
    assert len(named) > 30 and missing == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("losses.py", "from .training import TDPOTrainer"),
        ("losses.py", "from . import models"),
        ("scores.py", "import tdpo.batches"),
        ("batches.py", "from tdpo.models import loading"),
        ("batches.py", "from tdpo import models"),
        ("preferences/readers.py", "from ..cli import app"),
        ("preferences/readers.py", "def f():\n    from .. import batches"),
        ("preferences/deep/er.py", "from ...batches import x"),
        ("models/model_loading.py", "if TYPE_CHECKING:\n    from ..training.offline import x"),
        ("models/model_loading.py", "from tdpo import TDPOTrainer"),
        ("report/page.py", "import importlib\nimportlib.import_module('tdpo.cli')"),
        ("__init__.py", "from .cli import main"),
        ("newcomer.py", ""),
        ("cli/main.py", "from ..newcomer import x"),
    ],
)
def test_the_walker_can_fail(path: str, source: str) -> None:
    assert len(violations({path: source})) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("losses.py", "from .scores import PairScores\nimport torch"),
        (
            "training/offline/trainer.py",
            "from ..losses import dpo_loss\nfrom .config import x\nfrom . import metrics",
        ),
        ("cli/main.py", "from tdpo import TDPOTrainer, Head, report\nimport tdpo"),
        ("__init__.py", "from .token_statistics import Head"),
    ],
)
def test_the_walker_lets_pass_what_is_right(path: str, source: str) -> None:
    assert violations({path: source}) == []


def imported_files(path: str, source: str, files: Mapping[str, str]) -> set[str]:
    """The files of the package that a file imports, also within functions and for type checkers alone.

    A name that a folder's face shows counts as an import of the face, a submodule as an import of its file.
    """
    package, targets = ("tdpo", *Path(path).parts[:-1]), set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else ()
        parts = [*base, *(node.module.split(".") if node.module else [])]
        module = "/".join(parts[1:])
        for alias in node.names:
            inner = f"{module}/{alias.name}".strip("/")
            places = (f"{inner}.py", f"{inner}/__init__.py", f"{module}.py", f"{module}/__init__.py")
            targets.add(next((place for place in places if place in files), ""))
    return targets - {""}


def circles(files: Mapping[str, str]) -> list[str]:
    """The files that import themselves by way of others."""
    direct = {path: imported_files(path, source, files) for path, source in files.items()}

    def reached_from(path: str) -> set[str]:
        seen: set[str] = set()
        waiting = set(direct[path])
        while waiting:
            seen |= waiting
            waiting = {target for place in waiting for target in direct[place]} - seen
        return seen

    return sorted(path for path in files if path in reached_from(path))


def test_no_file_imports_itself_by_way_of_others() -> None:
    files = package_files()
    assert imported_files("scores.py", files["scores.py"], files) == {"token_statistics/__init__.py"}
    assert circles(files) == []


def test_circles_are_noticed() -> None:
    one, face, needs_one = "from .two import x", "from .one import x", "if TYPE_CHECKING:\n    from . import one"
    assert circles({"a/one.py": one, "a/two.py": needs_one}) == ["a/one.py", "a/two.py"]
    assert circles({"a/one.py": one, "a/two.py": "def f():\n    from .one import x"}) == ["a/one.py", "a/two.py"]
    assert circles({"a/__init__.py": face, "a/one.py": "from ..a import x"}) == ["a/__init__.py", "a/one.py"]
    assert circles({"a/__init__.py": face, "a/one.py": "from . import two", "a/two.py": ""}) == []


def outside_imports(path: str, source: str) -> set[str]:
    package = ("tdpo", *Path(path).parts[:-1])
    tops = {module.split(".")[0] for _, module in imported_modules(source, package)}
    return tops - {"tdpo"} - set(sys.stdlib_module_names)


def test_the_mathematics_needs_torch_only() -> None:
    # What they import beside torch on first use, or to name a type.
    also = {"diversity/words.py": {"sacrebleu"}, "diversity/vectors.py": {"numpy"}}
    # Imported on a GPU only.
    passes = ("arithmetic", "mixture", "frozen_passes", "row_passes", "tiled_passes")
    also |= {f"token_statistics/cuda/{name}.py": {"triton"} for name in passes}
    seen = set()
    for path, source in package_files().items():
        room = path.split("/")[0].removesuffix(".py")
        if room in MATHEMATICS:
            seen.add(room)
            # jaxtyping names the shapes for type checkers, and is never loaded (test_shapes.py).
            assert outside_imports(path, source) <= {"torch", "jaxtyping"} | also.get(path, set()), path
    assert seen == MATHEMATICS
    assert outside_imports("losses.py", "def f():\n    import numpy.linalg") == {"numpy"}


@pytest.mark.parametrize("room", ["report", "records", "methods"])
def test_who_reads_what_lies_on_disk_never_imports_torch(room: str) -> None:
    """Neither itself nor through a room that it uses."""
    files = package_files()
    rooms, waiting = set(), {room}
    while waiting:
        room = waiting.pop()
        rooms.add(room)
        for path, source in files.items():
            if path.split("/")[0].removesuffix(".py") == room:
                assert not outside_imports(path, source) & {"torch", "transformers", "datasets", "peft"}, path
                package = ("tdpo", *Path(path).parts[:-1])
                used = {m for _, m in imported_modules(source, package) if m.split(".")[0] == "tdpo"}
                # `from tdpo import __version__` reads the package, not a room.
                waiting |= {room_of(m) for m in used if m != "tdpo.__version__"} - rooms


HEAVY = {
    "transformers", "datasets", "peft", "accelerate", "trl", "plotly", "matplotlib", "jinja2",
    "typer", "rich", "pydantic", "vaderSentiment", "gguf", "playwright", "sacrebleu", "sentence_transformers",
    "jaxtyping", "beartype",
    "triton",
}  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_tdpo_loads_nothing_that_is_not_asked_for() -> None:
    assert loaded_by("import tdpo; dir(tdpo); tdpo.__version__") & (HEAVY | {"torch"}) == set()


def test_the_records_load_no_torch() -> None:
    modules = [
        path.removesuffix(".py").replace("/", ".")
        for path in package_files()
        if path.startswith(("records/", "report/"))
    ]
    assert len(modules) > 20
    names = ", ".join(f"tdpo.{module.removesuffix('.__init__')}" for module in modules)
    assert loaded_by(f"import tdpo.methods, tdpo.bootstrap, {names}") & {"torch", "transformers", "datasets"} == set()


def test_the_mathematics_loads_torch_and_nothing_heavier() -> None:
    loaded = loaded_by("import tdpo; tdpo.token_stats; dir(tdpo)")
    assert "torch" in loaded
    assert loaded & HEAVY == set()
    assert loaded_by("import tdpo.diversity, tdpo.embeddings") & HEAVY == set()
    head = "tdpo.Head(torch.ones(3, 2)), torch.ones(1, 2), tdpo.Head(torch.ones(3, 2)), torch.zeros(1).long()"
    ran = loaded_by(f"import tdpo, torch; tdpo.linear_token_stats(torch.ones(1, 2), {head})")
    assert ran & HEAVY == set(), "on a CPU no kernel is looked for"
    assert loaded_by("import rich") & HEAVY == {"rich"}, "the check must be able to fail"


# The public contract: what other people's code may rely on.
SIGNATURES = {
    "tdpo.Head": "weight, bias=None, scale=1.0, softcap=None",
    "tdpo.token_stats": "policy_logits, reference_logits, targets, *, extras=()",
    "tdpo.linear_token_stats": "policy_hidden, policy_head, reference_hidden, reference_head, targets, *, "
    "extras=(), impl='auto', learned_tokens=None",
    "tdpo.summarize_reference": "reference_hidden, head, targets",
    "tdpo.frozen_head_token_stats": "policy_hidden, head, summary, targets, *, extras=(), learned_tokens=None",
    "tdpo.score_pairs": "stats, sequence_index, num_pairs",
    "tdpo.dpo_loss": "scores, *, beta, label_smoothing=0.0",
    "tdpo.ipo_loss": "scores, *, beta",
    "tdpo.sft_loss": "scores",
    "tdpo.simpo_loss": "scores, *, beta, gamma",
    "tdpo.f_dpo_loss": "scores, *, beta, divergence",
    "tdpo.tdpo1_loss": "scores, *, beta, label_smoothing=0.0",
    "tdpo.tdpo2_loss": "scores, *, beta, alpha, label_smoothing=0.0",
    "tdpo.divergences.forward_kl": "policy_logits, reference_logits",
    "tdpo.divergences.reverse_kl": "policy_logits, reference_logits",
    "tdpo.divergences.jensen_shannon": "policy_logits, reference_logits, weight=0.5",
    "tdpo.divergences.entropy": "logits",
    "tdpo.divergences.sampled_kl": "policy_logp, reference_logp, estimator",
}
FIELDS = {
    "TokenStats": ["policy_logp", "reference_logp", "forward_kl", "reverse_kl", "policy_entropy"],
    "PairScores": [
        "chosen_log_ratio",
        "rejected_log_ratio",
        "chosen_sequence_kl",
        "rejected_sequence_kl",
        "chosen_logp",
        "rejected_logp",
        "chosen_tokens",
        "rejected_tokens",
    ],
    "PreferenceLoss": ["per_pair", "margin", "chosen_reward", "rejected_reward"],
    "ReferenceSummary": ["expected_weight", "offset", "reference_logp", "likeliest", "hidden"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_contracts_signatures(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    found = inspect.signature(getattr(sys.modules[module], attribute))
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    assert str(inspect.Signature(plain)) == f"({SIGNATURES[name]})"


def test_the_contracts_names() -> None:
    for name, expected in FIELDS.items():
        assert [f.name for f in fields(getattr(tdpo, name))] == expected
    mathematics = {n.split(".")[1] for n in SIGNATURES if n.count(".") == 1} | set(FIELDS)
    trainers = {"TDPOTrainer", "TDPOConfig", "PPOTrainer", "PPOConfig", "OnlineTDPOTrainer", "OnlineTDPOConfig"}
    assert set(tdpo.__all__) == set(tdpo._LAZY) == mathematics | trainers
    assert {*trainers, *tdpo.__all__} <= set(dir(tdpo))
    with pytest.raises(AttributeError, match="'tdpo' has no attribute 'TDPO'"):
        tdpo.TDPO  # noqa: B018
