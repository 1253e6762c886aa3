"""Putting a tier together."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from stt_cascade.cascade.hearing import DecoderPools
from stt_cascade.config import ENVELOPE_BYTES, ConfigError, TierConfig
from stt_cascade.config_file import load
from stt_cascade.engine import cuda
from stt_cascade.engine.loading import load_whisper
from stt_cascade.engine.protocol import Engine
from stt_cascade.errors import MethodNotAllowed, NotFound
from stt_cascade.http.auth import Authentication
from stt_cascade.http.envelope import EXPOSED_HEADERS, Envelope, record_of
from stt_cascade.http.routes import router
from stt_cascade.http.service import Service
from stt_cascade.telemetry import logs
from stt_sdk import __version__
from stt_sdk._text import one_line

# Of sysexits.h: to start again would not help.
EX_CONFIG = 78


def app_from_file(tier: type[TierConfig]) -> FastAPI:
    """The ASGI app of a process: settings from the tier's file, log lines in their form.

    Raises:
        SystemExit: the settings cannot be used; stderr has one line per mistake.
    """
    try:
        logs.configure("json")  # until the settings are known: from here on no line can block
        logs.catch_strays()
        config = load(tier)
        logs.configure(config.log_format)
        return create_app(cuda.claim(config))
    except ConfigError as error:
        logs.last_words(str(error))
        # Not with the message as its code: the interpreter would wait for a stderr that is full.
        raise SystemExit(EX_CONFIG) from None


def create_app(
    config: TierConfig, engine: Engine | None = None, pools: DecoderPools | None = None
) -> FastAPI:
    """The ASGI app of the tier that the settings are of.

    Nothing is loaded and no socket opened before its lifespan begins.

    Args:
        engine: what recognises speech; by default Whisper as the settings say.
        pools: decoding processes to share with other apps; by default its own.

    Raises:
        ConfigError: a key file cannot be used, or a part that the settings need is not installed.
    """
    service = Service(config, load_whisper if engine is None else lambda _: engine, pools)
    app = FastAPI(
        title=f"stt-cascade, {config.tier}",
        version=__version__,
        lifespan=service.lifespan,
        redirect_slashes=False,
        # The interactive pages load scripts from elsewhere; a service on a closed network has none.
        docs_url=None,
        redoc_url=None,
        exception_handlers={HTTPException: _as_refusal},
    )
    app.state.service = service
    app.include_router(router)
    _describe_security(app)
    # The last one added is the outermost.
    secrets = service.secrets
    app.add_middleware(Authentication, ring=secrets.ring, metrics_ring=secrets.metrics_ring)
    app.add_middleware(
        Envelope,
        tier=config.tier,
        metrics=service.metrics,
        log_text=config.log_text,
        upload_bytes=config.upload_limit + ENVELOPE_BYTES,
        draining=lambda: service.draining,
        trusted_proxies=config.trusted_proxies,
        tracing=service.tracing,
    )
    if config.cors_origins:
        app.add_middleware(
            _Cors,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            # The last three: pages that are traced send them with every request.
            allow_headers=[
                "Authorization",
                "X-Req-Id",
                "X-Deadline-Ms",
                "traceparent",
                "tracestate",
                "baggage",
            ],
            expose_headers=EXPOSED_HEADERS,
        )
    return app


class _Cors(CORSMiddleware):
    """CORS, whose preflights are answered without a key and before the envelope."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if request_headers.get("Content-Length", "0") != "0" or (
            "Transfer-Encoding" in request_headers
        ):
            response.headers["Connection"] = "close"  # nobody would bound the body that it has
        return response


async def _as_refusal(request: Request, error: HTTPException) -> Response:
    """The framework's own 404 and 405, in the form of every other error."""
    # Not `request.url`, in which the Host header has a say.
    path = one_line(record_of(request.scope).path, 200)
    if error.status_code == 404:
        raise NotFound(f"there is nothing at {path}") from None
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        raise MethodNotAllowed(f"{path} takes {allow} only", allow=allow) from None
    raise error


def _describe_security(app: FastAPI) -> None:
    """Name the bearer scheme in the OpenAPI document; the check itself is a middleware."""
    plain = app.openapi

    def openapi() -> dict[str, object]:
        document = plain()
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["bearer"] = {"type": "http", "scheme": "bearer"}
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this as the way
