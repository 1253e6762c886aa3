"""The documentation names what there is: all of it, and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from fakes import FakeEngine
from faults.rows import ROWS
from pages import PAGES, ROOT, SRC, blocks, codes, mentions, named, prose, rows, shell_lines
from running import until
from stt_cascade.admission import uploads
from stt_cascade.answer import Answer, ErrorAnswer, Reason
from stt_cascade.cascade import disagreement, fallback_client, shadow
from stt_cascade.cascade.decision import GATES
from stt_cascade.cascade.fallback_answer import CAUSES
from stt_cascade.cli.app import app as stt
from stt_cascade.config import ENVELOPE_BYTES, ConfigError, FallbackConfig, PrimaryConfig
from stt_cascade.config_file import allowed, fields, load
from stt_cascade.errors import MethodNotAllowed, Overloaded, Refusal, Unauthorized
from stt_cascade.http import envelope, protocol, upload
from stt_cascade.http.app import create_app
from stt_cascade.http.auth import METRICS, PUBLIC
from stt_cascade.http.envelope import EXPOSED_HEADERS, Envelope, record_of
from stt_cascade.http.service import Service
from stt_cascade.http.upload import AUDIO_FIELDS, TEXT_FIELDS
from stt_cascade.record import Record
from stt_cascade.telemetry.gpu import Gpu, Reading
from stt_cascade.telemetry.metrics import TRANSCRIBE, Metrics
from stt_cascade.warning_codes import MESSAGES

# Names that look like settings, and belong to the environment of a shell.
ENVIRONMENT = {
    *("CONFIG_PATH", "STT_URL", "STT_API_KEY", "LD_LIBRARY_PATH"),
    # systemd's
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "EXTEND_TIMEOUT_USEC"),
    *("STT_SMOKE_URL", "STT_SMOKE_KEY"),
    *("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HTTPS_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("COMPOSE_PROFILES", "FALLBACK_GPU"),
    *("CUDA_CACHE_PATH", "CUDA_VISIBLE_DEVICES"),
}
# What a request may say besides the headers that the OpenAPI document describes.
REQUEST_HEADERS = {"Authorization", "X-Req-Id", "X-Forwarded-For", "traceparent", "tracestate"}
# A request part that an example gets wrong on purpose.
WRONG_PART = "lang"


# Settings


def settings_rows() -> list[list[str]]:
    headings = re.findall(r"^### .+$", prose(ROOT / "docs/settings.md"), re.MULTILINE)
    return [row for heading in headings for row in rows("docs/settings.md", heading)]


def shown_default(field: FieldInfo | None) -> str:
    if field is None:
        return "n/a"
    if field.is_required():
        return "required"
    if field.default is None or field.default == ():
        return "derived" if "default" in (field.description or "") else "none"
    if isinstance(field.default, bool):
        return "`on`" if field.default else "`off`"
    return f"`{field.default}`"


def test_every_setting_has_a_row_with_its_defaults_and_what_is_allowed() -> None:
    primary, fallback = fields(PrimaryConfig), fields(FallbackConfig)
    expected = {
        (
            f"`{name}`",
            shown_default(primary.get(name)),
            shown_default(fallback.get(name)),
            allowed(field),
        )
        for name, field in [*primary.items(), *fallback.items()]
    }
    assert {tuple(row[:4]) for row in settings_rows()} == expected
    assert len(settings_rows()) == len(expected)


def test_the_documented_mistakes_are_reported_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.env").write_text(blocks("docs/settings.md", "ini")[0])
    with pytest.raises(ConfigError) as caught:
        load(PrimaryConfig, Path("wrong.env"))
    assert str(caught.value) == blocks("docs/settings.md", "text")[0].strip()


def test_the_documented_command_gives_the_id_of_a_key() -> None:
    command, key_id = blocks("docs/settings.md", "console")[0].splitlines()
    key = command.split()[3]
    assert hashlib.sha256(key.encode()).hexdigest()[:8] == key_id


# The HTTP interface


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """A primary on a machine with a GPU, as far as it can tell."""

    class FakeGpu:
        def read(self) -> Reading:
            return Reading(1.0, 2.0, 3.0)

        def others(self) -> int:
            return 0

        def close(self) -> None:
            pass

    monkeypatch.setattr(Gpu, "open", lambda index: FakeGpu())
    config = load(PrimaryConfig, ROOT / "configs/cpu/stt_primary.env")
    on_gpu = config.model_copy(update={"device": "cuda", "vad": False})
    return create_app(on_gpu, FakeEngine(device="cuda"))


def service_of(app: FastAPI) -> Service:
    service: Service = app.state.service
    return service


def endpoints(app: FastAPI) -> set[str]:
    described = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if method != "head"
    }
    return described | {f"GET {app.openapi_url}"}


def test_every_endpoint_has_a_row_that_says_whether_it_needs_a_key(app: FastAPI) -> None:
    found = {codes(row[0])[0]: row[1] for row in rows("docs/api.md", "## Endpoints")}
    needs = dict.fromkeys(PUBLIC, "no") | dict.fromkeys(METRICS, "of `METRICS_KEYS`")
    assert found == {endpoint: needs.get(endpoint.split()[1], "yes") for endpoint in endpoints(app)}


def test_every_request_part_has_a_row() -> None:
    assert named("docs/api.md", "### Request parts")[: len(AUDIO_FIELDS)] == list(AUDIO_FIELDS)
    assert set(named("docs/api.md", "### Request parts")) == {*AUDIO_FIELDS, *TEXT_FIELDS}


def flattened(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kinds: list[Any] = [field.annotation, *get_args(field.annotation)]
        parts = [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, BaseModel)]
        if parts:
            listed = "" if parts[0] is field.annotation else "[]"
            yield from flattened(parts[0], f"{prefix}{name}{listed}.")
        else:
            yield prefix + name


def test_every_field_of_an_answer_has_a_row() -> None:
    assert named("docs/api.md", "### The answer") == list(flattened(Answer))


def test_every_cause_of_a_failed_fallback_has_a_row() -> None:
    assert named("docs/api.md", "### When the fallback fails") == list(CAUSES)


def test_every_warning_has_a_row_with_its_message() -> None:
    assert {row[0].strip("`"): row[1] for row in rows("docs/api.md", "### Warnings")} == MESSAGES


def test_every_reason_has_a_row() -> None:
    assert named("docs/api.md", "### Reasons") == list(get_args(Reason))


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_documented_answers_are_of_the_agreed_form(page: str) -> None:
    models = [ErrorAnswer if '"error"' in text else Answer for text in blocks(page, "json")]
    assert Answer in models
    for model, text in zip(models, blocks(page, "json"), strict=True):
        assert model.model_validate_json(text, extra="forbid")


def refused(refusal: Refusal) -> tuple[set[str], set[str]]:
    """Names of the headers and of the log line's fields, if all is known of a request."""
    known = {"str": "x", "float": 1.0, "bool": True, "tuple[str, ...]": ("weakest",)}
    sent: list[Message] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        for field in dataclasses.fields(Record):
            if getattr(record_of(scope), field.name) in (None, False, ()):
                setattr(record_of(scope), field.name, known[str(field.type).split(" |")[0]])
        raise refusal

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": TRANSCRIBE,
        "headers": [],
        "client": None,
    }
    wrapped = Envelope(inner, tier="primary", metrics=Metrics(10), log_text=True, upload_bytes=1)
    with capture_logs() as lines:
        asyncio.run(wrapped(scope, receive, send))
    return {name.decode() for name, _ in sent[0]["headers"]}, set(lines[0])


def test_every_header_has_a_row(app: FastAPI) -> None:
    found: set[str] = set()
    for refusal in (
        Overloaded("full", retry_after=1),
        MethodNotAllowed("POST only", allow="POST"),
        Unauthorized("no key"),
    ):
        found |= refused(refusal)[0]
    found |= {name.lower() for name in EXPOSED_HEADERS}
    documented = named("docs/api.md", "## Response headers")
    assert {name.lower() for name in documented} == found - {"content-length", "content-type"}
    parameters = app.openapi()["paths"][TRANSCRIBE]["post"]["parameters"]
    described = {each["name"] for each in parameters}
    assert set(named("docs/api.md", "### Request headers")) == REQUEST_HEADERS | described


def test_every_field_of_the_log_line_has_a_row() -> None:
    fields = refused(Overloaded("full"))[1] - {"event", "log_level"}
    documented = named("docs/api.md", "## Logs")
    assert documented[:4] == ["timestamp", "level", "logger", "message"]
    assert set(documented[4:]) == fields


def test_every_error_type_has_a_row_with_its_status() -> None:
    documented = [(row[0], row[1]) for row in rows("docs/api.md", "## Errors")]
    assert sorted(documented) == sorted(
        (str(kind.status), f"`{kind.type}`") for kind in Refusal.__subclasses__()
    )


def test_what_a_request_may_cost_is_as_documented() -> None:
    kib, idle = 1024, uvicorn.Config("x").timeout_keep_alive
    limits = [
        f"{protocol.PATIENCE_S:g} s, {protocol.MAX_HEADERS} headers, "
        f"{protocol.MAX_HEADER_BYTES // kib} KiB in all \\*",
        f"{protocol.PATIENCE_S:g} s, after an answer {idle} s \\*",
        f"{2 * protocol.PATIENCE_S:g} s \\*",
        f"{uploads.GRACE_S:g} s",
        f"{uploads.MIN_BYTES_PER_S / kib:g} KiB/s",
        f"{uploads.YIELDS_AFTER_S:g} s behind",
        f"`MAX_UPLOAD_MB` and {ENVELOPE_BYTES // kib} KiB",
        f"{upload.MAX_BOUNDARY} characters; {upload.MAX_PARTS}; {upload.MAX_PART_HEADERS}; "
        f"{upload.MAX_PART_HEADER_BYTES // kib} KiB",
        f"{protocol.MAX_HEADER_BYTES // kib} KiB more",
        f"{envelope.STRANGER_BYTES // kib} KiB",
    ]
    shown = [row[1] for row in rows("docs/api.md", "## What a request may cost")]
    assert len(shown) == len(limits)
    for cell, limit in zip(shown, limits, strict=True):
        assert limit in cell
    page = (ROOT / "docs/api.md").read_text()
    assert f"closes the connection {envelope.LAST_LOOK_S:g} s after the answer" in page
    assert f"thrown away for up to {envelope.LINGER_S:g} s" in page


def test_what_a_shadow_may_cost_is_as_documented() -> None:
    page = (ROOT / "docs/api.md").read_text()
    assert f"of at most {shadow.AT_ONCE}; on the fallback 0" in page
    assert f"first {disagreement.MAX_CHARACTERS:,} characters" in page
    assert f"less than {fallback_client.SPARED_S:g} s ago" in page
    assert f"`{shadow.PREFIX}`" in page
    settings = (ROOT / "docs/settings.md").read_text()
    assert f"Up to {shadow.AT_ONCE} clips are held besides `MAX_UPLOADS`" in settings


def test_every_field_of_the_snapshot_has_a_row(app: FastAPI) -> None:
    service = service_of(app)
    assert named("docs/api.md", "## The snapshot")[: len(service.health())] == list(
        service.health()
    )
    documented = [c for row in rows("docs/api.md", "## The snapshot") for c in codes(row[0])]
    assert documented == list(service.snapshot())
    counts = next(row[1] for row in rows("docs/api.md", "## The snapshot") if "`counts`" in row)
    assert codes(counts) == list(service.metrics.counts())


def test_every_metric_has_a_row_with_its_type_labels_and_values(app: FastAPI) -> None:
    service = service_of(app)

    async def collected() -> list[Any]:
        async with service.lifespan():
            await asyncio.to_thread(until, lambda: service.state == "ready", "the tier is ready")
            return list(service.metrics.registry.collect())

    families = asyncio.run(collected())
    documented = {codes(row[0])[0]: row for row in rows("docs/api.md", "## Prometheus metrics")}
    expected = {}
    for family in families:
        labels = [s.labels for s in family.samples if "le" not in s.labels]
        name = family.name + ("_total" if family.type == "counter" else "")
        expected[name] = (family.type, list(labels[0]))
        if len(labels[0]) == 1:  # the values are a closed set, and all of them are named
            assert set(codes(documented[name][3])) == {v for each in labels for v in each.values()}
    assert {name: (row[1], codes(row[2])) for name, row in documented.items()} == expected


# What is typed into a shell


def commands() -> dict[str, Any]:
    """The commands and groups of `stt`, by the words that call them."""
    found: dict[str, Any] = {}

    def walk(words: str, command: Any) -> None:
        found[words] = command
        for name, inner in getattr(command, "commands", {}).items():
            walk(f"{words} {name}", inner)

    walk("stt", typer.main.get_command(stt))
    return found


def test_every_command_has_a_row() -> None:
    calls = named("README.md", "## The `stt` command")
    assert sorted(re.sub(r"( [A-Z.]+)+$", "", call) for call in calls) == sorted(
        words for words, command in commands().items() if not hasattr(command, "commands")
    )


def test_every_documented_call_of_a_command_is_possible() -> None:
    known = commands()
    calls = [line for line in shell_lines() if line.startswith("stt ")]
    calls += [code for _, code in mentions() if code.startswith("stt ")]
    assert calls
    for call in calls:
        words = shlex.split(call)
        depth = max(n for n in range(1, len(words) + 1) if " ".join(words[:n]) in known)
        command = known[" ".join(words[:depth])]
        assert depth > 1, call
        if hasattr(command, "commands"):
            assert depth == len(words), call
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words[depth:] if word.startswith("--")} <= options, call


def test_every_make_target_has_a_row_and_no_other_is_named() -> None:
    text = (ROOT / "Makefile").read_text() + (ROOT / "deploy/docker.mk").read_text()
    targets = re.findall(r"^([a-z][\w-]*):(?!=)", text, re.MULTILINE)
    assert {f"make {target}" for target in targets} == set(
        named("CONTRIBUTING.md", "## The targets")
    )
    called = {code for _, code in mentions() if code.startswith("make ")}
    called |= {line for line in shell_lines() if line.startswith("make ")}
    assert {call.split()[1] for call in called} <= set(targets)


def test_every_row_of_make_faults_is_documented_in_order_and_in_its_own_words() -> None:
    assert named("docs/reliability.md", "## What was measured") == [row.name for row in ROWS]
    tried = [row[1] for row in rows("docs/reliability.md", "## What was measured")]
    assert tried == [row.tried for row in ROWS]


def test_the_documented_tiers_start_from_files_that_are_there() -> None:
    found = [re.match(r"CONFIG_PATH=(\S+) uvicorn (\w+):app ", line) for line in shell_lines()]
    started = [(match[1], match[2]) for match in found if match]
    assert {module for _, module in started} == {"stt_primary", "stt_fallback"}
    for path, module in started:
        assert load(PrimaryConfig if module == "stt_primary" else FallbackConfig, ROOT / path)
        assert (SRC / f"{module}.py").is_file()


def test_the_documented_requests_are_possible(app: FastAPI) -> None:
    # The commands of this page are run, by the tests that test_docs_deploy.py knows.
    pages = [page for page in PAGES if page != ROOT / "docs/deploy.md"]
    asked = [line for line in shell_lines(pages) if line.startswith("curl ")]
    # Of a runbook, to Prometheus and Alertmanager; its row asks them.
    lines = [line for line in asked if not re.search(r" http://127\.0\.0\.1:909[03]/", line)]
    assert any("samples/" in line for line in lines)
    keys = load(PrimaryConfig, ROOT / "configs/cpu/stt_primary.env").api_keys
    for line in lines:
        words = shlex.split(line)
        given = [words[n + 1] for n, word in enumerate(words) if word == "-F"]
        url = next(word for word in words if re.match(r"http://[\w.-]+:808[12]/", word))
        path = "/" + url.split("/", 3)[3]
        assert f"{'POST' if given else 'GET'} {path}" in endpoints(app), line
        for part in given:
            name, _, value = part.partition("=")
            assert name in (*AUDIO_FIELDS, *TEXT_FIELDS, WRONG_PART), line
            # A bare name is a clip of the reader's.
            assert value[:1] != "@" or "/" not in value or (ROOT / value[1:]).is_file(), line
        for key in re.findall(r"Bearer (\S+?)'", line):
            assert key in [known.get_secret_value() for known in keys], line


# Names and links anywhere in the pages


def test_no_page_names_what_does_not_exist(app: FastAPI) -> None:
    settings = {*fields(PrimaryConfig), *fields(FallbackConfig)}
    headers = {
        *named("docs/api.md", "## Response headers"),
        *named("docs/api.md", "### Request headers"),
    }
    metrics = {
        *named("docs/api.md", "## Prometheus metrics"),
        *named("docs/sdk.md", "### Prometheus"),
    }
    modules = {path.stem for path in SRC.iterdir()}
    paths = {endpoint.split()[1] for endpoint in endpoints(app)}
    for page, code in mentions():
        where = f"{page}: {code}"
        if match := re.fullmatch(r"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=.*)?", code):
            assert match[1] in settings | ENVIRONMENT, where
        elif match := re.fullmatch(r"(X-[\w-]+)(?:: .*)?", code):
            assert match[1] in headers, where
        elif match := re.fullmatch(r"(stt_\w+)(?:\{.*\}|:app|/)?", code):
            assert match[1] in metrics | modules, where
        elif match := re.fullmatch(r"(?:GET |POST )?(/(?:v1/)?\w+(?:\.json)?)", code):
            assert match[1] in paths, where
        elif re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/|\.py|\.md)", code):
            bases = (ROOT, SRC, SRC / "stt_cascade", SRC / "stt_sdk")
            assert any((base / code).exists() for base in bases), where


def test_every_room_has_a_row() -> None:
    for heading, package in (("## The rooms", "stt_cascade"), ("## The client", "stt_sdk")):
        rooms = {
            path.name + "/" * path.is_dir()
            for path in (SRC / package).iterdir()
            if not path.name.startswith("__") and path.name != "py.typed"
        }
        assert set(named("docs/architecture.md", heading)) == rooms


def test_every_promise_is_shown_by_tests_that_there_are() -> None:
    headings = re.findall(r"^### .+$", prose(ROOT / "docs/security.md"), re.MULTILINE)
    promises = [row for heading in headings for row in rows("docs/security.md", heading)]
    assert promises
    for promise, shown in promises:
        assert codes(shown), promise
        for test in codes(shown):
            file, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), test
    written = re.findall(r"\w+\.py::\w+", (ROOT / "docs/security.md").read_text())
    assert written == [test for _, shown in promises for test in codes(shown)]


def test_every_gate_has_a_row() -> None:
    assert named("docs/architecture.md", "## The decision") == list(GATES)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    links = [
        (page, link)
        for page in PAGES
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(page))
        if not link.startswith(("http://", "https://"))
    ]
    assert links
    for page, link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_reached_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    pages = [page.relative_to(ROOT) for page in PAGES if page.parent in (ROOT, ROOT / "docs")]
    assert [str(page) for page in pages if f"]({page})" not in text] == ["README.md"]


def test_every_page_that_the_code_refers_to_has_that_heading() -> None:
    found = [
        (path, *reference)
        for path in [*SRC.rglob("*.py"), *(ROOT / "configs").rglob("*.env")]
        for reference in re.findall(r'(docs/[\w/-]+\.md)(?:, "([^"]+)")?', path.read_text())
    ]
    assert found
    for path, page, heading in found:
        assert (ROOT / page).is_file(), path
        assert not heading or f"# {heading}\n" in (ROOT / page).read_text(), path


def test_every_page_script_and_lock_asks_for_the_python_that_the_project_requires() -> None:
    """A lock for an older one takes versions that nobody has tried."""
    project = (ROOT / "pyproject.toml").read_text()
    (floor,) = re.findall(r'^requires-python = ">=(3\.\d+)"$', project, re.MULTILINE)
    dotted = re.escape(floor)
    for file, count in {"README.md": 1, "CONTRIBUTING.md": 1, "docs/deploy.md": 3}.items():
        asked = re.findall(r"Python (3\.\d+) (?:or newer|and up)", (ROOT / file).read_text())
        assert asked == [floor] * len(asked), file
        assert len(asked) >= count, file
    makefile, script = (
        (ROOT / file).read_text() for file in ("Makefile", "deploy/systemd/install.sh")
    )
    assert f"--python-version {floor} " in makefile
    compared = ", ".join(floor.split("."))
    for text in (makefile, script):
        assert f"sys.version_info >= ({compared})" in text
        assert re.search(rf"Python {dotted}\b", text)
    for lock in ROOT.glob("requirements*.txt"):
        markers = re.findall(r"python_full_version < '(3\.\d+)'", lock.read_text())
        assert floor not in markers, lock.name


def test_nobody_is_told_to_install_a_name_that_others_may_have_on_an_index() -> None:
    """The project is on none: its extras come from a checkout."""
    for path in [*PAGES, *SRC.rglob("*.py")]:
        assert not re.search(r"pip install[^\n]{0,20}\bstt-cascade\b", path.read_text()), path
