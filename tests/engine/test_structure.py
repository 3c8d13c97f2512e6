"""What an answer must look like: alone and in any batch, to its end within max_tokens, or refused."""

import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling import row_of

from tokenvm.engine.sampling.bans import FORBIDDEN
from tokenvm.engine.sampling.grammar import refuse_bad_structure
from tokenvm.engine.sampling.rows import RowState
from tokenvm.engine.sampling.sampler import sample
from tokenvm.engine.sampling.structure import KEPT, Structures
from tokenvm.engine.sampling.way_out import Closers
from tokenvm.errors import ModelError, RequestError
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.schedule.structured_outputs import StructuredOutputsParams
from tokenvm.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from tokenizer_folder import folder_of

END = 2
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["tall", "kind"]}, "minItems": 1},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WANTED: list[tuple[dict[str, Any], Any]] = [
    ({"json": PERSON}, lambda text: jsonschema.validate(json.loads(text), PERSON)),
    ({"json_object": True}, lambda text: isinstance(json.loads(text), dict) or pytest.fail(text)),
    ({"regex": "[a-c]{3,}-[0-9]+"}, lambda text: re.fullmatch("[a-c]{3,}-[0-9]+", text) or pytest.fail(text)),
    ({"choice": ["yes", "no", "ye shall"]}, lambda text: ["yes", "no", "ye shall"].index(text)),
    (
        {"grammar": 'root ::= ("a" | "b")+ "c"'},
        lambda text: re.fullmatch("[ab]+c", text) or pytest.fail(text),
    ),
    ({"grammar": 'start: "x"+ "y"'}, lambda text: re.fullmatch("x+y", text) or pytest.fail(text)),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(folder_of(tmp_path_factory.mktemp("words")))


@pytest.fixture(scope="module")
def structures(tokenizer: Tokenizer) -> Iterator[Structures]:
    made = Structures(lambda: tokenizer, tokenizer.vocab_size, [END])
    yield made
    made.close()


class Speaker:
    """One sequence over random logits, as a function of its own number and place alone."""

    def __init__(self, structures: Structures, params: SamplingParams, seed: int, words: int) -> None:
        assert params.structure is not None
        assert params.max_tokens is not None
        structure = structures.of(params.structure, params.max_tokens)
        self.row = RowState(params, seed, vocab_size=words, ends=[END], structure=structure)
        self.most, self.seed, self.words = params.max_tokens, seed, words
        self.tokens: list[int] = []

    @property
    def ended(self) -> bool:
        return self.tokens[-1:] == [END] or len(self.tokens) == self.most

    @property
    def logits(self) -> np.ndarray:
        return row_of(self.seed * 1000 + len(self.tokens), self.words)

    def take(self, token: int) -> None:
        self.tokens.append(token)
        self.row.enter(token)


def speak(speakers: list[Speaker]) -> None:
    while rows := [one for one in speakers if not one.ended]:
        logits = np.stack([one.logits for one in rows])
        for one, choice in zip(rows, sample(logits, [one.row for one in rows]), strict=True):
            one.take(choice.token)


@pytest.mark.parametrize(("wanted", "check"), WANTED, ids=[str(wanted)[:60] for wanted, _ in WANTED])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_look_as_they_must_and_are_never_cut_off(
    tokenizer: Tokenizer, structures: Structures, wanted: dict[str, Any], check: Any, temperature: float
) -> None:
    params = SamplingParams(temperature=temperature, max_tokens=50, structured_outputs=wanted)
    speakers = [Speaker(structures, params, seed, tokenizer.vocab_size) for seed in range(3)]
    speak(speakers)
    for one in speakers:
        assert one.tokens[-1] == END
        check(tokenizer.decode(one.tokens))


def test_a_structured_answer_is_the_same_alone_and_in_any_batch(
    tokenizer: Tokenizer, structures: Structures
) -> None:
    def crowd() -> list[Speaker]:
        asked = [SamplingParams(max_tokens=40, structured_outputs=wanted) for wanted, _ in WANTED]
        return [
            Speaker(structures, one, seed, tokenizer.vocab_size)
            for seed, one in enumerate(asked + asked, start=1)
        ]

    together, alone = crowd(), crowd()
    speak(together)
    for one in alone:
        speak([one])
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert len({tuple(one.tokens) for one in together}) > len(WANTED)


def test_rows_beside_a_structured_one_are_untouched(tokenizer: Tokenizer, structures: Structures) -> None:
    free = RowState(SamplingParams(temperature=0), 1, vocab_size=tokenizer.vocab_size, ends=[END])
    bound = Speaker(
        structures, SamplingParams(structured_outputs={"choice": ["no"]}), 1, tokenizer.vocab_size
    )
    logits = np.stack([row_of(1, tokenizer.vocab_size)] * 2)
    before = logits.copy()
    choices = sample(logits, [free, bound.row])
    assert choices[0].token == int(logits[0].argmax())
    assert tokenizer.decode([choices[1].token]) in ("n", "no")
    np.testing.assert_array_equal(logits, before)


@given(seed=st.integers(0, 10**6), most=st.integers(1, 40))
@settings(max_examples=10)
def test_a_structure_allows_something_as_long_as_it_has_not_ended(
    tokenizer: Tokenizer, structures: Structures, seed: int, most: int
) -> None:
    params = SamplingParams(max_tokens=most, structured_outputs={"json": PERSON})
    one = Speaker(structures, params, seed, tokenizer.vocab_size)
    while not one.ended:
        assert one.row.structure is not None
        allowed = one.row.structure.allowed(one.words)
        (choice,) = sample(one.logits[None], [one.row])
        assert sample(one.logits[None], [one.row]) == [choice], "asking again gives the same"
        assert allowed[choice.token]
        one.take(choice.token)
    assert len(one.tokens) <= most


def test_ends_that_are_too_early_give_way_where_only_an_end_is_left(
    tokenizer: Tokenizer, structures: Structures
) -> None:
    params = SamplingParams(min_tokens=9, max_tokens=12, structured_outputs={"choice": ["no"]})
    one = Speaker(structures, params, 1, tokenizer.vocab_size)
    speak([one])
    assert tokenizer.decode(one.tokens) == "no"


def test_a_known_way_out_is_followed_without_looking_for_another(
    structures: Structures, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = structures.of(StructuredOutputsParams(regex="[a-c]{9,}-[0-9]+"), 20)
    way = list(one._way or ())
    assert len(way) > 9

    def looked(*_asked: Any) -> None:
        raise AssertionError("the way is known")

    monkeypatch.setattr(Closers, "way_out", looked)
    for token in way:
        assert one.settle(token) == token
        one.enter(token)
    assert one.problem == ""


def test_only_so_many_grammars_are_kept_and_one_that_was_dropped_is_made_again(tokenizer: Tokenizer) -> None:
    structures = Structures(lambda: tokenizer, tokenizer.vocab_size, [END])
    wanted = [StructuredOutputsParams(choice=[f"word {at}"]) for at in range(KEPT + 3)]
    for one in wanted:
        structures.expect(one)
    assert structures.of(wanted[0], 9).allowed(tokenizer.vocab_size).sum() == 1
    structures.close()


def test_a_grammar_that_grows_too_large_says_so(tokenizer: Tokenizer, structures: Structures) -> None:
    wanted = StructuredOutputsParams(choice=["no"])
    structure = structures.of(wanted, 9)
    assert structure.problem == ""
    structure.enter(tokenizer.encode("x")[0])
    assert structure.problem != ""


def test_without_a_tokenizer_or_an_end_token_there_is_no_structure(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="has no tokenizer"):
        Structures(None, 300, [END]).expect(StructuredOutputsParams(json_object=True))
    with pytest.raises(RequestError, match="no end token"):
        Structures(lambda: tokenizer, 300, []).expect(StructuredOutputsParams(json_object=True))


def test_a_tokenizer_that_cannot_be_read_is_refused_by_name() -> None:
    def broken() -> Tokenizer:
        raise ModelError("it is damaged")

    structures = Structures(broken, 300, [END])
    with pytest.raises(RequestError, match="it is damaged"):
        structures.expect(StructuredOutputsParams(json_object=True))
    structures.close()


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"json": {"type": "colour"}}, "structured_outputs.json"),
        ({"json": {"type": "string", "pattern": "(?=a)"}}, "look-around"),
        ({"regex": "(a"}, "structured_outputs.regex"),
        ({"regex": "a(?=b)"}, "look-around"),
        ({"grammar": "start: nobody"}, "nobody"),
        ({"grammar": "root ::= ("}, "structured_outputs.grammar"),
        ({"choice": ["x" * 2_000_000]}, "characters"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_followed_is_refused_by_name(wanted: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=re.escape(named)):
        refuse_bad_structure(SamplingParams(structured_outputs=wanted))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_come(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, allowed_token_ids=[5, 9, 11])
    row = RowState(params, 3, vocab_size=300)
    drawn = set()
    for at in range(40):
        (choice,) = sample(row_of(at, 300)[None], [row])
        row.enter(choice.token)
        drawn.add(choice.token)
    assert drawn == {5, 9, 11}


def test_bad_words_are_never_completed() -> None:
    words = [[4], [1, 2], [1, 1, 3]]
    params = SamplingParams(allowed_token_ids=[1, 2, 3, 4, 5], bad_words_token_ids=words)
    row, said = RowState(params, 3, vocab_size=10), []
    for at in range(300):
        (choice,) = sample(row_of(at, 10, spread=0.3)[None], [row])
        row.enter(choice.token)
        said.append(choice.token)
    assert 4 not in said
    assert (1, 2) not in set(pairwise(said))
    assert (1, 1, 3) not in set(zip(said, said[1:], said[2:], strict=False))
    assert {(1, 1), (1, 3), (3, 2)} <= set(pairwise(said)), "the parts of bad words may come"


def test_where_bad_words_forbid_all_that_is_allowed_it_may_come() -> None:
    params = SamplingParams(allowed_token_ids=[7], bad_words_token_ids=[[7]])
    row = RowState(params, 3, vocab_size=10)
    assert sample(row_of(1, 10)[None], [row])[0].token == 7
    assert row.changed(row_of(1, 10)).tolist().count(FORBIDDEN) == 9
