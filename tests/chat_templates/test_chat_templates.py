"""What chat templates do to rows and prompts: where turns end, what they leave out, rewrite, refuse or never end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_models import build_tokenizer
from tdpo.batches import TokenizedPairs, tokenize_pairs
from tdpo.chat_templates import Conversation, Encoder, Stopping, TemplateRefusal, end_of_turn, prompt_input, render
from tdpo.environments import Prompt, load_prompts
from tdpo.preferences import BadPreferences, PreferenceRow, preferences_from_dataset
from tdpo.sampling.sampler import SamplingSettings, encode_prompts, sample, stop_token_ids

ROLES = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
ANSWERS = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def tokenizer_with(template: str, *, eos: str = "<|end|>", added: tuple[str, ...] = ()) -> Any:
    made = build_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>", *added]})
    made.eos_token, made.chat_template = eos, template
    return made


def turns(*contents: str, first: str = "user") -> list[dict[str, Any]]:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def row(prompt: list[dict[str, Any]], chosen: Any, rejected: Any, number: int = 1, **more: Any) -> PreferenceRow:
    answers = [text if isinstance(text, list) else turns(text, first="assistant") for text in (chosen, rejected)]
    return PreferenceRow(prompt, *answers, source="chats.jsonl", row=number, **more)


def texts(tokenizer: Any, tokenized: TokenizedPairs) -> tuple[str, str, str]:
    pair = tokenized.pairs[0]
    prompt, chosen, rejected = (tokenizer.decode(i) for i in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
    return prompt, chosen, rejected


# ---- where a turn ends ----


def ending(tail: str, rest: str = "") -> str:
    return ROLES + "{{ '" + tail + "' }}{% endfor %}" + rest + ANSWERS


@pytest.mark.parametrize(
    ("template", "known", "token", "text", "behind"),
    [
        (ending("<|stop|>\\n"), ("<|end|>",), "<|stop|>", "", "\n"),
        # A second token at the end of the conversation alone does not end a turn.
        (ending("<|stop|>\\n", "{% if not add_generation_prompt %}<|end|>{% endif %}"), ("<|end|>",), "<|stop|>", "",
         "\n<|end|>"),
        # Of two tokens behind every turn it is the one at which the model stops.
        (ending("<|stop|><|end|>"), ("<|end|>",), "<|end|>", "", ""),
        # A template that always opens the next turn has not made that an end.
        (ending("<|stop|>") + "<|assistant|>", (), "<|stop|>", "", "<|assistant|>"),
        (ending("\\n") + "<|assistant|>", (), None, "", ""),
        (ending("[DONE]\\n"), (), None, "[DONE]", "\n"),
        (ending(".\\n"), (), None, "", ""),
        (ending(""), (), None, "", ""),
    ],
)  # fmt: skip
def test_the_end_of_a_turn_is_what_the_template_writes(
    template: str, known: tuple[str, ...], token: str | None, text: str, behind: str
) -> None:
    tokenizer = tokenizer_with(template, added=("<|stop|>",))
    end = end_of_turn(tokenizer, tokenizer.convert_tokens_to_ids(list(known)))
    assert end.token_id == (None if token is None else tokenizer.convert_tokens_to_ids(token))
    assert (end.text, end.behind) == (text, behind)


def test_a_template_that_takes_one_question_only_is_asked_one() -> None:
    once = "{% if messages|length > 2 %}{{ raise_exception('one question') }}{% endif %}" + ending("<|stop|>\\n")
    tokenizer = tokenizer_with(once, added=("<|stop|>",))
    assert end_of_turn(tokenizer).token_id == tokenizer.convert_tokens_to_ids("<|stop|>")


@pytest.mark.parametrize("added", [("<|stop|>",), ()], ids=["a token", "constant text"])
def test_rows_and_samples_end_where_the_templates_turn_ends(
    added: tuple[str, ...], tiny_model: Callable[..., Any]
) -> None:
    """ChatML on a base tokenizer: its end of a turn is not its end of a sequence."""
    tokenizer = tokenizer_with(ending("<|stop|>\\n"), added=added)
    tokenized = tokenize_pairs([row(turns("hi"), "the cat", "a dog", chosen_finished=False)], tokenizer, None)
    assert texts(tokenizer, tokenized)[1:] == ("the cat", "a dog<|stop|>")
    said = " ".join(tokenized.report.warnings())
    assert ("'<|stop|>', which is no token of its own" in said) is (added == ())
    stop = Stopping.of(tiny_model("llama"), tokenizer)
    response = tokenized.pairs[0].rejected_ids
    assert [stop.ends(response[: i + 1]) for i in range(len(response))] == [False] * (len(response) - 1) + [True]
    assert stop.text_before(response, finished=True) == "a dog"
    assert stop.text_before(response[:1], finished=False) == "a"
    assert (tokenizer.convert_tokens_to_ids("<|stop|>") in stop_token_ids(tiny_model("llama"), tokenizer)) is bool(
        added
    )


def test_the_sampler_stops_at_the_templates_end(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    free = tokenizer_with(ending(""))
    [before] = sample(model, free, [turns("hi")], SamplingSettings(max_new_tokens=8, temperature=0))
    token = before.token_ids[2]  # what it says third ends the turn from now on
    ended = tokenizer_with(ending(free.convert_ids_to_tokens(token)))
    ended.add_tokens([free.convert_ids_to_tokens(token)])
    [after] = sample(model, ended, [turns("hi")], SamplingSettings(max_new_tokens=8, temperature=0))
    assert after.token_ids == before.token_ids[: before.token_ids.index(token) + 1]
    assert after.finished
    assert after.text == free.decode(after.token_ids[:-1])


def test_responses_without_an_end_are_said() -> None:
    bare = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    tokenizer = tokenizer_with(bare + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    rows = [row(turns("hi"), "yes", "no"), row(turns("ho"), "yes", "no", 2, rejected_finished=False)]
    report = tokenize_pairs(rows, tokenizer, None).report
    assert report.without_end == 3, "one of four is said to be cut off"
    assert "3 responses of 2 rows end without a token that a model could stop at" in report.warnings()[0]


# ---- one beginning ----


def beginning(tokenizer: Any) -> Any:
    """The tokenizer as Llama's are: <|system|> before every text."""
    from tokenizers import processors

    token, number = "<|system|>", tokenizer.convert_tokens_to_ids("<|system|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, number)]
    )
    tokenizer.bos_token = token
    return tokenizer


def test_a_text_that_begins_itself_begins_once() -> None:
    tokenizer = beginning(build_tokenizer())
    plain = PreferenceRow("<|system|>the cat", " sat", " ran", source="pairs.jsonl", row=1)
    tokenized = tokenize_pairs([plain], tokenizer, None)
    assert texts(tokenizer, tokenized)[0] == "<|system|>the cat"
    assert "3 texts begin with the beginning-of-sequence token" in tokenized.report.warnings()[0]
    assert encode_prompts(tokenizer, ["<|system|>the cat", "the cat"]) == [tokenized.pairs[0].prompt_ids] * 2
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    [ids] = encode_prompts(tokenizer, [turns("the cat")])
    assert tokenizer.decode(ids) == "<|system|><|user|>the cat<|end|>\n<|assistant|>"


def test_a_prompt_is_not_ended_by_a_tokenizer_that_ends_every_text() -> None:
    from tokenizers import processors

    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", 1)]
    )
    assert tokenizer("the cat")["input_ids"][-1] == 1
    assert tokenizer.decode(encode_prompts(tokenizer, ["the cat"])[0]) == "the cat"


# ---- what the prompt and the whole have in common ----

THINKS = "{% if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}"
FORGETS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'].split('</think>')[-1] + '<|end|>' }}{% endfor %}"
)
BESIDE_LAST = (  # the system's words stand in the last user turn, wherever that is
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' }}{% if loop.index0 == messages|length - 1 or "
    "loop.index0 == messages|length - 2 %}{{ messages[0]['content'] + ' ' }}{% endif %}{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
)


def test_a_template_that_drops_reasoning_is_not_called_a_merge() -> None:
    tokenizer = tokenizer_with(FORGETS + THINKS)
    rows = [row(turns("2 and 2"), "<think>count</think>4", "<think>guess</think>5", 7)]
    tokenized = tokenize_pairs(rows, tokenizer, None)
    assert texts(tokenizer, tokenized) == ("<|user|>2 and 2<|end|><|assistant|>", "4<|end|>", "5<|end|>")
    dropped, reduced = tokenized.report.warnings()
    assert "1 of 1 rows the chat template writes '<think>' before an answer that is to be generated" in dropped
    assert "leaves out or changes a part of a response, such as its reasoning" in reduced
    assert dropped.count("chats.jsonl:7") == reduced.count("chats.jsonl:7") == 1
    assert "nothing of it is lost" not in dropped + reduced


def test_a_template_that_keeps_reasoning_is_not_blamed() -> None:
    tokenizer = tokenizer_with(ROLES + "{{ '<|end|>' }}{% endfor %}" + THINKS)
    tokenized = tokenize_pairs([row(turns("2 and 2"), "<think>count</think>4", "<think>no</think>5")], tokenizer, None)
    assert texts(tokenizer, tokenized)[1] == "count</think>4<|end|>"
    assert tokenized.report.warnings() == []


def test_what_a_template_leaves_out_is_said() -> None:
    """Tool calls, tools and turns of a role that a template does not know vanish without an error."""
    tokenizer = tokenizer_with(
        "{% for m in messages if m['role'] != 'system' %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
        "{% endfor %}" + ANSWERS
    )
    asks = [{"role": "assistant", "content": "hm", "tool_calls": [WEATHER]}]
    plain = row(turns("hi"), "yes", "no")
    system = row([{"role": "system", "content": "Be brief."}, *turns("hi")], "yes", "no", 2)
    tools = row(turns("hi"), "yes", "no", 3, extra={"tools": [WEATHER]})
    calls = row(turns("ho"), asks, "no", 4)
    report = tokenize_pairs([plain, system, tools, calls], tokenizer, None).report
    assert report.prompt_reduced == ["chats.jsonl:2", "chats.jsonl:3"]
    assert report.response_reduced == ["chats.jsonl:4"]


def test_a_template_that_rewrites_the_prompt_has_its_row_refused() -> None:
    tokenizer = tokenizer_with(BESIDE_LAST)
    asked = [{"role": "system", "content": "Be brief."}, *turns("why is that so")]
    answers = turns("it is", "sure", "yes", first="assistant"), turns("it is", "sure", "no", first="assistant")
    single, several = row(asked, "it is", "no"), row(asked, *answers, 2)
    with pytest.raises(BadPreferences, match=r"chats\.jsonl:2: prompt: is written otherwise by the chat template when"):
        tokenize_pairs([single, several], tokenizer, None)
    tokenized = tokenize_pairs([single, several], tokenizer, None, on_bad_rows="skip")
    assert [pair.row for pair in tokenized.pairs] == [1]
    assert len(tokenized.report.refused) == 1
    assert "1 of 2 rows were skipped" in tokenized.report.warnings()[0]


# ---- templates that refuse, and templates without an end ----


def test_a_row_that_the_template_refuses_is_named_and_can_be_skipped() -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    tokenizer = tokenizer_with(strict + ending("<|end|>\\n"))
    refused = [{"role": "system", "content": "Be brief."}, *turns("hi")]
    rows = [row(turns("hi"), "yes", "no"), row(refused, "yes", "no", 5)]
    with pytest.raises(BadPreferences, match=r"chats\.jsonl:5: prompt: is not rendered by the chat template") as error:
        tokenize_pairs(rows, tokenizer, None)
    assert "no system turns" in str(error.value)
    assert len(tokenize_pairs(rows, tokenizer, None, on_bad_rows="skip").pairs) == 1
    with pytest.raises(BadPreferences, match="No usable row is left"):
        tokenize_pairs(rows[1:], tokenizer, None, on_bad_rows="skip")
    with pytest.raises(TemplateRefusal, match=r"prompt p\.jsonl:4: .*no system turns"):
        encode_prompts(tokenizer, [turns("hi"), refused], ["p.jsonl:3", "p.jsonl:4"])


def test_a_template_that_fails_on_a_row_refuses_it_too() -> None:
    tokenizer = tokenizer_with("{{ messages[0]['name'].upper() }}" + ending("<|end|>"))
    with pytest.raises(BadPreferences, match="UndefinedError"):
        tokenize_pairs([row(turns("hi"), "yes", "no")], tokenizer, None)


def test_a_template_without_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdpo.chat_templates.rendering.SECONDS", 0.3)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer = tokenizer_with(endless + ending("<|end|>"))
    with pytest.raises(TemplateRefusal, match="does not come to an end: it was not done after 0"):
        tokenize_pairs([row(turns("hi"), "yes", "no")], tokenizer, None, on_bad_rows="skip")
    # A loop that one row alone meets.
    tokenizer.chat_template = "{% if messages[0]['content'] == 'ho' %}" + endless + "{% endif %}" + ending("<|end|>")
    rows = [row(turns("hi"), "yes", "no"), row(turns("ho"), "yes", "no", 2)]
    with pytest.raises(TemplateRefusal, match=r"chats\.jsonl:2: the chat template does not come to an end"):
        tokenize_pairs(rows, tokenizer, None)
    assert render(tokenizer, Conversation(turns("hi"))), "the limit is over with the rendering that met it"


# ---- tools and arguments of prompts ----

TALKATIVE = "{% if tools %}{{ tools[0].function.name }}{% endif %}{{ mood }}"


def test_rows_and_prompts_render_alike(tmp_path: Path) -> None:
    """What is sampled from is what is trained on: text, tools and template arguments, from a file or from memory."""
    tokenizer = tokenizer_with(TALKATIVE + ending("<|end|>\\n"))
    columns = {"tools": [WEATHER], "chat_template_kwargs": {"mood": "calm"}}
    trained = tokenize_pairs([row(turns("hi"), "yes", "no", extra=columns)], tokenizer, None).pairs[0].prompt_ids
    assert tokenizer.decode(trained).startswith("weathercalm<|user|>hi")
    file = tmp_path / "prompts.jsonl"
    in_text = {**columns, "tools": json.dumps(columns["tools"])}
    file.write_text("".join(json.dumps({"prompt": turns("hi"), **given}) + "\n" for given in (columns, in_text, {})))
    prompts = [prompt.rendered_from for prompt in load_prompts(file).prompts]
    assert encode_prompts(tokenizer, prompts)[:2] == [trained, trained]
    assert encode_prompts(tokenizer, prompts)[2] != trained
    assert Prompt("1", turns("hi"), {"tools": None, "chat_template_kwargs": {}, "mood": "calm"}).rendered_from == turns(
        "hi"
    )


def test_arguments_that_no_template_takes_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    bad = [{"prompt": turns("hi"), "tools": 3}, {"prompt": turns("hi"), "chat_template_kwargs": {"tokenize": True}}]
    file.write_text("".join(json.dumps(line) + "\n" for line in bad))
    with pytest.raises(
        BadPreferences, match=r"2 of 2 rows(.|\n)*:1: tools: is not a list(.|\n)*:2: chat_template_kwargs"
    ):
        load_prompts(file)
    with pytest.raises(ValueError, match=r"prompt train:0: tools: needs a chat template"):
        prompt_input("hi", {"tools": [WEATHER]}, "train:0")


def test_the_encoder_says_that_a_template_is_missing() -> None:
    bare = build_tokenizer()
    bare.chat_template = None
    with pytest.raises(ValueError, match="is a conversation, but the tokenizer has no chat template"):
        Encoder(bare).prompt(Conversation(turns("hi")))


def test_validated_rows_with_tools_keep_them() -> None:
    given = {"prompt": turns("hi"), "chosen": turns("yes", first="assistant"), "tools": [WEATHER]}
    rows = preferences_from_dataset([{**given, "rejected": turns("no", first="assistant")}]).rows
    tokenizer = tokenizer_with(TALKATIVE + ending("<|end|>\\n"))
    assert tokenize_pairs(rows, tokenizer, None).report.warnings() == []


# ---- arguments of tool calls ----

CALLS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}{{ c['function']['name'] }}CALL{% endfor %}{{ '<|end|>' }}{% endfor %}"
    + ANSWERS
)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        # Joined to other text, as DeepSeek's templates do it: an object fails there.
        ("{{ ' ' + GIVEN }}", ' {"town": "Bonn ♥"}'),
        # Written as they are: of an object that would be Python's notation.
        ("{{ GIVEN }}", '{"town": "Bonn ♥"}'),
        # Turned into JSON by the template: text would be quoted a second time.
        ("{{ GIVEN | tojson }}", '{"town": "Bonn ♥"}'),
        # Taken apart.
        ("{% for k, v in GIVEN.items() %}{{ k }}={{ v }}{% endfor %}", "town=Bonn ♥"),
        ("{{ GIVEN if GIVEN is string else GIVEN | tojson }}",
         '{"town": "Bonn ♥"}'),
    ],
)  # fmt: skip
def test_arguments_are_given_as_the_template_takes_them(written: str, text: str) -> None:
    tokenizer = tokenizer_with(CALLS.replace("CALL", written.replace("GIVEN", "c['function']['arguments']")))
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Bonn ♥"}}}
    chosen = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    tokenized = tokenize_pairs([row(turns("Is it warm?"), chosen, "No.")], tokenizer, None)
    assert texts(tokenizer, tokenized)[1] == f"weather{text}<|end|>"
    assert call["function"]["arguments"] == {"town": "Bonn ♥"}  # what was given is not changed
