"""Runs batches beside interactive requests, a few lines at a time and behind everybody else.

Each answer is kept as soon as it is there; so a batch goes on after a restart where it was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from tokenvm.errors import StorageError
from tokenvm.serve import batch_endpoints
from tokenvm.serve.archive import Archive, Record, StoredFile
from tokenvm.serve.batch_lines import Line, check_lines, lines_of, not_run, written
from tokenvm.serve.state import ServeState

LOG: Final = logging.getLogger("tokenvm.serve")
OPEN: Final = ("validating", "in_progress", "finalizing", "cancelling")
"""Statuses in which something is still to be done."""


class BatchRunner:
    """One task for each batch that is open. One event loop uses it."""

    def __init__(self, state: ServeState, archive: Archive, at_once: int) -> None:
        self._state = state
        self._archive = archive
        self._room = asyncio.Semaphore(at_once)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._one_cancels = asyncio.Lock()

    def begin(self, record: Record) -> None:
        """Go on with a batch."""
        task = asyncio.create_task(self._run(record))
        self._tasks[record["id"]] = task
        task.add_done_callback(lambda _: self._tasks.pop(record["id"], None))

    async def cancel(self, id_: str) -> Record:
        """Stop a batch, unless it has ended meanwhile: what was answered stays. Return it as it is now."""
        async with self._one_cancels:
            record = await self._known(id_)
            if record["status"] not in OPEN or record["status"] == "cancelling":
                return record
            await self._stop(id_)
            record = await self._known(id_)
            if record["status"] in OPEN:
                record |= {"status": "cancelling", "cancelling_at": _now()}
                await asyncio.to_thread(self._archive.save, record)
                self.begin(dict(record))
            return record

    async def _known(self, id_: str) -> Record:
        record = await asyncio.to_thread(self._archive.batch, id_)
        assert record != "missing", "batches are not removed"
        return record

    async def close(self) -> None:
        """Stop; open batches go on at the next start."""
        for id_ in list(self._tasks):
            await self._stop(id_)

    async def _stop(self, id_: str) -> None:
        if task := self._tasks.get(id_):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, record: Record) -> None:
        try:
            await self._go_on(record)
        except (StorageError, OSError) as error:
            LOG.error("batch %s stopped until the next start: %s", record["id"], error)
        except Exception:
            LOG.exception("batch %s stopped until the next start", record["id"])

    async def _go_on(self, record: Record) -> None:
        file = await asyncio.to_thread(self._archive.file, record["input_file_id"])
        text = f"the input file {record['input_file_id']} was deleted"
        fault = {"code": "missing_file", "line": None, "message": text, "param": None}
        if record["status"] == "validating":
            if file == "missing":
                await self._fail(record, [fault])
                return
            if not await self._validate(record, file):
                return
        if record["status"] == "in_progress":
            expired = False
            if file == "missing":  # what was answered before is kept
                record["errors"] = {"object": "list", "data": [fault]}
            else:
                expired = await self._answer_all(record, file)
            await self._move(record, "finalizing")
            record["expired"] = expired
        await self._finish(record)

    async def _validate(self, record: Record, file: StoredFile) -> bool:
        path = self._archive.path(file)
        total, faults = await asyncio.to_thread(check_lines, path, record["endpoint"])
        if faults:
            await self._fail(record, faults)
            return False
        record["request_counts"]["total"] = total
        await self._move(record, "in_progress")
        return True

    async def _answer_all(self, record: Record, file: StoredFile) -> bool:
        """Answer every line that has no answer yet; return whether time ran out."""
        done = await asyncio.to_thread(self._archive.answered, record["id"])
        async with asyncio.TaskGroup() as group:
            for line in lines_of(self._archive.path(file)):
                if line.index in done:
                    continue
                if _now() >= record["expires_at"]:
                    await self._expire(record, line)
                    continue
                await self._room.acquire()
                group.create_task(self._answer(record, line))
        return bool(_now() >= record["expires_at"])

    async def _answer(self, record: Record, line: Line) -> None:
        try:
            status, body = await batch_endpoints.answer(self._state, record["endpoint"], line.body)
        finally:
            self._room.release()
        await self._keep(record, line, status != 200, written(line, status, body))

    async def _expire(self, record: Record, line: Line) -> None:
        text = f"this request was not run within {record['completion_window']}"
        await self._keep(record, line, True, not_run(line, "batch_expired", text))

    async def _keep(self, record: Record, line: Line, failed: bool, text: str) -> None:
        await asyncio.to_thread(self._archive.answer, record["id"], line.index, failed, text)

    async def _finish(self, record: Record) -> None:
        """Write the answers into files, then say that it is over."""
        for failed, key in ((False, "output_file_id"), (True, "error_file_id")):
            if record[key] is None:
                answers = await asyncio.to_thread(self._archive.answers, record["id"], failed)
                counted = "failed" if failed else "completed"
                record["request_counts"][counted] = len(answers)
                if answers:
                    made = await asyncio.to_thread(self._write, record, key, answers)
                    record[key] = made.id
        ended = "completed"
        if record["status"] == "cancelling":
            ended = "cancelled"
        elif record.pop("expired", False):
            ended = "expired"
        await self._move(record, ended)
        await asyncio.to_thread(self._archive.forget_answers, record["id"])

    def _write(self, record: Record, key: str, answers: list[str]) -> StoredFile:
        name = f"{record['id']}_{key.removesuffix('_file_id')}.jsonl"
        return self._archive.add((f"{text}\n".encode() for text in answers), name, "batch_output")

    async def _fail(self, record: Record, faults: list[dict[str, Any]]) -> None:
        record["errors"] = {"object": "list", "data": faults}
        await self._move(record, "failed")

    async def _move(self, record: Record, status: str) -> None:
        record |= {"status": status, f"{status}_at": _now()}
        await asyncio.to_thread(self._archive.save, record)


@asynccontextmanager
async def batches(state: ServeState) -> AsyncIterator[None]:
    """Keep files and batches for a server, as long as it runs; without a folder of its own it does without."""
    try:
        archive = await asyncio.to_thread(Archive, state.settings.folder)
    except StorageError as error:
        LOG.warning("no files and batches: %s", error)
        yield
        return
    crowd: int = state.keeper.llm.plan["crowd"]
    runner = BatchRunner(state, archive, crowd)
    state.archive, state.runner = archive, runner
    for record in reversed(await asyncio.to_thread(archive.batches)):
        if record["status"] in OPEN:
            runner.begin(record)
    try:
        yield
    finally:
        state.archive = state.runner = None
        await runner.close()
        await asyncio.to_thread(archive.close)


def _now() -> int:
    return int(time.time())
