"""Batches without a server: a deleted input file, two who cancel at once, odd names, priorities."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenvm.serve import batch_endpoints
from tokenvm.serve.archive import Archive, Record
from tokenvm.serve.batch_lines import Line, written
from tokenvm.serve.batch_runner import BatchRunner
from tokenvm.serve.meter import Meter
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.settings import ServeSettings
from tokenvm.serve.state import ServeState
from tokenvm.serve.turnstile import Turnstile


class Keeper:
    """An engine that refuses everything, and tells the priorities it was asked with."""

    plan = {"max_model_len": 100, "crowd": 1}  # noqa: RUF012 - a constant here

    def __init__(self) -> None:
        self.priorities: list[int] = []

    @property
    def llm(self) -> "Keeper":
        return self

    async def standing(self, _wait_s: float) -> "Keeper":
        return self

    def get_tokenizer(self) -> None:
        return None

    async def complete(self, *_asked: Any, priority: int, cache_salt: str) -> None:
        self.priorities.append(priority)
        raise Refusal("not now", status=418)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    made = Archive(tmp_path)
    yield made
    made.close()


def state_of(keeper: Keeper) -> ServeState:
    return ServeState(keeper, ServeSettings("m"), Turnstile(9), Meter())


def half_done(archive: Archive, status: str = "in_progress") -> Record:
    """A batch of two lines, one answered, whose input file is not there."""
    record = {
        "id": "batch_1",
        "input_file_id": "file-gone",
        "endpoint": "/v1/completions",
        "status": status,
        "errors": None,
        "output_file_id": None,
        "error_file_id": None,
        "expires_at": 2**40,
        "completion_window": "24h",
        "request_counts": {"total": 2, "completed": 0, "failed": 0},
    }
    archive.save(record)
    archive.answer("batch_1", 0, False, "answered")
    return record


async def _all_ended(runner: BatchRunner) -> None:
    while runner._tasks:
        await asyncio.gather(*runner._tasks.values())


def run_to_its_end(archive: Archive, record: Record) -> Record:
    async def run() -> None:
        runner = BatchRunner(state_of(Keeper()), archive, 1)
        runner.begin(record)
        await _all_ended(runner)

    asyncio.run(run())
    (found,) = archive.batches()
    return found


def test_answers_outlive_a_deleted_input_file(archive: Archive) -> None:
    found = run_to_its_end(archive, half_done(archive))
    assert (found["status"], found["errors"]["data"][0]["code"]) == ("completed", "missing_file")
    (file,) = archive.files("batch_output")
    assert found["output_file_id"] == file.id
    assert archive.path(file).read_text() == "answered\n"


def test_a_batch_whose_file_is_gone_before_it_was_read_fails(archive: Archive) -> None:
    found = run_to_its_end(archive, half_done(archive, "validating"))
    assert (found["status"], found["errors"]["data"][0]["code"]) == ("failed", "missing_file")


def test_two_who_cancel_at_once_end_a_batch_once(archive: Archive) -> None:
    half_done(archive)

    async def run() -> list[Record]:
        runner = BatchRunner(state_of(Keeper()), archive, 1)
        told = await asyncio.gather(runner.cancel("batch_1"), runner.cancel("batch_1"))
        await _all_ended(runner)
        return told

    first, second = asyncio.run(run())
    assert first["status"] == "cancelling"
    assert second["status"] in ("cancelling", "cancelled")
    assert archive.batches()[0]["status"] == "cancelled"
    assert len(archive.files("batch_output")) == 1


def test_a_name_that_is_half_a_character_is_kept(archive: Archive) -> None:
    text = written(Line(0, "\ud800", {}), 200, {"text": "\udfff"})
    archive.answer("batch_1", 0, False, text)
    (kept,) = archive.answers("batch_1", False)
    assert json.loads(kept.encode())["custom_id"] == "\ud800"


@pytest.mark.parametrize("priority", [-(2**63), 0, 5, 2**63 - 1])
def test_lines_are_behind_who_waits_whatever_priority_they_name(priority: int) -> None:
    keeper = Keeper()
    body = {"prompt": [1], "priority": priority}
    status, _ = asyncio.run(batch_endpoints.answer(state_of(keeper), "/v1/completions", body))
    assert status == 418
    (asked,) = keeper.priorities
    assert 2**62 <= asked < 2**63
    assert asked == 2**62 + min(max(priority, 0), 2**62 - 1)
