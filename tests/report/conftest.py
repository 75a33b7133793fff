"""The browser of this folder's tests: started once, and stopped after the last of them.

While it is open, its event loop belongs to the process, so no other folder's tests run beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.browsing import launched_browser
from helpers.study_fixtures import make_study


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    yield from launched_browser()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small study, made up, with everything that a real one leaves."""
    return make_study(tmp_path_factory.mktemp("studies") / "quick")
