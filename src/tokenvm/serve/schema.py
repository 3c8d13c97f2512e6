"""What requests may say: fields that several endpoints share, and the refusal of those that are not served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tokenvm.schedule.sampling_params import MAX_N

Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = list[TokenId]
Number = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Logprobs = Annotated[int, Field(ge=-1, lt=2**31)]
Word = Annotated[str, Field(max_length=1024)]
Sought = Annotated[str, Field(min_length=1, max_length=1024)]
"""A text that is looked for in answers."""

Harmless = tuple[Any, ...]

NOT_SERVED: Final[Mapping[str, tuple[Harmless, str]]] = {
    "audio": ((), "this server answers with text"),
    "modalities": ((["text"],), 'leave it out, or send ["text"]'),
    "functions": (([],), "use tools"),
    "function_call": (("none",), "use tool_choice"),
    "prediction": ((), "leave it out"),
    "reasoning_effort": ((), "leave it out; some models take chat_template_kwargs"),
    "verbosity": ((), "leave it out and say it in the prompt"),
    "web_search_options": ((), "leave it out"),
    "moderation": ((), "leave it out"),
    "store": ((False,), "answers are not kept: leave it out, or send false"),
    "service_tier": (("auto", "default"), 'leave it out, or send "auto"'),
    "suffix": (("",), "leave it out"),
    "prompt_cache_options": ((), "prefixes are shared by themselves; use cache_salt to keep them apart"),
    "prompt_cache_retention": ((), "leave it out"),
    "chat_template": ((), "the model's own template is used"),
    "documents": (([],), "put them into messages"),
    "kv_transfer_params": ((), "leave it out"),
    "logprob_token_ids": ((), "use logprobs"),
    "use_beam_search": ((False,), "leave it out, or send false"),
}
"""Field that clients know and this server does not serve → values that change nothing, and what to do instead."""


class Body(BaseModel):
    """A request's JSON. Unknown fields are refused by name; nothing is converted but whole numbers to fractions."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    not_served: ClassVar[Mapping[str, tuple[Harmless, str]]] = NOT_SERVED

    @model_validator(mode="before")
    @classmethod
    def _refuse_not_served(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        found = [name for name in given if name in cls.not_served and name not in cls.model_fields]
        for name in found:
            harmless, why = cls.not_served[name]
            if given[name] is not None and given[name] not in harmless:
                text = f"{name} is not supported: {why}".replace("{", "{{").replace("}", "}}")
                raise PydanticCustomError("unsupported", text, {"field": name})
        return {key: value for key, value in given.items() if key not in found}


class StreamOptions(Body):
    """What a stream tells beside its text."""

    not_served = {"include_obfuscation": ((False,), "leave it out, or send false")}

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class NamedSchema(Body):
    """The schema of a `response_format`."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's way to say what an answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class Structure(Body):
    """vLLM's way: the fields of StructuredOutputsParams."""

    json_: Annotated[str | dict[str, Any] | None, Field(alias="json")] = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None


class SamplingBody(Body):
    """How to choose tokens, for all endpoints that produce some: OpenAI's fields, then vLLM's.

    `user`, `safety_identifier`, `prompt_cache_key` and `metadata` are labels of the client; they change nothing.
    """

    model: Word = "default"
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1e6)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[Number, Bias], Field(max_length=1024)] | None = None
    stop: Sought | Annotated[list[Sought], Field(max_length=16)] | None = None
    seed: Whole | None = None
    user: Word | None = None
    safety_identifier: Word | None = None
    prompt_cache_key: Word | None = None
    metadata: dict[str, str] | None = None

    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: Logprobs | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    priority: Whole | None = None
    cache_salt: Word | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")] | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Annotated[list[Sought], Field(max_length=256)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: Structure | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> SamplingBody:
        if self.stream_options is not None and not self.stream:
            text = "stream_options is only for streams: send stream=true, or leave it out"
            raise PydanticCustomError("alone", text, {"field": "stream_options"})
        return self


class ErrorObject(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every answer with a status from 400 on holds."""

    error: ErrorObject
