"""`tdpo generate`: responses of a model to prompts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..guards.texts import printable_json
from ._console import progress, quiet_libraries, write
from ._device import say_device
from ._errors import CommandError
from ._options import Debug
from .merge import model_folder

if TYPE_CHECKING:
    from ..chat_templates import PromptInput


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Run directory, a trainer's output_dir, a checkpoint, the folder of a model or an adapter, or a name.",
        show_default=False,
    ),
]
PromptOption = Annotated[
    list[str] | None, typer.Option("--prompt", "-p", metavar="TEXT", help="A prompt; may be repeated.")
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="Prompts: a .txt, one a line, or rows with `prompt` (.jsonl, .json, .csv, .parquet, …).",
    ),
]


def generate(
    model: ModelArgument,
    prompt: PromptOption = None,
    file: FileOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Responses to each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response, in tokens.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0, help="1 draws from the model itself, 0 takes the likeliest token.")
    ] = 1.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw from the likeliest tokens of this mass.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same responses.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences generated at once.")] = 64,
    device: Annotated[str, typer.Option(help="Where to run: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    base: Annotated[
        bool, typer.Option("--base", help="Also the run's base model, with the same random numbers.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    debug: Debug = False,
) -> None:
    """Let a model answer prompts: from --prompt, from a file, or from standard input.

    A plain prompt becomes a user's turn where the model has a chat template.

    [bold]Examples[/bold]

        tdpo generate runs/sentiment_tdpo2 --prompt "How was the weather?" --base
        tdpo generate smollm2-135m -p "Say hello." --temperature 0
        tdpo generate runs/sentiment_tdpo2 --file prompts.txt --samples 4 --json > samples.jsonl
        echo "Say hello." | tdpo generate merged
    """
    texts = _prompts(prompt or [], file)
    models = {"base": _base_of(Path(model))} if base else {}
    models["trained" if base else model] = model_folder(Path(model)) if Path(model).is_dir() else model
    quiet_libraries()
    say_device("generating", device)
    from ..sampling.sampler import SamplingSettings

    settings = SamplingSettings(
        num_samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
    )
    trained = list(models.values())[-1]
    for label, name in models.items():
        for entry in _sample(label, name, texts, settings, raw, trained, device):
            _show(entry, as_json=as_json)


def _sample(
    label: str, name: str, texts: list[PromptInput], settings: Any, raw: bool, trained: str, device: str
) -> list[dict[str, Any]]:
    """Responses of the model `name`; it is quantised as the base of the adapter `trained`, where that is one."""
    from ..models import load_causal_lm, load_tokenizer
    from ..models.quantization import as_trained
    from ..sampling.sampler import sample

    tokenizer = load_tokenizer(name)
    dtype, quantization = as_trained(trained, "auto", None)
    model = load_causal_lm(name, dtype=dtype, quantization=quantization, device=device)
    chat = bool(tokenizer.chat_template) and not raw
    prompts: list[PromptInput] = [
        [{"role": "user", "content": text}] if chat and isinstance(text, str) else text for text in texts
    ]
    total = len(prompts) * settings.num_samples
    with progress(label) as update:
        responses = sample(
            model,
            tokenizer,
            prompts,
            settings,
            progress=lambda tokens, complete: update(complete, total, f"{tokens} tokens"),
        )
    return [
        {
            "model": label,
            "prompt": getattr(texts[response.prompt_index], "messages", texts[response.prompt_index]),
            "sample_index": response.sample_index,
            "text": response.text,
            "tokens": len(response.token_ids),
            "finished": response.finished,
        }
        for response in responses
    ]


def _show(entry: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(printable_json(entry))
        return
    prompt = entry["prompt"] if isinstance(entry["prompt"], str) else entry["prompt"][-1]["content"]
    write(f"{entry['model']} · {prompt}", style="bold")
    write(entry["text"] + ("" if entry["finished"] else " …") + "\n")


def _base_of(path: Path) -> str:
    """The model that a trained one began as."""
    from ..models.adapter_bases import adapter_base
    from ..models.folder_files import is_adapter_folder
    from ..records.dotted import text_at
    from ..runs import RunError
    from ..runs.trained_folders import trained_folder

    try:
        folder = trained_folder(path)
    except RunError as error:
        raise CommandError(f"--base needs a run directory, or a folder that says what it began as: {error}") from None
    if folder.recipe_run is not None:
        run = folder.recipe_run
        return run.with_models_found(run.recipe()).model.name
    if name := text_at(folder.record, "settings", "model", "name"):
        return name
    if not folder.record and is_adapter_folder(folder.model):
        return adapter_base(folder.model)
    raise CommandError(
        f"--base: what {folder.model} was trained from is not recorded; give that model's name to `tdpo generate` alone"
    )


def _prompts(prompt_options: list[str], file: Path | None) -> list[PromptInput]:
    """Return the prompts of the options, of the file or of standard input. Raises CommandError for options and file."""
    if prompt_options and file is not None:
        raise CommandError("prompts come from --prompt or from --file; give one of them")
    if file is not None:
        texts = _from_file(file)
    elif prompt_options:
        texts = list(prompt_options)
    elif sys.stdin.isatty():
        raise CommandError('nothing to answer: give --prompt "…", --file FILE, or text on standard input')
    else:
        texts = [text] if (text := sys.stdin.read().strip()) else []
    if not texts or not all(texts):
        raise CommandError(f"{file or 'a prompt'} is empty; expected text")
    return texts


def _from_file(file: Path) -> list[PromptInput]:
    """Return the prompts of a file, with the checks that every command makes."""
    from ..environments import load_prompts

    return [prompt.rendered_from for prompt in load_prompts(file, for_rewards=False).prompts]
