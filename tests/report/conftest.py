"""The browser of this folder's tests: started once, and stopped after the last of them.

While it is open, its event loop belongs to the process, so no other folder's tests run beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from helpers.browsing import launched_browser


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    yield from launched_browser()
