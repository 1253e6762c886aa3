"""Dockerfiles, Compose, and every command that runs a container.

hadolint, dclint and Docker Compose itself read the files; the rest are rules that none of them has.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from config_loader import ConfigError, FallbackConfig, PrimaryConfig, load
from deploy import engines

TIERS = {"primary": 8081, "fallback": 8082}
PROFILES = ("cpu", "gpu", "monitoring")
COMPOSE = "docker-compose.yml"
TARGETS = "deploy/prometheus/targets/stt.yml"
# What is mounted and not in the repository.
MADE_THERE = ("models", "secrets")
# How long a tier may drain, in seconds; who stops it has to wait longer.
DRAIN_S = PrimaryConfig.model_fields["drain_timeout_s"].default
SHARED_FROM, SHARED_TO = "# Down to", "# This tier"
# Where somebody may tell to run a container.
TOLD = ("*.md", "docs/**/*.md", "Makefile", "deploy/**/*.mk", "docker/*")


def check(root: Path) -> Iterator[str]:
    """One line for each thing that is wrong with the images' files under `root`."""
    yield from dockerfiles(root)
    yield from compose(root)
    yield from run_commands(root)


def start(tier: str) -> list[str]:
    """How the image starts the tier."""
    return [
        *("uvicorn", f"stt_{tier}:app", "--host", "0.0.0.0", "--port", str(TIERS[tier])),  # noqa: S104  # inside a container
        *("--workers", "1", "--http", "stt_cascade.http.protocol:Protocol", "--no-proxy-headers"),
    ]


# Dockerfiles


def dockerfiles(root: Path) -> Iterator[str]:
    shared: dict[str, str] = {}
    for tier in TIERS:
        name = f"docker/Dockerfile.{tier}"
        text = (root / name).read_text()
        yield from hadolint(root, name)
        yield from (f"{name}: {what}" for what in _dockerfile(tier, text))
        shared[tier] = text.partition(SHARED_FROM)[2].partition(SHARED_TO)[0]
    if len(set(shared.values())) > 1 or not all(shared.values()):
        yield f"docker/: the Dockerfiles differ between {SHARED_FROM!r} and {SHARED_TO!r}"


def hadolint(root: Path, name: str) -> Iterator[str]:
    command: list[str | Path] = [engines.path("hadolint"), "--no-color", "--format", "json", name]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if not done.stdout:
        yield f"{name}: hadolint failed: {done.stderr.strip()}"
        return
    for each in json.loads(done.stdout):
        yield f"{name}:{each['line']}: {each['code']} {each['message']}"


def instructions(text: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, continuation lines joined, comments left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = lines.replace("\\\n", " ")
    split = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(word.upper(), " ".join(rest).strip()) for word, *rest in split]


def _dockerfile(tier: str, text: str) -> Iterator[str]:
    found = instructions(text)
    base = dict(each.partition("=")[::2] for word, each in found if word == "ARG").get("BASE", "")
    if ":" not in base or base.endswith(":latest"):
        yield f"its base {base or 'BASE'} has no version"
    for word, rest in found:
        if word == "RUN" and "pip" in rest:
            for command in re.findall(r"pip\b[^&|;]*? (?:install|wheel) [^&|;]*", rest):
                if "--require-hashes" not in command and "--no-index" not in command:
                    yield f"installs without hashes: {' '.join(command.split())}"
    last = max(n for n, (word, _) in enumerate(found) if word == "FROM")
    final = found[last:]
    told = dict(final)
    if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", told.get("USER", "")):
        yield "does not run as a user with a number of its own: USER"
    if told.get("STOPSIGNAL") != "SIGTERM":
        yield "is not stopped by SIGTERM: STOPSIGNAL"
    if _words(told.get("CMD", "")) != start(tier):
        yield f"CMD has not the form {json.dumps(start(tier))}"
    if any(word == "ENV" and "NVIDIA_VISIBLE_DEVICES" in rest for word, rest in found):
        yield "takes GPUs that nobody gave it: NVIDIA_VISIBLE_DEVICES"
    if "ENTRYPOINT" in told:
        yield "ENTRYPOINT puts something between the runtime and uvicorn"
    health = _words(told.get("HEALTHCHECK", "").partition("CMD ")[2])
    if not health or health[0] != "python" or health[-1] != str(TIERS[tier]):
        yield f"HEALTHCHECK does not ask port {TIERS[tier]} with the image's own Python"
    if any(
        word == "RUN" and re.search(r"\b(gcc|g\+\+|clang|build-essential)\b", rest)
        for word, rest in final
    ):
        yield "the final stage has a compiler"


def _words(exec_form: str) -> list[str]:
    """The words of an exec form; none of a shell form."""
    try:
        words = json.loads(exec_form)
    except ValueError:
        return []
    return words if isinstance(words, list) else []


# Compose


def compose(root: Path) -> Iterator[str]:
    yield from dclint(root)
    everywhere: set[str] = set()
    for profile in PROFILES:
        services: dict[str, Any] = {}
        yield from _resolved(root, profile, services)
        everywhere |= services.keys()
        for name, service in services.items():
            for what in _service(root, name, service, services):
                yield f"{COMPOSE}: {name}: {what}"
    scraped = re.findall(r'^- targets: \["([^":]+)', (root / TARGETS).read_text(), re.MULTILINE)
    for name in set(scraped) - everywhere:
        yield f"{TARGETS}: {name} is no service of {COMPOSE}"


def dclint(root: Path) -> Iterator[str]:
    rules = Path(__file__).with_name("dclint.yaml")
    command: list[str | Path] = ["node", engines.path("dclint"), COMPOSE, "-c", rules, "-f", "json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if not done.stdout.startswith("["):
        yield f"{COMPOSE}: dclint failed: {done.stderr.strip() or done.stdout.strip()}"
        return
    for file in json.loads(done.stdout):
        for each in file["messages"]:
            yield f"{COMPOSE}:{each['line']}: {each['rule']}: {each['message']}"


def _resolved(root: Path, profile: str, services: dict[str, Any]) -> Iterator[str]:
    """Fill in the services of a profile as Docker Compose understands them."""
    command: list[str | Path] = [
        engines.path("docker-compose"),
        "--project-directory",
        root,
        "--file",
        root / COMPOSE,
    ]
    command += ["--profile", profile, "config", "--format", "json"]
    # Not this shell's COMPOSE_PROFILES, nor its TAG.
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    for line in done.stderr.splitlines():
        yield f"{COMPOSE}: {profile}: {line}"
    if done.returncode == 0:
        services.update(json.loads(done.stdout)["services"])


def _service(
    root: Path, name: str, service: dict[str, Any], all_of_them: dict[str, Any]
) -> Iterator[str]:
    if service.get("restart") != "unless-stopped":
        yield "is not started again: restart: unless-stopped"
    if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get(
        "security_opt", []
    ):
        yield "keeps privileges: cap_drop: [ALL], security_opt: [no-new-privileges:true]"
    if ":" not in service["image"].rpartition("/")[2] or service["image"].endswith(":latest"):
        yield f"its image {service['image']} has no version"
    mounts = [each for each in service.get("volumes", []) if each["type"] == "bind"]
    for each in mounts:
        paths = (Path(each["source"]), Path(each["target"]))
        if any(path.is_file() or (path.suffix and not path.is_dir()) for path in paths):
            yield f"mounts a single file, {each['source']}, which stays the one that it was"
        ours = paths[0].is_relative_to(root) and paths[0].relative_to(root).parts[0]
        if ours and ours not in MADE_THERE and not paths[0].exists():
            yield f"mounts {paths[0]}, which is not there"
        if not each.get("read_only"):
            yield f"can write to {each['source']}"
    for key in service.get("environment") or {}:
        if re.search(r"PASSWORD|SECRET|TOKEN|KEY", key) and not key.endswith("_FILE"):
            yield f"has a secret in its environment: {key}"
    tier = next((tier for tier in TIERS if name.startswith(f"stt-{tier}")), None)
    if tier:
        yield from _tier(tier, service, mounts, all_of_them)


def _tier(
    tier: str, service: dict[str, Any], mounts: list[dict[str, Any]], all_of_them: dict[str, Any]
) -> Iterator[str]:
    if not service.get("read_only") or "/tmp" not in service.get("tmpfs", []):  # noqa: S108  # the container's
        yield "may write to its image: read_only: true, tmpfs: [/tmp]"
    if service.get("environment"):
        yield "has an environment, and settings come from the file alone"
    sources = {each["target"]: Path(each["source"]) for each in mounts}
    if "/config" not in sources:
        yield "has no settings in /config"
        return
    file = sources["/config"] / f"stt_{tier}.env"
    try:
        config = load(PrimaryConfig if tier == "primary" else FallbackConfig, file)
    except ConfigError as error:
        yield from str(error).splitlines()
        return
    if _seconds(service.get("stop_grace_period", "10s")) <= config.drain_timeout_s:
        yield f"is killed while it drains, for {config.drain_timeout_s:g} s: stop_grace_period"
    needed = [config.model_path, config.api_keys_file]
    if isinstance(config, PrimaryConfig):
        needed.append(config.fallback_api_key_file)
        yield from _reaches(config.fallback_url, service, all_of_them)
    for path in needed:
        if path is None:
            yield f"{file.name} has keys in it, or none: API_KEYS_FILE, FALLBACK_API_KEY_FILE"
        elif not any(path.is_relative_to(target) for target in sources):
            yield f"{file.name} names {path}, where nothing is mounted"


def _reaches(url: str, service: dict[str, Any], all_of_them: dict[str, Any]) -> Iterator[str]:
    known = {
        alias
        for name, other in all_of_them.items()
        for network, how in other["networks"].items()
        if network in service["networks"]
        for alias in [name, *((how or {}).get("aliases") or [])]
    }
    address = urlsplit(url)
    if address.hostname not in known or address.port != TIERS["fallback"]:
        yield f"asks for its fallback at {url}, where none is"


def _seconds(duration: str) -> float:
    """Of `1m30s`, as Compose prints durations."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    return sum(float(n) * units[unit] for n, unit in re.findall(r"([\d.]+)(ms|h|m|s)", duration))


# Commands


def run_commands(root: Path) -> Iterator[str]:
    for file in sorted(path for pattern in TOLD for path in root.glob(pattern)):
        text = file.read_text().replace("\\\n", " ")
        for name, value in re.findall(r"^(\w+) := (.*)$", text, re.MULTILINE):
            text = text.replace(f"$({name})", value)
        for line in text.splitlines():
            match = re.match(r"[\s$@#]*(?:docker|podman|\$\(DOCKER\)) run (.*)", line)
            if match and "--rm" not in match[1].split():
                for what in _run(match[1]):
                    yield f"{file.relative_to(root)}: docker run: {what}"


def _run(command: str) -> Iterator[str]:
    words = shlex.split(command.replace("`", " "), comments=True)
    given = dict(pairwise(words))
    if given.get("--restart") != "unless-stopped":
        yield "is not started again: --restart unless-stopped"
    if float(given.get("--stop-timeout", 0)) <= DRAIN_S:
        yield f"is killed while it drains, for {DRAIN_S:g} s: --stop-timeout"
    if "--read-only" not in words:
        yield "may write to its image: --read-only"
    for option, value in pairwise(words):
        if option in ("-v", "--volume") and Path(value.split(":")[1]).suffix:
            yield f"mounts a single file, {value}, which stays the one that it was"
