"""How likely a prompt was: which rows want logits, and what an engine tells, against prompts cut short."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures_engine import greedy, prompt, running, speak, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from tokenvm.engine.sampling.choice import Choice
from tokenvm.engine.sampling.scoring import LogitRows, score
from tokenvm.schedule.plan import Plan, Span
from tokenvm.schedule.request import Request
from tokenvm.vocab import SeqId

SPANS = st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.booleans()), max_size=6)


@given(SPANS)
def test_rows_are_those_that_score_and_those_that_sample(kinds: list[tuple[int, bool, bool]]) -> None:
    spans = [Span(SeqId(at), 10 * at, *kind) for at, kind in enumerate(kinds)]
    plan = Plan(tuple(spans))
    wanted = LogitRows.of(plan)
    all_rows = [(span, row) for span in spans for row in range(span.count)]
    kept = [all_rows[at] for at in wanted.rows]
    assert kept == [(s, row) for s, row in all_rows if s.scores or (s.samples and row == s.count - 1)]
    assert [kept[at] for at in wanted.sampled] == [(s, s.count - 1) for s in spans if s.samples]
    assert [(span, *kept[at]) for span, at in wanted.scored] == [(s, s, 0) for s in spans if s.scores]


@pytest.mark.parametrize(
    ("start", "rows", "first", "told"), [(0, 3, 1, 3), (2, 2, 3, 1), (2, 1, 3, 1), (3, 1, 4, 0)]
)
def test_a_row_tells_of_the_next_token_of_the_prompt(start: int, rows: int, first: int, told: int) -> None:
    logits = np.random.default_rng(0).normal(size=(rows, 9)).astype(np.float32)
    scores = score(logits, start, [3, 1, 4, 5], wanted=0)
    assert scores.first == first
    assert [choice.token for choice in scores.choices] == [3, 1, 4, 5][first : first + told]
    for row, choice in zip(logits, scores.choices, strict=False):
        assert choice.logprob == pytest.approx(float(row[choice.token] - np.log(np.exp(row).sum())), abs=1e-5)


@pytest.mark.parametrize("pages", [None, 4])
def test_an_engine_tells_what_prompts_cut_short_would_say(pages: int | None, tmp_path: Path) -> None:
    """By the row law to the bit, in chunks, in a batch and with pages on disk."""
    model, ids = tiny_model(), prompt(75)
    params = replace(greedy(3), prompt_logprobs=3)
    with running(model, tmp_path, device_pages=pages, max_tokens_per_forward=23) as engine:
        (seq,) = engine.add(Request("scored", ids, params))
        engine.add(Request("other", prompt(40), greedy(3)))
        told: list[Choice] = []
        while engine.has_work:
            result = engine.step()
            assert set(result.scores) <= {seq}
            if seq in result.scores:
                assert result.scores[seq].first == len(told) + 1
                told += result.scores[seq].choices
        assert (engine.stats()["streamed_pages"] > 0) == (pages is not None)
    assert [choice.token for choice in told] == list(ids[1:])
    with running(model, tmp_path) as engine:
        for at in (1, 15, 16, 17, 40, 74):
            (said,) = speak(engine, [ids[:at]], params=greedy(1))
            assert told[at - 1].best == said.logprobs[0][:3]


def test_scoring_changes_no_token(tmp_path: Path) -> None:
    model, prompts = tiny_model(), [prompt(75), prompt(40)]
    with running(model, tmp_path, max_tokens_per_forward=23) as engine:
        alone = speak(engine, prompts, params=greedy(4))
        assert speak(engine, prompts, params=replace(greedy(4), prompt_logprobs=0)) == alone
