import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvm.engine.sampler import choose
from tokenvm.schedule.sampling_params import SamplingParams

LOGITS = np.random.default_rng(7).normal(0, 3, 300).astype(np.float32)


def frequencies(params, draws=4000):
    counts = np.zeros(LOGITS.size)
    for index in range(draws):
        counts[choose(LOGITS, params, seed=3, index=index).token] += 1
    return counts / draws


def softmax(row):
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def test_greedy_takes_the_first_of_equal_maxima():
    row = np.zeros(10, dtype=np.float32)
    row[[4, 7]] = 2.0
    assert choose(row, SamplingParams(temperature=0), seed=0, index=0).token == 4


def test_temperature_draws_from_the_scaled_distribution():
    expected = softmax(LOGITS.astype(np.float64) / 0.7)
    assert np.abs(frequencies(SamplingParams(temperature=0.7)) - expected).max() < 0.03


@pytest.mark.parametrize("top_k", [1, 2, 17])
def test_top_k_never_leaves_the_k_best(top_k):
    allowed = set(np.argsort(-LOGITS)[:top_k].tolist())
    assert set(np.flatnonzero(frequencies(SamplingParams(top_k=top_k), 500)).tolist()) <= allowed


@given(st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p):
    order = np.argsort(-LOGITS, kind="stable")
    cumulated = np.cumsum(softmax(LOGITS.astype(np.float64))[order])
    allowed = set(order[: int(np.searchsorted(cumulated, top_p)) + 1].tolist())
    drawn = {choose(LOGITS, SamplingParams(top_p=top_p), seed=1, index=i).token for i in range(40)}
    assert drawn <= allowed


def test_a_draw_depends_on_seed_and_index_alone():
    params = SamplingParams(temperature=1.0)
    first = [choose(LOGITS, params, seed=5, index=i).token for i in range(20)]
    again = [choose(LOGITS, params, seed=5, index=i).token for i in reversed(range(20))]
    assert first == again[::-1]
    assert first != [choose(LOGITS, params, seed=6, index=i).token for i in range(20)]


def test_logprobs_are_those_of_the_model_before_temperature_and_cuts():
    choice = choose(LOGITS, SamplingParams(temperature=2.0, top_k=3, logprobs=4), seed=9, index=2)
    expected = np.log(softmax(LOGITS.astype(np.float64)))
    assert choice.logprob == pytest.approx(expected[choice.token], abs=1e-12)
    assert [token for token, _ in choice.best] == np.argsort(-LOGITS)[:4].tolist()
    assert choice.rank == 1 + int((LOGITS[choice.token] < LOGITS).sum())
