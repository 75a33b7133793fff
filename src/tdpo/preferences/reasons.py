"""The reasons for which a row is refused. Their sentences are fixed, so that they can be counted and looked up."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Why a row is refused. Each sentence follows the name of a field: "rejected is identical to chosen"."""

    # the record itself
    NOT_JSON = "is not valid JSON"
    NOT_OBJECT = "is not an object with fields"
    NOT_UTF8 = "is not valid UTF-8"
    REPEATED_KEY = "names the same key twice"
    NOT_CSV = "is not well-formed CSV"
    CELL_COUNT = "has more or fewer cells than the header"
    # one field
    MISSING = "is missing"
    NULL = "is null"
    EMPTY = "is empty"
    BLANK = "holds nothing but white space"
    WRONG_TYPE = "is neither text nor a list of messages"
    NUL = "contains a NUL character"
    SURROGATE = "contains half of a surrogate pair"
    MESSAGES_AS_TEXT = "is text that looks like a list of messages"
    ROW_AS_TEXT = "is a line of JSON Lines, not a text"
    # messages
    NO_MESSAGES = "is an empty list of messages"
    NOT_MESSAGE = "is not a message (an object with role and content)"
    NO_ROLE = "has no role"
    UNKNOWN_ROLE = "is not a role (system, developer, user, assistant, tool)"
    NO_CONTENT = "has no content"
    CONTENT_NOT_TEXT = "is not text"
    BAD_TOOL_CALLS = "is not a list of tool calls"
    BAD_ARGUMENTS = "is not a JSON object of arguments"
    # prompt and responses together
    MIXED_ROW = "mixes plain text with lists of messages"
    IDENTICAL = "is identical to chosen"
    NOTHING_SHARED = "is empty: chosen and rejected share no beginning that could be it"
    PREFIX = "begins with the whole of the other response, so where the prompt ends is unknown"
    PROMPT_UNRELATED = "does not occur in the conversation that chosen and rejected share"
    REPEATS_PROMPT = "repeats the turns of the prompt"
    # order of roles
    PROMPT_END = "ends with an assistant turn"
    RESPONSE_START = "does not start with an assistant turn"
    RESPONSE_END = "does not end with an assistant turn"
    LATE_SYSTEM = "is a system turn after the conversation has begun"
    STRAY_TOOL = "is a tool turn that follows no assistant turn"
    ASSISTANT_TWICE = "is an assistant turn right after an assistant turn"
    # the other columns
    NOT_JSON_VALUE = "is a value that JSON does not know"
    TOO_DEEP = "nests too deeply"
    BAD_TOOLS = "is not a list of tool descriptions"
    BAD_TEMPLATE_KWARGS = "is not an object with named arguments of the chat template"
    RESERVED_KWARG = "sets an argument that the tokenisation sets itself"
    NEEDS_TEMPLATE = "needs a chat template, but the row is plain text"
    NOT_BOOL = "is neither true nor false"
    NOT_FINITE = "is not a finite number"
    IMAGES = "holds images, but only text is read"
    # the file as a whole
    DUPLICATE = "repeats an earlier row"
    MIXED_FILE = "differs in form from most rows of the file (plain text against messages)"


class Finding(NamedTuple):
    """A problem of one row, before the file and the number of the row are added to it."""

    field: str
    reason: Reason
    text: str
