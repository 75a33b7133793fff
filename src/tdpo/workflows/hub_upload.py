"""A trained model on the hub: its weights or adapter, its tokenizer, its card and its report, in one commit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

from ..guards.texts import markdown_text
from ..models.adapter_bases import findable_base
from ..models.folder_files import CARD_FILE, model_files, read_json_object
from ..records.names import REPORT_FILE
from ..training.how_to_load import FOLDER

MODEL_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors")
HTTP_CLIENTS = ("httpx", "httpx2", "requests")
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_BASE_LINE = re.compile(r"^base_model: .*\n", re.MULTILINE)


class HubError(OSError):
    """The hub refused an upload or cannot be reached; the message says what to do."""


@dataclass(frozen=True)
class Upload:
    """What goes to a repository of the hub.

    Attributes:
        repository: OWNER/NAME.
        files: each file's path on this machine, or its content, by its name in the repository.
        left_out: the names beside them that are not uploaded.
        remarks: sentences for the user.
    """

    repository: str
    files: dict[str, Path | bytes]
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def size_of(self, name: str) -> int:
        """The bytes of one of the files."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def planned_upload(model: Path, repository: str, report: Path | None = None) -> Upload:
    """What of the folder `model` goes to `repository`, with a report beside it. Nothing is sent.

    Raises:
        ValueError: the repository's name is none, or the folder has no weights that are safe to share.
    """
    if not _REPOSITORY.fullmatch(repository) or repository.count("/") != 1:
        raise ValueError(f"{repository!r} names no repository of the hub: expected OWNER/NAME, such as me/my-model")
    files: dict[str, Path | bytes] = {**model_files(model)}
    there = sorted(path.name for path in model.iterdir() if path.is_file())
    if not any(fnmatch(name, pattern) for name in files for pattern in MODEL_WEIGHTS):
        raise ValueError(
            f"{model} holds no weights as safetensors, which is what is uploaded; it holds "
            f"{', '.join(there[:8]) or 'nothing'}"
        )
    remarks = []
    base = _base_on_this_machine(model)
    if base is not None:
        remarks.append(
            f"the adapter's base is {base}, a folder of this machine: nobody else can load it by that name, and "
            "adapter_config.json shows it. Merge it first (tdpo merge RUN OUT, then tdpo push OUT), or upload the base"
        )
    if CARD_FILE in files:
        files[CARD_FILE] = _card_of(model / CARD_FILE, repository, base).encode("utf-8")
    else:
        remarks.append("there is no card (README.md) beside the model, so the repository gets none")
    if report is not None:
        files[REPORT_FILE] = report
    return Upload(repository, files, [name for name in there if name not in files], remarks)


def upload(plan: Upload, *, private: bool, message: str, revision: str | None = None) -> str:
    """Send what was planned, in one commit, and return the repository's address.

    Args:
        plan: what to send.
        private: of a repository that is made now; an existing one keeps its visibility.
        message: of the commit.
        revision: the branch, which is made if it is not there; None is the main one.

    Raises:
        HubError: the hub refused, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="tdpo")
    additions = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content))
        for name, content in plan.files.items()
    ]
    with _in_words(plan.repository):
        url = api.create_repo(plan.repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(plan.repository, branch=revision, exist_ok=True)
        api.create_commit(plan.repository, additions, commit_message=message, revision=revision)
    return str(url)


def is_private(repository: str) -> bool | None:
    """Whether a repository that is there is private; None where there is none that this user may see.

    Raises:
        HubError: the hub cannot be reached, or does not know the user.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with _in_words(repository):
        try:
            return bool(HfApi(library_name="tdpo").model_info(repository).private)
        except RepositoryNotFoundError:
            return None


@contextmanager
def _in_words(repository: str) -> Iterator[None]:
    """Inside, what the hub answers becomes a sentence with what to do."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise HubError("HF_HUB_OFFLINE=1 forbids to reach the hub; unset it to upload") from None
    except LocalTokenNotFoundError:
        raise HubError(_WHO) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        said = str(getattr(error, "server_message", "") or error).strip().splitlines()
        answer = f"the hub answers {status} about {repository}: {said[0] if said else 'without a reason'}"
        raise HubError(_ADVICE.get(status, lambda text: text)(answer)) from error
    except Exception as error:
        # The client behind huggingface_hub has changed its name twice; what it raises is no class of Python's own.
        if not isinstance(error, ConnectionError) and type(error).__module__.partition(".")[0] not in HTTP_CLIENTS:
            raise
        raise HubError(f"the hub cannot be reached ({error}); see HF_ENDPOINT and the network, then repeat") from error


_WHO = "the hub does not know you: `hf auth login`, or set HF_TOKEN to a token that may write"
_ADVICE: dict[int, Callable[[str], str]] = {
    401: lambda answer: f"{answer}. {_WHO[0].upper()}{_WHO[1:]}",
    403: lambda answer: f"{answer}. The token must be one that may write to this owner's repositories",
}


def _base_on_this_machine(model: Path) -> str | None:
    file = model / "adapter_config.json"
    base: Any = read_json_object(file).get("base_model_name_or_path") if file.is_file() else None
    return base if isinstance(base, str) and Path(findable_base(base)[0]).is_absolute() else None


def _card_of(card: Path, repository: str, base: str | None) -> str:
    """The card as it reads on the hub: it names the repository, and no folder of this machine as the base.

    Of a path such as models/mine the hub would make a link to a stranger's model. `base` is that of an adapter where it
    is a folder here; the card may name it by another path.
    """
    text = card.read_text(encoding="utf-8").replace(FOLDER, f'"{repository}"')
    line = _BASE_LINE.search(text)
    if line is None:
        return text
    name = line.group().partition(": ")[2].strip().strip("\"'")
    if base is None and not Path(findable_base(name)[0]).is_absolute():
        return text
    title = f"# {markdown_text(PurePath(name).name)}, trained with"
    return _BASE_LINE.sub("", text, count=1).replace(f"# {markdown_text(name)}, trained with", title, 1)
