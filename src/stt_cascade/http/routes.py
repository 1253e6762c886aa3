"""The endpoints of both tiers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import Receive, Scope, Send

from stt_cascade.admission.deadline import HEADER as DEADLINE_HEADER
from stt_cascade.admission.deadline import from_header
from stt_cascade.admission.uploads import Body
from stt_cascade.answer import Answer, ErrorAnswer
from stt_cascade.errors import Draining, InvalidRequest, NotReady, Refusal
from stt_cascade.http.caller import counted_as
from stt_cascade.http.envelope import Abandoned, record_of
from stt_cascade.http.service import Service
from stt_cascade.http.upload import FIELDS, MAX_NAME, receive

router = APIRouter()
Result = TypeVar("Result")

_FIELD = {"type": "string"}
_UPLOAD: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["audio"],
                "properties": {
                    "audio": {"type": "string", "contentMediaType": "application/octet-stream"},
                    "language": {**_FIELD, "description": "ISO 639 code; empty or auto: detect"},
                    "prompt": {**_FIELD, "description": "text that biases spelling"},
                    "timestamps": {**_FIELD, "enum": ["none", "segment", "word"]},
                    "task": {**_FIELD, "enum": ["transcribe", "translate"]},
                },
                "additionalProperties": False,
            }
        }
    },
}
_DEADLINE: dict[str, Any] = {
    "name": DEADLINE_HEADER,
    "in": "header",
    "schema": {"type": "integer", "minimum": 1},
    "description": "how long the caller will wait; can shorten the service's own deadline",
}
# A key, or none where none is configured.
_MAY_NEED_A_KEY: dict[str, Any] = {"security": [{"bearer": []}, {}]}
# Not by its model: FastAPI would describe it as being of the 200's media type.
_ERROR: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}
_NO_KEY: dict[int | str, Any] = {
    401: {"description": "no key, or an unknown one", "content": {"application/json": _ERROR}}
}
_JSON: dict[str, Any] = {"content": {"application/json": {}}}
# Probes may use HEAD. The route that answers comes first (the lower decorator); described is the
# other, because FastAPI would give both methods of one route the same operation id.
_GET_OR_HEAD = ["GET", "HEAD"]


class _Followed(Response):
    """An answer that something follows, whether it could be sent or not."""

    def __init__(self, json: str, then: Callable[[], None]) -> None:
        super().__init__(json, media_type="application/json")
        self._then = then

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._then()


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.post(
    "/v1/transcribe",
    response_model=Answer,
    responses={
        status: {"model": ErrorAnswer}
        for status in sorted({cls.status for cls in Refusal.__subclasses__()})
    },
    openapi_extra={
        "requestBody": _UPLOAD,
        "parameters": [_DEADLINE],
        **_MAY_NEED_A_KEY,
    },
)
async def transcribe(request: Request) -> Response:
    """Turn one audio file into text."""
    service, record = service_of(request), record_of(request.scope)
    tier = service.tier
    record.caller = record.key_id or counted_as(record.client)
    service.limiter.take(record.caller)
    if service.draining:
        raise Draining("the service is stopping", retry_after=1)
    if service.watchdog.wedged:
        raise NotReady(
            "work on a clip does not end, or the engine is broken; the process must be restarted",
            retry_after=5,
        )
    _ = tier.loaded_engine  # a request that cannot be answered shall not send its body first
    _refuse_options_in(request.scope["query_string"])
    config = service.config
    deadline = from_header(request.headers.get(DEADLINE_HEADER), config.request_timeout_s)
    tier.check_room(deadline, record.caller)
    with service.uploads.place(deadline, record.caller) as body:
        record.enter("receive")
        try:
            upload = await receive(request, config.upload_limit, body)
            work = tier.answer(upload, record, deadline)
            answer = await _while_wanted(request, service.stop.over, body, work)
        finally:
            service.answered(record)
    record.enter("answer")
    return _Followed(answer.model_dump_json(), tier.after(upload, answer))


def _refuse_options_in(query: bytes) -> None:
    """Refuse options that would be ignored.

    Raises:
        InvalidRequest: there are some.
    """
    names = [name for name, _ in parse_qsl(query.decode("latin-1"))]
    if names:
        raise InvalidRequest(
            f"the option {names[0][:MAX_NAME]!r} is in the URL, where it has no effect: send it as "
            f"a form field; allowed are: {', '.join(FIELDS)}"
        )


async def _while_wanted(
    request: Request, over: asyncio.Event, body: Body, work: Coroutine[Any, Any, Result]
) -> Result:
    """Do the work, and stop as soon as the caller goes away or the service can't wait any longer.

    Raises:
        Abandoned: the caller did.
        Draining: the service could not.
        Refusal: the body had to give its place away.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    ending = asyncio.ensure_future(over.wait())
    tasks: tuple[asyncio.Future[Any], ...] = (working, gone, ending)
    try:
        await asyncio.wait((*tasks, body.refused), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if body.refused.done():
            raise body.refused.result()
        if ending.done():
            raise Draining("the service had to stop before this was done", retry_after=1)
        gone.result()  # an error of the server here does not mean that the client left
        raise Abandoned
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.get(
    "/v1/health",
    operation_id="health",
    responses={503: {"description": "it cannot recover by itself; restart it", **_JSON}},
)
@router.api_route("/v1/health", methods=_GET_OR_HEAD, include_in_schema=False)
async def health(request: Request) -> Response:
    """Liveness: whether the process works, or could by itself."""
    health = service_of(request).health()
    return JSONResponse(health, 200 if health["ok"] else 503)


@router.get(
    "/v1/ready",
    operation_id="ready",
    responses={503: {"description": "loading, stopping, stuck, or broken", **_JSON}},
)
@router.api_route("/v1/ready", methods=_GET_OR_HEAD, include_in_schema=False)
async def ready(request: Request) -> Response:
    """Readiness: whether a request would be taken now. The fallback's state does not count."""
    state = service_of(request).state
    return JSONResponse(
        {"ready": state == "ready", "state": state}, 200 if state == "ready" else 503
    )


@router.get("/v1/metrics", responses=_NO_KEY, openapi_extra=_MAY_NEED_A_KEY)
async def snapshot(request: Request) -> Response:
    """What an operator asks first, as JSON."""
    service = service_of(request)
    await service.machine.look()
    return JSONResponse(service.snapshot())


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=_NO_KEY,
    openapi_extra=_MAY_NEED_A_KEY,
)
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    service = service_of(request)
    await service.machine.look()
    text = generate_latest(service.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
