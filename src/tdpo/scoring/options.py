"""What a caller may ask of scoring, as a recipe and the trainers' arguments name it."""

from __future__ import annotations

from typing import Literal

HeadImpl = Literal["auto", "frozen", "tiled", "dense"]
PrefixSharing = Literal["auto", "on", "off"]
