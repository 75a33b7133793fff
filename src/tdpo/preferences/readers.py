"""Reading of a source that the user names (a file, a saved dataset or a hub dataset) into numbered records."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tdpo.preferences.compressed import check_expanded
from tdpo.preferences.formats import PAIRS, PROMPTS, Requirement
from tdpo.preferences.rows import UnreadablePreferences
from tdpo.preferences.text_files import Read, Record, read_csv, read_json, read_json_lines, read_text

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def read_parquet(path: Path) -> Read:
    """Yield the records of a Parquet file with all their columns, numbered from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path) as file:
            types = {field.name: field.type for field in file.schema_arrow if "arrow.json" in str(field.type)}
            size, groups = path.stat().st_size, range(file.num_row_groups)
            expanded = sum(file.metadata.row_group(i).total_byte_size for i in groups)
            check_expanded(path, expanded, size)  # the declared size; a dictionary can expand to much more
            expanded = 0
            for batch in file.iter_batches(batch_size=128):  # small batches: one may be far larger than the file
                check_expanded(path, expanded := expanded + batch.nbytes, size)
                for values in batch.to_pylist():
                    row += 1
                    yield Record(row, values | {name: _from_json(values[name], types[name]) for name in types})
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UnreadablePreferences(f"{path}: not readable as Parquet after record {row} ({error}).") from error


def _from_json(value: Any, kind: Any) -> Any:
    """Decode the parts of `value` that Arrow stores as JSON, as `datasets` does on reading (its feature `Json`)."""
    import pyarrow as pa

    if value is None:
        return None
    if getattr(kind, "extension_name", "") == "arrow.json":
        return json.loads(value)
    if pa.types.is_struct(kind):
        return {field.name: _from_json(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_from_json(part, kind.value_type) for part in value]
    return value


def _for_any_requirement(read: Callable[[Path], Read]) -> Callable[[Path, Requirement], Read]:
    """Adapt the reader of a format that can be read without knowing which columns are required."""
    return lambda path, requirement: read(path)


READERS: dict[str, Callable[[Path, Requirement], Read]] = {
    ".jsonl": _for_any_requirement(read_json_lines),
    ".ndjson": _for_any_requirement(read_json_lines),
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": _for_any_requirement(read_text),
    ".parquet": _for_any_requirement(read_parquet),
}
READERS |= {f"{suffix}.gz": read for suffix, read in READERS.items() if suffix != ".parquet"}
PLAIN_TEXT = (".txt", ".txt.gz")  # lines without columns: they can hold prompts but not pairs


def read_source(source: str | Path, split: str, requirement: Requirement = PAIRS) -> Read:
    """Read the records of a file, of a folder that `datasets` saved, or of a hub dataset.

    A hub dataset is named `owner/name[:configuration]`. `split` selects a split of a saved `DatasetDict` or of a hub
    dataset; other sources ignore it. Raises FileNotFoundError for a path that does not exist, and UnreadablePreferences
    for any other source.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _reader_for(path, requirement)(path, requirement)
    if path.is_dir():
        return read_dataset(_load_folder(path, split), str(source))
    name = str(source)
    if isinstance(source, Path) or _suffix(path) or not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise FileNotFoundError(_no_such_path(path))
    return read_dataset(_load_from_hub(name, split), name)


def read_dataset(dataset: Any, source: str) -> Read:
    """Number the rows of a `datasets.Dataset`, or of any iterable of mappings, from 1.

    Raises UnreadablePreferences for a collection of several datasets and for anything that is not iterable.
    """
    if isinstance(dataset, Mapping):
        splits = ", ".join(repr(name) for name in dataset)
        raise UnreadablePreferences(f"{source}: holds several datasets ({splits}). Choose one of them.")
    if isinstance(dataset, str | bytes) or not isinstance(dataset, Iterable):
        raise UnreadablePreferences(
            f"{source}: a dataset or a list of rows was expected, not {type(dataset).__name__}."
        )
    if hasattr(dataset, "with_format"):
        dataset = dataset.with_format(None)  # with a format set for training, values would be tensors
    return (Record(row, values) for row, values in enumerate(dataset, start=1))


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return next((suffix for suffix in sorted(READERS, key=len, reverse=True) if name.endswith(suffix)), "")


def _reader_for(path: Path, requirement: Requirement) -> Callable[[Path, Requirement], Read]:
    suffix = _suffix(path)
    readable = [name for name in READERS if requirement == PROMPTS or name not in PLAIN_TEXT]
    if suffix not in readable:
        plain = [name for name in readable if not name.endswith(".gz")]
        raise UnreadablePreferences(
            f"{path}: files of this kind ({suffix or path.suffix or 'no suffix'}) are not read. "
            f"Known are {', '.join(plain)} (but for Parquet also with .gz), a folder saved by `datasets`,"
            " or the name of a dataset on the Hugging Face hub."
        )
    return READERS[suffix]


def _load_folder(path: Path, split: str) -> Any:
    is_dict = (path / "dataset_dict.json").is_file()
    if not is_dict and not (path / "state.json").is_file():
        files = sorted(file.name for file in path.iterdir() if _suffix(file))
        inside = f" It contains {', '.join(files[:5])}: name one of these files." if files else ""
        raise UnreadablePreferences(
            f"{path}: the folder was not saved by `datasets` (no dataset_dict.json, no state.json).{inside}"
        )
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder makes datasets and arrow raise errors of many classes
        raise UnreadablePreferences(f"{path}: the saved dataset cannot be loaded ({_one_line(error)}).") from error
    if not is_dict:
        return dataset
    if split not in dataset:
        near = difflib.get_close_matches(split, list(dataset), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnreadablePreferences(f"{path}: no split {split!r}; there are {', '.join(map(repr, dataset))}.{hint}")
    return dataset[split]


def _load_from_hub(name: str, split: str) -> Any:
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        return datasets.load_dataset(repository, configuration or None, split=split, trust_remote_code=False)
    except Exception as error:  # no network, dataset, access or split: each raises a class of its own
        near = _near_names(Path(name))
        raise UnreadablePreferences(
            f"{name}: there is no such file or folder{near}, and it could not be loaded from the Hugging Face hub "
            f"with split {split!r}.\n{type(error).__name__}: {_one_line(error)}\n"
            "Check the name, the split and the network (HF_HUB_OFFLINE must not be set; a private or gated dataset "
            f'needs `hf auth login`). Without a network: run load_dataset("{repository}").save_to_disk("folder") where '
            "there is one, copy the folder here and give its path."
        ) from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"


def _no_such_path(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: no such file, and no folder {str(folder)!r}{_near_names(folder)}."
    return f"{path}: no such file or folder{_near_names(path)} (looked in {folder.resolve()})."


def _near_names(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(str(path.parent / name)) for name in near)}?" if near else ""
