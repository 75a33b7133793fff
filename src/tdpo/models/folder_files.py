"""Reads the JSON files of a model's folder. A file that is broken is named in the error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# The files that transformers and peft read, each a JSON object. tokenizer.json is large and left to the tokenizer.
JSON_FILES = (
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "model.safetensors.index.json",
)  # fmt: skip


def check_json_files(folder: Path) -> None:
    """Raise ValueError, with the file's path, where one of `folder`'s JSON files is cut short, broken or no object."""
    for name in JSON_FILES:
        if (folder / name).is_file():
            read_json_object(folder / name)


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file is not UTF-8, not JSON, or contains something other than an object.
    """
    advice = "copy the file from where the model came from, or save the model again"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}): {advice}") from None
    except json.JSONDecodeError as error:
        where = "it is empty" if not error.doc.strip() else f"line {error.lineno}: {error.msg}"
        raise ValueError(f"{file} is not JSON, or was cut short ({where}): {advice}") from None
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply to be read: {advice}") from None
    if not isinstance(content, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(content), f"{content!r:.40}")
        raise ValueError(f"{file}: expected a JSON object {{…}}, got {kind}: {advice}")
    return content


def is_adapter_folder(folder: str | Path) -> bool:
    """Whether the folder contains an adapter of peft."""
    return (Path(folder) / "adapter_config.json").is_file()
