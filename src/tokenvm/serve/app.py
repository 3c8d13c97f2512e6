"""The application: every route, what surrounds them, and what becomes of errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from tokenvm import __version__
from tokenvm.errors import TokenVMError
from tokenvm.serve import about, batch_runner, batches, chat, completions, files, metrics, responses
from tokenvm.serve.gate import Gate
from tokenvm.serve.keeper import Keeper
from tokenvm.serve.meter import Meter
from tokenvm.serve.refusal import Refusal, refusal_of, refusal_of_body
from tokenvm.serve.settings import ServeSettings
from tokenvm.serve.state import ServeState
from tokenvm.serve.turnstile import Turnstile
from tokenvm.serve.wire import Json

ROUTERS: Final[tuple[Callable[[], APIRouter], ...]] = (
    chat.router,
    completions.router,
    responses.router,
    files.router,
    batches.router,
    about.models_router,
    about.health_router,
    about.tokens_router,
    metrics.router,
)
"""What makes the routes. Another group of endpoints is another entry."""

Service = Callable[[ServeState], AbstractAsyncContextManager[None]]

SERVICES: Final[tuple[Service, ...]] = (batch_runner.batches,)
"""What runs beside requests, from the server's start to its end."""


def create_app(keeper: Keeper, settings: ServeSettings) -> FastAPI:
    """Return the ASGI application of a server. `keeper` has begun; who made it ends it."""
    crowd: int = keeper.llm.plan["crowd"]
    meter = Meter()
    state = ServeState(keeper, settings, Turnstile(crowd + settings.max_waiting), meter)
    app = FastAPI(
        title="TokenVM",
        version=__version__,
        lifespan=_services,
        docs_url=None,
        redoc_url=None,
        strict_content_type=False,
    )
    app.state.serve = state
    app.state.metrics = metrics.Metrics(state)
    for make in ROUTERS:
        app.include_router(make())
    _answer_errors(app)
    app.add_middleware(Gate, settings=settings, meter=meter)
    if settings.cors_origins:  # outermost: browsers ask whether they may ask without a key
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return app


@asynccontextmanager
async def _services(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for service in SERVICES:
            await stack.enter_async_context(service(app.state.serve))
        yield


def _answer_errors(app: FastAPI) -> None:
    """Turn each kind of error into OpenAI's object."""

    def said(_request: Request, refusal: Refusal) -> Response:
        return Json(refusal.as_dict(), refusal.status, refusal.headers)

    def of_engine(request: Request, error: TokenVMError) -> Response:
        return said(request, refusal_of(error))

    def of_body(request: Request, error: RequestValidationError) -> Response:
        return said(request, refusal_of_body(error.errors()))

    def of_http(request: Request, error: HTTPException) -> Response:
        return said(request, _refusal_of_http(request, error))

    handlers: dict[type[Exception], Any] = {
        Refusal: said,
        TokenVMError: of_engine,
        RequestValidationError: of_body,
        HTTPException: of_http,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _refusal_of_http(request: Request, error: HTTPException) -> Refusal:
    status = HTTPStatus(error.status_code)
    texts = {
        HTTPStatus.NOT_FOUND: f"there is no {request.url.path} here: /openapi.json lists what there is",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{request.method} is not for {request.url.path}: /openapi.json says what is",
    }
    text = texts.get(status, str(error.detail))
    return Refusal(text, status=status, code=status.phrase.lower().replace(" ", "_"), headers=error.headers)
