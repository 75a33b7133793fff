"""A plugin of pytest: files with slow tests come first, so that no worker ends with a long one while the others wait.

Within each part, files stay in their order and tests in theirs: a file's fixtures are made once.
"""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
