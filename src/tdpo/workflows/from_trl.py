"""From a YAML of TRL's (`trl dpo --config FILE`) to a recipe, with a remark wherever the two differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from ..config import RecipeError, RecipeProblem, load_recipe, read_yaml, trl_names
from ..config.optimization import Optimizer, Scheduler, Tracker
from ..config.recipe_loading import read_values
from ..config.schema import FILE_SUFFIXES
from ..training import arguments
from ..training.offline.config import REFUSED, TDPOConfig
from .converted_recipe import Converted, nested, recipe_defaults, shown
from .trl_settings import BESIDES, DEFAULTS, OTHERS, SAME, SECRET


def recipe_from_trl(path: str | Path) -> Converted:
    """The recipe that trains as `trl dpo --config` of this file would, as far as there are keys for it.

    Raises:
        RecipeError: the file cannot be read, names no model, no rows or a loss that is not here, or a value is out of a
            key's range; each problem with file, line and setting.
    """
    settings, lines, name = read_values(path)
    if "run_dir" in settings:
        raise RecipeError(
            [RecipeProblem("run_dir", "is a key of tdpo's: this is a recipe already, not TRL's YAML", name)]
        )
    conversion = _Conversion({key: _as_trl_parses(value) for key, value in settings.items()}, lines, name)
    conversion.run()
    conversion.result.lost.sort(key=conversion.line_of)
    if conversion.problems:
        raise RecipeError(conversion.problems, "file of TRL's settings")
    load_recipe(nested(conversion.result.values))
    return conversion.result


class _Conversion:
    def __init__(self, settings: dict[str, Any], lines: Mapping[tuple[str, ...], int], name: str) -> None:
        self.settings, self.lines = settings, lines
        self.result = Converted(name)
        self.problems: list[RecipeProblem] = []
        self.own_defaults = recipe_defaults()

    def run(self) -> None:
        for name, key in SAME.items():
            self._put(key, self._value(name), name)
        self._model()
        self._rows()
        self._loss()
        self._length_and_size()
        self._optimizing()
        self._compiling()
        self._evaluating_and_saving()
        self.result.values["training.log_names"] = "both"
        self.result.remarks["training.log_names"] = "TRL's names beside tdpo's"
        self._everything_else()

    # ---- reading and writing ----

    def _value(self, name: str) -> Any:
        value = self.settings.get(name)
        return DEFAULTS[name] if value is None else value

    def _is_given(self, name: str) -> bool:
        return self.settings.get(name) is not None

    def _place(self, name: str) -> str:
        line = self.lines.get((name,))
        return self.result.name if line is None else f"{self.result.name}:{line}"

    def line_of(self, sentence: str) -> int:
        """The line that a sentence about a setting begins with."""
        line = sentence.removeprefix(f"{self.result.name}:").partition(":")[0]
        return int(line) if line.isdecimal() else 0

    def _put(self, key: str, value: Any, name: str, remark: str = "") -> None:
        """Set a key from the setting `name`. What the file leaves out, with the same default here, is left out."""
        if not self._is_given(name) and not remark:
            if value == self.own_defaults.get(key):
                return
            remark = f"TRL's default for {name}"
        self.result.values[key] = value
        if remark:
            self.result.remarks[key] = remark

    def _lose(self, name: str, why: str) -> None:
        value = "…" if name in SECRET else shown(self.settings[name])
        self.result.lost.append(f"{self._place(name)}: {name}: {value} {why}")

    def _fail(self, name: str, reason: str) -> None:
        self.problems.append(RecipeProblem(name, reason, self._place(name)))

    # ---- sections ----

    def _model(self) -> None:
        if not self._is_given("model_name_or_path"):
            self._fail("model_name_or_path", "is missing: a name or a folder of the model to train")
        self.result.values["model.name"] = self.settings.get("model_name_or_path")
        dtype = self._loading().get("dtype") or self.settings.get("torch_dtype") or self._value("dtype")
        uses_bf16 = not self._value("fp16") if self._value("bf16") is None else self._value("bf16")
        self._put("model.dtype", dtype, "dtype")
        in_few_bits = self._value("use_peft") and (self._value("load_in_4bit") or self._value("load_in_8bit"))
        if dtype == "float32" and in_few_bits:
            self._put("model.dtype", dtype, "dtype", "products too: TRL mixes 16 bits in, and bfloat16 would be faster")
        elif dtype == "float32" and (uses_bf16 or self._value("fp16")):
            self._put("training.precision", "bfloat16-mixed" if uses_bf16 else "float16-mixed", "bf16")
        for name, same in (("bf16", "bfloat16"), ("fp16", "float16")):
            if self._is_given(name) and self._value(name) and dtype not in ("float32", "auto", same):
                self._lose(name, f"is not mixed into a model that is loaded in {dtype}: it is computed in that")
        if not self._value("use_peft"):
            self._put("model.lora", None, "use_peft", "TRL trains all weights without use_peft; tdpo's default is LoRA")
            for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
                if self._is_given(name):
                    self._lose(name, "has no effect without use_peft: true, in TRL and here")
            for name in ("load_in_4bit", "load_in_8bit"):
                if self._value(name):
                    self._lose(name, "quantises weights that would be trained: it needs use_peft: true")
            return
        self._quantization()
        self._put("model.lora.rank", self._value("lora_r"), "lora_r")
        self._put("model.lora.alpha", self._value("lora_alpha"), "lora_alpha")
        self._put("model.lora.dropout", self._value("lora_dropout"), "lora_dropout")
        self._targets()

    def _quantization(self) -> None:
        if self._value("load_in_8bit"):
            remark = "without the decomposition of outliers: a token's logits would depend on its neighbours"
            self._put("model.quantization.bits", 8, "load_in_8bit", remark)
        elif self._value("load_in_4bit"):
            self._put("model.quantization.bits", 4, "load_in_4bit")
            self._put("model.quantization.type", self._value("bnb_4bit_quant_type"), "bnb_4bit_quant_type")
            self._put("model.quantization.nested", self._value("use_bnb_nested_quant"), "use_bnb_nested_quant")

    def _loading(self) -> dict[str, Any]:
        """What `model_init_kwargs` say that has a key: the dtype, and whether code of the model's own may run."""
        arguments = self.settings.get("model_init_kwargs")
        if not isinstance(arguments, dict):
            return {}
        for problem in trl_names.loading_problems("model_init_kwargs", arguments):
            self.result.lost.append(f"{self._place('model_init_kwargs')}: {problem}")
        if arguments.get("trust_remote_code"):
            self.result.values["model.trust_remote_code"] = True
        return {"dtype": arguments.get("dtype", arguments.get("torch_dtype"))}

    def _targets(self) -> None:
        targets = self._value("lora_target_modules")
        if targets is None:
            remark = "TRL leaves this to peft, often [q_proj, v_proj]: write such a list for the same adapters"
            self._put("model.lora.targets", "all-linear", "lora_target_modules", remark)
            return
        names = [targets] if isinstance(targets, str) else targets
        self._put("model.lora.targets", names[0] if names == ["all-linear"] else names, "lora_target_modules")

    def _rows(self) -> None:
        source, split = self.settings.get("dataset_name"), self._value("dataset_train_split")
        mixture = self.settings.get("datasets")
        if mixture and isinstance(mixture, list) and len(mixture) == 1 and isinstance(mixture[0], dict):
            source, split = mixture[0].get("path"), mixture[0].get("split", "train")
            for extra in sorted(mixture[0].keys() - {"path", "split"}):
                self.result.lost.append(
                    f"{self._place('datasets')}: datasets: {extra}: {shown(mixture[0][extra])} has no key: save these "
                    "rows as one file and name it as data.train"
                )
        elif mixture:
            self._fail("datasets", "mixes several sets: write their rows into one file, and name it as data.train")
            return
        if not isinstance(source, str):
            self._fail("dataset_name", "is missing: a hub name, a folder or a file with the rows to train on")
            return
        is_file = source.lower().endswith(FILE_SUFFIXES)
        self.result.values["data.train"] = source
        if not is_file:
            self.result.values["data.split"] = split
        if self._is_given("test_split_size"):
            remark = "TRL draws rows; here prompts are drawn, with all their rows"
            self._put("data.eval_fraction", self.settings["test_split_size"], "test_split_size", remark)
        elif self._value("eval_strategy") != "no":
            self.result.values["data.eval"] = source
            if not is_file:
                self.result.values["data.eval_split"] = self._value("dataset_test_split")

    def _loss(self) -> None:
        loss, problem = trl_names.loss_of(self._value("loss_type"))
        if problem is not None:
            self._fail("loss_type", problem.removeprefix("loss_type="))
        self._put("loss.name", loss, "loss_type", "TRL's sigmoid; tdpo2 adds the exact KL")
        if self._value("label_smoothing"):
            self._lose("label_smoothing", "has no effect in TRL with sigmoid; loss.label_smoothing has one here")

    def _length_and_size(self) -> None:
        if self.settings.get("max_length", 0) is None:
            self._lose("max_length", f"has no key: a recipe has a limit, here {DEFAULTS['max_length']}; set it")
        if self._value("max_steps") > 0:
            self._put("training.max_steps", self._value("max_steps"), "max_steps")
        else:
            self._put("training.epochs", float(self._value("num_train_epochs")), "num_train_epochs")
        micro, times = self._value("per_device_train_batch_size"), self._value("gradient_accumulation_steps")
        remark = f"{micro} × {times} of one process: multiply by the number of processes where there are several"
        self._put("training.batch_size", micro * times, "per_device_train_batch_size", remark)
        self._put("training.micro_batch_size", micro, "per_device_train_batch_size")
        if self._is_given("precompute_ref_log_probs"):
            reference = "cache" if self.settings["precompute_ref_log_probs"] else "model"
            self._put("training.reference", reference, "precompute_ref_log_probs")

    def _optimizing(self) -> None:
        for name, key, choices in (
            ("lr_scheduler_type", "training.scheduler", get_args(Scheduler)),
            ("optim", "training.optimizer", get_args(Optimizer)),
        ):
            if self._value(name) in choices:
                self._put(key, self._value(name), name)
            else:
                self._lose(name, f"has no counterpart: {key} is one of {', '.join(choices)}")
        warmup = self.settings.get("warmup_ratio") or self._value("warmup_steps")
        self._put("training.warmup_steps", float(warmup), "warmup_ratio" if warmup < 1 else "warmup_steps")
        trackers = self._value("report_to")
        trackers = [trackers] if isinstance(trackers, str) else trackers
        trackers = [name for name in trackers if name != "none"]
        if set(trackers) <= set(get_args(Tracker)):
            self._put("training.report_to", trackers, "report_to")
        else:
            self._lose(
                "report_to", f"has no counterpart: training.report_to lists some of {', '.join(get_args(Tracker))}"
            )

    def _compiling(self) -> None:
        """A backend or a mode switches compiling on, in transformers and so here; the two themselves have no key."""
        ways = [name for name in ("torch_compile_backend", "torch_compile_mode") if self._is_given(name)]
        if ways and not self._value("torch_compile"):
            self._put("training.compile", True, ways[0], f"{ways[0]} switches it on")

    def _evaluating_and_saving(self) -> None:
        if self._value("eval_strategy") == "steps":
            every = self._value("eval_steps") or self._value("logging_steps")
            self._put("training.eval_steps", every, "eval_steps")
        elif self._value("eval_strategy") == "epoch":
            self._put("training.eval_steps", None, "eval_strategy", "once, at the end: intervals count updates")
        if self._value("save_strategy") != "no":
            every = "" if self._is_given("save_total_limit") else "TRL keeps every checkpoint; tdpo the newest 2"
            self._put("training.save_total_limit", self._value("save_total_limit"), "save_total_limit", every)
        if self._value("save_strategy") == "steps":
            self._put("training.save_steps", self._value("save_steps"), "save_steps")
            return
        if self._value("save_strategy") != "no":
            self._lose("save_strategy", "has no key: training.save_steps counts updates; its default is 50")
        else:
            self._put("training.save_steps", None, "save_strategy")

    def _everything_else(self) -> None:
        """What is neither a key nor what happens in any case is named with what to do."""
        options = {option.name: option for option in fields(TDPOConfig)}
        for name, value in self.settings.items():
            if name in DEFAULTS or name in BESIDES or name == "precompute_ref_log_probs" or value is None:
                continue
            if name in OTHERS:
                same, why = OTHERS[name]
                if not trl_names.is_same(value, same):
                    self._lose(name, why)
            elif name in trl_names.FIXED:
                if (problem := trl_names.fixed_problem(name, value)) is not None:
                    self._lose(name, problem.removeprefix(f"{name}={value!r} "))
            elif refusal := {**arguments.REFUSED, **REFUSED}.get(name):
                if value:
                    self._lose(name, refusal)
            elif name in options:
                self._python_only(name, value, options[name])
            else:
                close = get_close_matches(name, [*options, *DEFAULTS, *OTHERS, *BESIDES], 1, 0.75)
                self._lose(name, "is no setting of TRL's" + (f"; did you mean {close[0]}?" if close else ""))

    def _python_only(self, name: str, value: Any, option: Any) -> None:
        if name in ("remove_unused_columns", "dataset_num_proc"):
            return  # they change nothing
        default = option.default if option.default is not MISSING else None
        if value != default:
            self._lose(name, f"has no key in a recipe; in Python, TDPOConfig takes {name}")


def _as_trl_parses(value: Any) -> Any:
    """A value as TRL's parser reads it, which makes numbers of quoted ones."""
    if not isinstance(value, str):
        return value
    try:
        parsed, _ = read_yaml(value)
    except ValueError:
        return value
    return parsed if isinstance(parsed, int | float | bool) else value
