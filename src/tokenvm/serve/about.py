"""What a server says of itself: its models, whether it is well, how busy it is; and tokens of texts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tokenvm import __version__
from tokenvm.serve.asking import ids_of_talk, ids_of_text
from tokenvm.serve.documented import DOCUMENTED
from tokenvm.serve.refusal import Refusal, unsupported
from tokenvm.serve.schema_text import DetokenizeBody, TokenizeBody
from tokenvm.serve.state import ServeState, state_of
from tokenvm.serve.wire import Json


def models_router() -> APIRouter:
    """Return the routes of models."""
    routes = APIRouter()

    @routes.get("/v1/models", summary="List the model", responses={**DOCUMENTED})
    async def list_models(request: Request) -> Response:
        return Json({"object": "list", "data": [_card(state_of(request))]})

    @routes.get("/v1/models/{name:path}", summary="Describe the model", responses={**DOCUMENTED})
    async def describe_model(name: str, request: Request) -> Response:
        state_of(request).refuse_model(name)
        return Json(_card(state_of(request)))

    return routes


def health_router() -> APIRouter:
    """Return the routes that watchers ask."""
    routes = APIRouter()

    @routes.get("/health", summary="200 while the server runs", responses={**DOCUMENTED})
    async def health() -> Response:
        return Json({"status": "ok"})

    @routes.get("/ready", summary="200 while an engine stands, else 503", responses={**DOCUMENTED})
    async def ready(request: Request) -> Response:
        if not state_of(request).keeper.ready:
            text = "the engine is being restarted: ask again"
            raise Refusal(text, status=503, code="engine_restarting", headers={"Retry-After": "1"})
        return Json({"status": "ready"})

    @routes.get("/version", summary="The version", responses={**DOCUMENTED})
    async def version() -> Response:
        return Json({"version": __version__})

    @routes.get("/load", summary="How many sequences run or wait", responses={**DOCUMENTED})
    async def load(request: Request) -> Response:
        return Json({"server_load": state_of(request).turnstile.inside})

    @routes.get("/v1/cache", summary="Tiers, moves and prefixes in numbers", responses={**DOCUMENTED})
    async def cache(request: Request) -> Response:
        return Json(await state_of(request).keeper.stats())

    @routes.post("/v1/cache/{hint}", summary="pin, prefetch, drop: not served", responses={**DOCUMENTED})
    async def hint(hint: str) -> Response:
        raise unsupported(hint, "this version takes no hints; prefixes are kept and brought by themselves")

    return routes


def tokens_router() -> APIRouter:
    """Return the routes from text to tokens and back."""
    routes = APIRouter()

    @routes.post("/tokenize", summary="A text's or a conversation's tokens", responses={**DOCUMENTED})
    async def tokenize(body: TokenizeBody, request: Request) -> Response:
        state = state_of(request)
        state.refuse_model(body.model)
        tokenizer = state.keeper.llm.get_tokenizer()
        if (body.prompt is None) == (body.messages is None):
            raise Refusal("send either prompt or messages", param="prompt")
        if body.prompt is None:
            ids = await ids_of_talk(tokenizer, body)
        else:
            ids = await ids_of_text(tokenizer, body.prompt, body.add_special_tokens)
        told: dict[str, Any] = {"count": len(ids), "max_model_len": _most(state), "tokens": ids}
        told["token_strs"] = [*map(tokenizer.token_text, ids)] if body.return_token_strs else None
        return Json(told)

    @routes.post("/detokenize", summary="A text of tokens", responses={**DOCUMENTED})
    async def detokenize(body: DetokenizeBody, request: Request) -> Response:
        state = state_of(request)
        state.refuse_model(body.model)
        return Json({"prompt": state.keeper.llm.get_tokenizer().decode(body.tokens, False)})

    return routes


def _most(state: ServeState) -> int:
    most: int = state.keeper.llm.plan["max_model_len"]
    return most


def _card(state: ServeState) -> dict[str, Any]:
    return {
        "id": state.settings.model,
        "object": "model",
        "created": state.created,
        "owned_by": "tokenvm",
        "root": state.settings.model,
        "parent": None,
        "max_model_len": _most(state),
        "permission": [],
    }
