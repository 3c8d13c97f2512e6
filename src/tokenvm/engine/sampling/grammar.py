"""What an answer must look like, as a grammar of llguidance.

llguidance (https://github.com/guidance-ai/llguidance, MIT) runs a lexer of regex derivatives below an Earley parser
over the trie of all tokens: it says which tokens may come next.
"""

from __future__ import annotations

import json
from typing import Final

from llguidance import LLMatcher, grammar_from

from tokenvm.errors import RequestError
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.schedule.structured_outputs import StructuredOutputsParams

WHITESPACE: Final = r"(\n {0,16}| )?"
"""Between two tokens of JSON. Bounded: small models are tempted to write spaces for ever."""

MAX_GRAMMAR_BYTES: Final = 1 << 20
"""Longer schemas, choices and grammars are a mistake or worse."""


def grammar_of(wanted: StructuredOutputsParams) -> str:
    """Return the grammar. Raises RequestError for one that cannot be written down."""
    try:
        match wanted.kind:
            case "json" | "json_object":
                return _json_grammar(wanted)
            case "choice":
                return grammar_from("choice", json.dumps(wanted.choice))
            case "regex":
                return LLMatcher.grammar_from_regex(str(wanted.regex))
            case _:
                return grammar_from("grammar", str(wanted.grammar))
    except (ValueError, RecursionError) as error:
        raise _refusal(wanted.kind, error) from error


def refuse_bad_structure(params: SamplingParams) -> None:
    """Raise RequestError if what is asked of an answer's shape cannot be followed."""
    wanted = params.structure
    if wanted is None:
        return
    grammar = grammar_of(wanted)
    if len(grammar) > MAX_GRAMMAR_BYTES:
        raise _refusal(wanted.kind, f"it has {len(grammar)} characters and {MAX_GRAMMAR_BYTES} are allowed")
    if problem := LLMatcher.validate_grammar(grammar):
        raise _refusal(wanted.kind, problem)


def _json_grammar(wanted: StructuredOutputsParams) -> str:
    schema = wanted.json if isinstance(wanted.json, str) else '{"type": "object"}'
    if wanted.disable_any_whitespace:
        return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
    pattern = wanted.whitespace_pattern or WHITESPACE
    return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": pattern})


def _refusal(kind: str, problem: object) -> RequestError:
    said = " ".join(str(problem).split())
    return RequestError(
        f"SamplingParams.structured_outputs.{kind} cannot be followed ({said:.400}): correct it, or leave it out"
    )
