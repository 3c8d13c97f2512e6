"""`/v1/batches`: many requests at once, answered when there is room."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from tokenvm.serve.archive import Archive, Record
from tokenvm.serve.batch_runner import OPEN
from tokenvm.serve.documented import DOCUMENTED
from tokenvm.serve.files import find, listed
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.schema import Body, Word
from tokenvm.serve.state import archive_of, runner_of
from tokenvm.serve.wire import Json

DAY_S: Final = 24 * 3600
_TIMES: Final = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class BatchBody(Body):
    """`POST /v1/batches`."""

    input_file_id: Word
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter()

    @routes.post("/v1/batches", summary="Begin a batch", responses={**DOCUMENTED})
    async def create_batch(body: BatchBody, request: Request) -> Response:
        archive, runner = archive_of(request), runner_of(request)
        file = await find(archive, body.input_file_id, param="input_file_id")
        if file.purpose != "batch":
            text = f"{file.id} was not uploaded with purpose=batch: upload one that was"
            raise Refusal(text, param="input_file_id")
        record = _record(body)
        await asyncio.to_thread(archive.save, record)
        told = Json(record)
        runner.begin(record)
        return told

    @routes.get("/v1/batches", summary="List batches", responses={**DOCUMENTED})
    async def list_batches(
        request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
    ) -> Response:
        return Json(listed(await asyncio.to_thread(archive_of(request).batches), limit, after))

    @routes.get("/v1/batches/{batch_id}", summary="Describe a batch", responses={**DOCUMENTED})
    async def describe_batch(batch_id: str, request: Request) -> Response:
        return Json(await _find(archive_of(request), batch_id))

    @routes.post("/v1/batches/{batch_id}/cancel", summary="Cancel a batch", responses={**DOCUMENTED})
    async def cancel_batch(batch_id: str, request: Request) -> Response:
        record = await _find(archive_of(request), batch_id)
        if record["status"] not in OPEN:
            raise Refusal(f"this batch is {record['status']}: there is nothing to cancel", code="not_open")
        if record["status"] != "cancelling":
            record = await runner_of(request).cancel(record["id"])
        return Json(record)

    return routes


async def _find(archive: Archive, batch_id: str) -> Record:
    record = await asyncio.to_thread(archive.batch, batch_id)
    if record == "missing":
        text = f"there is no batch {batch_id!r:.80}: GET /v1/batches lists what there is"
        raise Refusal(text, status=404, code="not_found")
    return record


def _record(body: BatchBody) -> Record:
    now = int(time.time())
    times: dict[str, Any] = {f"{name}_at": None for name in _TIMES}
    return {
        "id": f"batch_{uuid.uuid4().hex}",
        "object": "batch",
        "endpoint": body.endpoint,
        "errors": None,
        "input_file_id": body.input_file_id,
        "completion_window": body.completion_window,
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "expires_at": now + DAY_S,
        **times,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": body.metadata,
    }
