"""Choices against a sampler that sorts everything in float64, and the row law: alone, in any batch, in any order."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenvm.engine.sampling.choice import Choice, largest
from tokenvm.engine.sampling.draw import draw, uniform
from tokenvm.engine.sampling.rows import RowState
from tokenvm.engine.sampling.sampler import sample
from tokenvm.schedule.sampling_params import ALL, SamplingParams

VOCAB = 2600
"""Above what makes a row worth bounding by the maxima of its stretches, and no multiple of a block."""

ENDS = (2, 7)
Logits = NDArray[np.float32]


def row_of(seed: int, vocab: int = VOCAB, spread: float = 3.0, steps: int = 0) -> Logits:
    """Random logits; `steps` rounds them to few values, so that many are equal."""
    row = np.random.default_rng(seed).normal(0, spread, vocab)
    return (np.round(row * steps) / steps if steps else row).astype(np.float32)


def state(params: SamplingParams, seed: int = 3, said: tuple[int, ...] = (), **numbers: Any) -> RowState:
    row = RowState(params, seed, **{"vocab_size": VOCAB, "ends": ENDS} | numbers)
    for token in said:
        row.enter(token)
    return row


def choose(logits: Logits, params: SamplingParams, seed: int, index: int) -> Choice:
    row = state(params, seed, vocab_size=logits.size)
    row.index = index
    return sample(logits[None], [row])[0]


def softmax(row: NDArray[Any]) -> NDArray[np.float64]:
    weights = np.exp(row.astype(np.float64) - float(row.max()))
    return weights / weights.sum()


def cut(row: Logits, params: SamplingParams, slack: float = 0.0) -> list[int]:
    """What the definition leaves, best first; `slack` moves the borders of min_p and top_p."""
    shares = softmax(row.astype(np.float64) / params.temperature)
    kept = np.argsort(-row, kind="stable")
    if params.min_p:
        kept = kept[shares[kept] >= (params.min_p - slack) * shares.max()]
    if params.top_k > 0:
        kept = kept[: params.top_k]
    if params.top_p < 1:
        before = np.cumsum(shares[kept]) - shares[kept]
        kept = kept[before <= (params.top_p + slack) * shares[kept].sum()]
    return [int(token) for token in kept]


@st.composite
def cuts(draw_: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        temperature=draw_(st.sampled_from([0.05, 0.7, 1.0, 3.0, 1e6])),
        top_k=draw_(st.sampled_from([0, -1, 1, 2, 40, 128, 129, 700, VOCAB, 10**6])),
        top_p=draw_(st.sampled_from([1.0, 0.999, 0.95, 0.5, 1e-4]) | st.floats(0.001, 1)),
        min_p=draw_(st.sampled_from([0.0, 0.0, 1e-4, 0.1, 1.0])),
    )


@given(cuts(), st.integers(0, 50), st.sampled_from([0, 1, 3]), st.sampled_from([5, 300, 2048, VOCAB]))
@settings(max_examples=150)
def test_draws_stay_within_the_cut_and_reach_its_ends(
    params: SamplingParams, seed: int, steps: int, vocab: int
) -> None:
    row = row_of(seed, vocab, steps=steps)
    surely, possibly = cut(row, params, -1e-5), cut(row, params, 1e-5)
    for index in range(5):
        assert draw(row, params, uniform(seed, 0, index)) in possibly
    if 0 < params.top_k < vocab or params.top_p < 1 or params.min_p:
        assert draw(row, params, 0.0) == possibly[0]
        last = possibly.index(draw(row, params, math.nextafter(1.0, 0.0)))
        tail = softmax(row.astype(np.float64) / params.temperature)[surely[last + 1 :]]
        assert tail.sum() < 1e-5


@given(cuts(), st.floats(0, 1, exclude_max=True), st.integers(0, 20))
@settings(max_examples=100)
def test_a_draw_inverts_the_distribution_that_is_left(
    params: SamplingParams, place: float, seed: int
) -> None:
    """The token's stretch of the cumulated distribution holds the place, up to the rounding of whole rows."""
    row = row_of(seed, spread=1.5)
    token = draw(row, params, place)
    kept = cut(row, params)
    if not 0 < params.top_k < VOCAB and params.top_p == 1 and not params.min_p:
        kept.sort()
    shares = softmax(row[kept].astype(np.float64) / params.temperature)
    edges = np.concatenate([[0.0], np.cumsum(shares)])
    at = kept.index(token)
    assert edges[at] - 1e-5 <= place <= edges[at + 1] + 1e-5


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.6, temperature=1.4),
        SamplingParams(min_p=0.2),
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_distribution(params: SamplingParams) -> None:
    row, draws = row_of(5, 40, spread=1.5), 6000
    said = Counter(draw(row, params, uniform(3, 0, index)) for index in range(draws))
    kept = cut(row, params)
    expected = dict(zip(kept, softmax(row[kept].astype(np.float64) / params.temperature), strict=True))
    assert set(said) <= set(expected)
    assert max(abs(said[token] / draws - share) for token, share in expected.items()) < 0.025


def test_greedy_takes_the_first_of_equal_maxima() -> None:
    row = np.zeros(10, dtype=np.float32)
    row[[4, 7]] = 2.0
    assert choose(row, SamplingParams(temperature=0), 0, 0).token == 4
    assert choose(row, SamplingParams(top_k=1), 0, 0).token == 4
    assert choose(row, SamplingParams(top_p=1e-9), 0, 0).token == 4


@given(st.integers(0, 30), st.sampled_from([0, 1, 2]), st.sampled_from([3, 600, 2048, VOCAB, 8192]))
def test_the_largest_are_those_of_a_full_sort(seed: int, steps: int, vocab: int) -> None:
    row = row_of(seed, vocab, steps=steps)
    whole = np.argsort(-row, kind="stable").tolist()
    for count in (0, 1, 2, 60, 128, 129, 1000, vocab, vocab + 5):
        assert largest(row, count).tolist() == whole[:count]


def test_places_are_those_of_numpys_philox() -> None:
    for seed in (0, 5, -1, 2**64 - 1, 2**80 + 7):
        for completion, index in ((0, 0), (0, 1), (3, 0), (1023, 10**6)):
            bits = np.random.Philox(key=seed % (1 << 64), counter=[0, 0, completion, index])
            assert uniform(seed, completion, index) == np.random.Generator(bits).random()


def test_streams_differ_by_seed_completion_and_index() -> None:
    places = {uniform(*key) for key in [(s, a, i) for s in range(4) for a in range(4) for i in range(4)]}
    assert len(places) == 64


def test_logprobs_are_those_of_the_model_before_all_that_parameters_change() -> None:
    row = row_of(7)
    params = SamplingParams(
        temperature=2.0, top_k=3, logprobs=4, logit_bias={9: 100}, repetition_penalty=2.0, min_tokens=2
    )
    (choice,) = sample(row[None], [state(params, prompt=(1, 2))])
    expected = np.log(softmax(row))
    order = np.argsort(-row, kind="stable").tolist()
    assert choice.token == 9
    assert choice.logprob == pytest.approx(expected[9], abs=1e-12)
    assert choice.rank == 1 + int((row > row[9]).sum())
    assert [token for token, _ in choice.best] == order[:4]
    assert [value for _, value in choice.best] == pytest.approx(expected[order[:4]].tolist(), abs=1e-12)
    whole = choose(row, SamplingParams(temperature=0, logprobs=ALL), 0, 0)
    assert [token for token, _ in whole.best] == order


def test_penalties_and_bias_follow_their_definitions() -> None:
    row, prompt, said = row_of(8), (5, 6, 6, 40), (6, 41, 41, 41)
    params = SamplingParams(
        repetition_penalty=1.5, frequency_penalty=0.3, presence_penalty=0.4, logit_bias={6: -3, 50: 7.5}
    )
    expected = row.astype(np.float64)
    expected[6] -= 3
    expected[50] += 7.5
    expected = expected.astype(np.float32).astype(np.float64)
    for token in {*prompt, *said}:
        expected[token] = expected[token] / 1.5 if expected[token] > 0 else expected[token] * 1.5
    for token, count in Counter(said).items():
        expected[token] -= 0.3 * count + 0.4
    before = row.copy()
    changed = state(params, said=said, prompt=prompt).changed(row)
    np.testing.assert_allclose(changed, expected, rtol=1e-6)
    assert (changed == row).sum() == VOCAB - len({*prompt, *said, 50})
    assert (row == before).all()


def test_frequency_and_presence_do_not_see_the_prompt() -> None:
    row = row_of(9)
    params = SamplingParams(frequency_penalty=2, presence_penalty=2)
    assert (state(params, prompt=(1, 2, 3)).changed(row) == row).all()


@given(st.lists(st.integers(0, 60), max_size=200), st.lists(st.integers(0, 60), max_size=20))
def test_tokens_are_counted_as_they_come(said: list[int], prompt: list[int]) -> None:
    """Entering token after token gives what counting all of them at once gives."""
    row, params = row_of(1, 61), SamplingParams(repetition_penalty=1.2, frequency_penalty=0.1)
    counted = np.bincount(said, minlength=61)
    expected = row.astype(np.float64)
    seen = sorted({*said, *prompt})
    expected[seen] = np.where(expected[seen] > 0, expected[seen] / 1.2, expected[seen] * 1.2)
    expected -= 0.1 * counted
    changed = state(params, said=tuple(said), prompt=prompt, vocab_size=61).changed(row)
    assert (changed == expected.astype(np.float32)).all()


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1.0])
def test_min_tokens_forbids_what_ends_the_text(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, min_tokens=3, stop_token_ids=[11, VOCAB + 5])
    row = row_of(4)
    row[[2, 7, 11]] = 50.0
    tokens = [sample(row[None], [state(params, said=(1,) * count)])[0].token for count in range(5)]
    assert not {2, 7, 11} & set(tokens[:3])
    assert {2, 7, 11} >= set(tokens[3:])


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1.0])
def test_a_row_of_forbidden_tokens_still_gives_one(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, min_tokens=1, top_p=0.9)
    (choice,) = sample(row_of(1, 3)[None], [state(params, vocab_size=3, ends=(0, 1, 2))])
    assert choice.token in (0, 1, 2)


def test_logits_that_are_no_numbers_stop_nobody() -> None:
    """A model with broken weights says nonsense, and its batch-mates what they say alone."""
    rows = np.stack([row_of(1), np.full(VOCAB, np.nan, np.float32), np.full(VOCAB, -np.inf, np.float32)])
    rows[0, 5] = -np.inf
    params = SamplingParams(seed=1, top_k=4)
    said = sample(rows, [state(params)] * 3)
    assert said[0] == sample(rows[:1], [state(params)])[0]
    assert all(0 <= choice.token < VOCAB for choice in said)


@st.composite
def any_params(draw_: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        temperature=draw_(st.sampled_from([0.0, 0.0, 0.6, 1.0])),
        top_k=draw_(st.sampled_from([0, 3, 200])),
        top_p=draw_(st.sampled_from([1.0, 0.9])),
        min_p=draw_(st.sampled_from([0.0, 0.05])),
        repetition_penalty=draw_(st.sampled_from([1.0, 1.3])),
        frequency_penalty=draw_(st.sampled_from([0.0, 0.5])),
        logit_bias=draw_(st.sampled_from([None, {3: 5.0, 17: -100}])),
        min_tokens=draw_(st.integers(0, 3)),
        logprobs=draw_(st.sampled_from([None, 0, 3])),
    )


@st.composite
def members(draw_: st.DrawFn) -> tuple[Logits, SamplingParams, int, tuple[int, ...]]:
    vocab_row = row_of(draw_(st.integers(0, 10**6)), spread=draw_(st.sampled_from([0.1, 2.0, 9.0])))
    said = draw_(st.lists(st.integers(0, VOCAB - 1), max_size=5))
    return vocab_row, draw_(any_params()), draw_(st.integers(0, 2**64)), tuple(said)


@given(st.lists(members(), min_size=1, max_size=9), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_a_row_says_the_same_alone_and_in_any_batch(batch: list[Any], order: Any) -> None:
    def say(some: list[Any]) -> list[str]:
        rows = [state(params, seed, said, prompt=(4, 5)) for _, params, seed, said in some]
        return [repr(choice) for choice in sample(np.stack([row for row, *_ in some]), rows)]

    alone = [say([one])[0] for one in batch]
    assert say(batch) == alone
    places = list(range(len(batch)))
    order.shuffle(places)
    assert say([batch[at] for at in places]) == [alone[at] for at in places]
