"""What makes one offline file safe: a Content-Security-Policy that allows scripts by hash, data that stays data."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Any

_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def embed_json(value: Any) -> str:
    """`value` as JSON that may stand inside <script>: ASCII, no <, > or &; numbers that are not finite are null."""
    return json.dumps(_finite(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def script_hash(script: str) -> str:
    """The CSP source expression that allows exactly this inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}'"


def security_policy(scripts: list[str]) -> str:
    """Nothing is loaded or sent, and only `scripts` run. Plotly writes style attributes, hence inline styles."""
    allowed = " ".join(script_hash(script) for script in scripts)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def checked_script(name: str, script: str) -> str:
    """`script` with the line ends that a browser hashes; refused when it would end its own element early."""
    script = script.replace("\r\n", "\n").replace("\r", "\n")
    lowered = script.lower()
    if "</script" in lowered or "<!--" in lowered:
        raise ValueError(f"{name} contains </script or <!-- and cannot be embedded; update the package it comes from")
    return script
