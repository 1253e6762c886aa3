"""Files that come in parts: cut, and joined again by their digests. It needs nothing but Python.

python3 tests/gpu_check/parts.py FOLDER PARTS    cuts the files of a folder into PARTS
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

INDEX = "parts.json"
PART_BYTES = 60 * 1024 * 1024
CHUNK = 1024 * 1024


def cut(folder: Path, into: Path, size: int = PART_BYTES) -> int:
    """Cut a folder's files into parts of at most `size` bytes, with an index; how many they are."""
    into.mkdir(parents=True, exist_ok=True)
    index = []
    total = 0
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        names: list[str] = []
        whole = hashlib.sha256()
        with file.open("rb") as stream:
            while (data := stream.read(size)) or not names:
                whole.update(data)
                names.append(f"part-{total:04}")
                (into / names[-1]).write_bytes(data)
                total += 1
        name = file.relative_to(folder).as_posix()
        index.append({"file": name, "sha256": whole.hexdigest(), "parts": names})
    (into / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return total


def join(parts: Path, into: Path) -> None:
    """Join the files again; one that is there already, whole, stays.

    Raises:
        ValueError: a part is missing, or a file is not what it was.
        OSError: something cannot be read or written.
    """
    index = json.loads((parts / INDEX).read_text(encoding="utf-8"))
    needed = {part for entry in index for part in entry["parts"]}
    missing = sorted(part for part in needed if not (parts / part).is_file())
    for entry in index:
        target = into / entry["file"]
        if not target.resolve().is_relative_to(into.resolve()):
            raise ValueError(f"{parts / INDEX}: {entry['file']} lies outside the folder")
        if target.is_file() and _sha256(target) == entry["sha256"]:
            continue
        if lacking := [part for part in entry["parts"] if part in missing]:
            raise ValueError(f"{parts} has no {', '.join(lacking)} of {entry['file']}: bring them")
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_name(f"{target.name}.half")
        with half.open("wb") as stream:
            for part in entry["parts"]:
                stream.write((parts / part).read_bytes())
        if _sha256(half) != entry["sha256"]:
            half.unlink()
            raise ValueError(f"{entry['file']}: the joined parts have another SHA-256: bring again")
        half.replace(target)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(f"{cut(Path(sys.argv[1]), Path(sys.argv[2]))} parts")  # noqa: T201
