"""`/v1/files`: what batches read and write."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse, Response

from tokenvm.serve.archive import Archive, StoredFile
from tokenvm.serve.documented import DOCUMENTED
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.state import archive_of
from tokenvm.serve.wire import Json

MAX_NAME: Final = 512
Limit = Annotated[int, Query(ge=1, le=10_000)]


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    _add_many(routes)
    _add_one(routes)
    return routes


def _add_many(routes: APIRouter) -> None:
    @routes.post("/v1/files", summary="Upload a file of requests", responses={**DOCUMENTED})
    async def create_file(
        request: Request,
        file: Annotated[UploadFile, File()],
        purpose: Annotated[Literal["batch"], Form()],
    ) -> Response:
        archive = archive_of(request)
        name = (file.filename or "upload.jsonl")[:MAX_NAME]
        made = await asyncio.to_thread(archive.add, file.file, name, purpose)
        return Json(made.as_dict())

    @routes.get("/v1/files", summary="List files", responses={**DOCUMENTED})
    async def list_files(
        request: Request,
        purpose: str | None = None,
        limit: Limit = 10_000,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        found = await asyncio.to_thread(archive_of(request).files, purpose)
        ordered = [one.as_dict() for one in (found if order == "desc" else reversed(found))]
        return Json(listed(ordered, limit, after))


def _add_one(routes: APIRouter) -> None:
    @routes.get("/v1/files/{file_id}", summary="Describe a file", responses={**DOCUMENTED})
    async def describe_file(file_id: str, request: Request) -> Response:
        return Json((await find(archive_of(request), file_id)).as_dict())

    @routes.delete("/v1/files/{file_id}", summary="Delete a file", responses={**DOCUMENTED})
    async def delete_file(file_id: str, request: Request) -> Response:
        archive = archive_of(request)
        file = await find(archive, file_id)
        await asyncio.to_thread(archive.remove, file)
        return Json({"id": file.id, "object": "file", "deleted": True})

    @routes.get("/v1/files/{file_id}/content", summary="Read a file", responses={**DOCUMENTED})
    async def read_file(file_id: str, request: Request) -> Response:
        archive = archive_of(request)
        path = archive.path(await find(archive, file_id))
        return FileResponse(path, media_type="application/octet-stream")


async def find(archive: Archive, file_id: str, param: str | None = None) -> StoredFile:
    """Return a file. Raises Refusal where there is none."""
    file = await asyncio.to_thread(archive.file, file_id)
    if file == "missing":
        text = f"there is no file {file_id!r:.80}: GET /v1/files lists what there is"
        raise Refusal(text, status=400 if param else 404, param=param, code="not_found")
    return file


def listed(found: list[dict[str, Any]], limit: int, after: str | None) -> dict[str, Any]:
    """Return a page of a list: what stands behind the id `after`, at most `limit`."""
    ids = [one["id"] for one in found]
    if after is not None:
        if after not in ids:
            raise Refusal(f"after={after!r:.80} is not in the list: send an id of it", param="after")
        found = found[ids.index(after) + 1 :]
    page = found[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(found) > limit,
    }
