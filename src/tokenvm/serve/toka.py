"""Tokasaurus' command lines in ours: `toka model=… kv_cache_num_tokens='(512*1024)'`. Pure."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tokenvm.errors import ConfigError

OPTIONS: Final[Mapping[str, str]] = {
    "tokenizer": "--tokenizer",
    "dtype": "--dtype",
    "host": "--host",
    "port": "--port",
    "kv_cache_num_tokens": "--kv-cache-num-tokens",
    "page_size": "--block-tokens",
    "max_tokens_per_forward": "--max-tokens-per-forward",
    "max_seqs_per_forward": "--max-num-seqs",
    "max_num_tokens_per_request": "--max-model-len",
    "vram_limit": "--vram-limit",
    "host_memory": "--host-memory",
    "nvme_path": "--nvme-path",
    "nvme_limit": "--nvme-limit",
    "kv_cache_dtype": "--kv-cache-dtype",
    "metrics_port": "--metrics-port",
    "threads": "--threads",
}
"""Key of `toka` → option of `tokenvm serve`."""

PINGS: Final[Mapping[str, str]] = {
    "model": "--model",
    "host": "--host",
    "port": "--port",
    "max_tokens": "--max-tokens",
    "n": "--n",
    "temperature": "--temperature",
    "retries": "--retries",
}
"""Key of `toka ping` → option of `tokenvm ping`."""

ALWAYS: Final[Mapping[str, str]] = {
    "use_hydragen": "prefixes are always shared and read once",
    "hydragen_min_group_size": "prefixes are shared from two sequences on",
    "hydragen_min_prefix_len": "prefixes are shared from one page on",
    "enable_chosen_logprobs": "every request may ask for log-probabilities",
    "max_topk_logprobs": "every request may ask for log-probabilities",
    "torch_compile": "kernels are native",
    "use_cudagraphs": "there is no GPU in this version",
    "cudagraph_max_size": "there is no GPU in this version",
    "cudagraph_step": "there is no GPU in this version",
    "cudagraph_max_kv_indices_per_seq": "there is no GPU in this version",
    "prefill_round_up_multiple": "rows need no rounding",
    "scheduling_steps_ahead": "steps are planned one by one",
    "stop_string_num_token_lookback": "stop strings of any length are found",
    "track_early_stopping": "lengths of answers are always foreseen",
    "early_stopping_buffer_size": "lengths of answers are always foreseen",
    "early_stopping_num_prediction_buckets": "lengths of answers are always foreseen",
    "early_stopping_initial_wait": "lengths of answers are always foreseen",
    "early_stopping_init_mean": "lengths of answers are always foreseen",
    "early_stopping_init_std": "lengths of answers are always foreseen",
    "enable_precise_onboard": "admission always looks ahead",
    "precise_onboard_batch_size": "admission always looks ahead",
    "greedy_prefill": "prompts are always computed as soon as there is room",
    "use_spec_allocation": "admission always looks ahead",
    "spec_allocation_std_buffer_scale": "admission always looks ahead",
    "spec_allocation_target_kv_cache_utilization": "admission always looks ahead",
    "allocator_sanity_checks": "the tests check the laws of memory",
    "stats_report_seconds": "figures are at /metrics",
    "local_proc_name": "processes have no names",
    "log_level": "set TOKENVM_LOG_LEVEL",
    "uvicorn_log_level": "set TOKENVM_LOG_LEVEL",
}
"""Key that Tokasaurus has and nothing here depends on → why."""

ONLY: Final[Mapping[str, tuple[Any, ...]]] = {
    "trust_remote_code": (False,),
    "rope_scaling": (None,),
    "log_procs": (None,),
    "statsd_server_url": (None,),
    "async_tp_threshold": (None,),
    "dp_size": (1,),
    "pp_size": (1,),
    "tp_size": (1,),
    "pp_num_buffer_stages": (1,),
    "bump_city_population_me": (False,),
}
"""Key that is possible with these values alone in this version."""

_WORDS: Final[Mapping[str, Any]] = {
    "T": True, "True": True, "true": True, "F": False, "False": False, "false": False, "None": None, "none": None,
}  # fmt: skip

_SUMS: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
}
MAX_LETTERS: Final = 200


def translate(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return our command line for the words after `toka`, and remarks on keys that change nothing here.

    Raises ConfigError for what this version cannot do; it says what to type.
    """
    if words and words[0] == "ping":
        return _ping(words[1:]), []
    given = _pairs([word for word in words if word != ".uvsh"])
    if "model" not in given:
        raise ConfigError("toka needs a model: type toka model=smollm2")
    line = ["serve", str(given.pop("model")), *([] if ".uvsh" not in words else ["--no-log-requests"])]
    remarks = []
    for key, value in given.items():
        if key in OPTIONS:
            line += [] if value is None else [OPTIONS[key], str(value)]
        elif key in ALWAYS:
            remarks.append(f"{key} changes nothing here: {ALWAYS[key]}")
        elif key not in ONLY:
            raise ConfigError(f"toka has no key {key!r}: use {', '.join(OPTIONS)}")
        elif str(value) not in map(str, ONLY[key]):
            raise ConfigError(f"{key}={value} is not possible in this version: leave it out")
    return line, remarks


def read_value(text: str) -> Any:
    """Read T, F, None, or arithmetic in parentheses; anything else is text. Nothing is evaluated as a program."""
    if text in _WORDS:
        return _WORDS[text]
    if text.startswith("(") and text.endswith(")"):
        return _arithmetic(text)
    return text


def _ping(words: Sequence[str]) -> list[str]:
    given = _pairs(words)
    if "prompt" not in given:
        raise ConfigError("toka ping needs a prompt: type toka ping prompt=hello")
    line = ["ping"]
    chat, hide = given.pop("chat", False), given.pop("hide", False)
    line += [option for option, wanted in (("--chat", chat), ("--hide", hide)) if wanted is True]
    text = str(given.pop("prompt"))
    for key, value in given.items():
        if key not in PINGS:
            raise ConfigError(f"toka ping has no key {key!r}: use prompt, chat, hide, {', '.join(PINGS)}")
        line += [PINGS[key], str(value)] if value != "" else []
    return [*line, "--", text]


def _pairs(words: Sequence[str]) -> dict[str, Any]:
    given = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"toka does not understand {word!r}: type key=value, as in model=smollm2")
        given[key] = read_value(text)
    return given


def _arithmetic(text: str) -> int | float:
    try:
        if len(text) > MAX_LETTERS:
            raise ValueError("it is too long")
        value = _number(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{text!r} is no arithmetic ({error}): type it like (512*1024)") from error
    return int(value) if value == int(value) else value


def _number(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _SUMS:
        result: int | float = _SUMS[type(node.op)](_number(node.left), _number(node.right))
        return result
    raise ValueError("only numbers, + - * / // and parentheses")
