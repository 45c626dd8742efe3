"""One file that holds trained runs: a zip of which every byte is checked before a part is used.

Its checksums find damage, not malice: whoever changes a package can write new ones. What keeps a
stranger's package harmless is what a part can be: tensors, and texts that are read as any run's.
"""

import atexit
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from bts_lightning.errors import UserError
from bts_lightning.files import NotAFileError, content, regular, unfinished, whole, write_whole

SUFFIX = ".bts"
MANIFEST, CARD, SCORES = "manifest.json", "README.md", "scores.json"
# Of each run; the hub that reads the card looks for weights under this name.
WEIGHTS, CONFIG, SEEN, PROVENANCE = (
    *("model.safetensors", "config.yaml", "seen.json", "provenance.json"),
)
_FORMAT = "bts package 1"
# Nothing else may stand in it, so no name leads out of the folder that it is unpacked into.
_OF_A_RUN = "|".join(map(re.escape, (WEIGHTS, CONFIG, SEEN, PROVENANCE, SCORES)))
_PART = re.compile(rf"{re.escape(CARD)}|{SCORES}|(runs/[1-9][0-9]?/)?({_OF_A_RUN})")
# Hex digits of a SHA-256 over all before them; to a zip they are its comment, which stands last.
_SEAL = 64
_MOST_MANIFEST = 2**20
_CHUNK = 2**20
_opened: dict[tuple[object, ...], Path] = {}


def is_package(place: Path) -> bool:
    """Say whether a name is that of a package."""
    return place.suffix == SUFFIX and not place.is_dir()


def place_of(number: int, count: int) -> str:
    """Name where the parts of a run stand; those of the only one stand at the top."""
    return "" if count == 1 else f"runs/{number}/"


def write_package(out: Path, facts: Mapping[str, Any], parts: Mapping[str, bytes]) -> None:
    """Write a package, whole or not at all.

    Args:
        facts: stand in the manifest beside the digests.
        parts: by name; the runs in order.
    """
    digests = {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
    manifest = json.dumps({"format": _FORMAT, **facts, "parts": digests}, indent=1).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=out.parent) as built, whole(out) as stream:
        with ZipFile(built, "w", ZIP_STORED) as archive:
            archive.comment = b"0" * _SEAL
            for name, part in {MANIFEST: manifest, **parts}.items():
                entry = ZipInfo(name)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, part)
        stream.write(_digest(built, into=stream))


def unpack(file: Path, folder: Path) -> None:
    """Unpack a package into a new folder, whole or not at all."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    if folder.exists():
        raise UserError(f"{folder} is there already; name a new folder behind {file}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = unfinished(folder)
    place.mkdir()
    try:
        _extract(file, place)
        place.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def open_package(file: Path) -> list[Path]:
    """Unpack a package where it lasts as long as this process; give its runs."""
    try:
        status = file.stat()
    except FileNotFoundError as error:
        raise UserError(f"there is no package {file}") from error
    key = (file.resolve(), status.st_mtime_ns, status.st_size)
    if key not in _opened:
        place = Path(mkdtemp(prefix="bts_"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        _extract(file, place)
        _opened[key] = place
    return runs_in(_opened[key])


def runs_in(folder: Path) -> list[Path]:
    """List the runs of an unpacked package in order."""
    parts = _read_manifest(folder)["parts"]
    return [folder / name.removesuffix(CONFIG) for name in parts if name.endswith(CONFIG)]


def is_unpacked(folder: Path) -> bool:
    """Say whether a folder is an unpacked package."""
    try:
        return bool(_read_manifest(folder))
    except (OSError, UserError):
        return False


def refuse_package(run: Path) -> None:
    """Refuse to write into a package: what it was opened in ends with the process."""
    file: object = run if is_package(run) else None
    for (opened, *_), place in _opened.items():
        if run.resolve().is_relative_to(place.resolve()):
            file = opened
    if file is not None:
        raise UserError(
            f"{file} is a package, in which nothing is written; `bts unpack {file} FOLDER` makes a "
            "folder of it that you can give here"
        )


def checked(file: Path) -> bytes:
    """Read a part of an unpacked package, which must be what was packed."""
    data = content(file)
    place = file.absolute()
    for root in (place.parent, place.parent.parent.parent):
        if is_unpacked(root):
            digest = _read_manifest(root)["parts"].get(place.relative_to(root).as_posix())
            if digest not in (None, hashlib.sha256(data).hexdigest()):
                raise UserError(f"{file} was changed after it was packed; unpack it again")
    return data


def _digest(stream: IO[bytes], into: IO[bytes] | None = None) -> bytes:
    """Give the seal of a stream, and write what it seals into another one."""
    left = stream.seek(0, 2) - _SEAL
    stream.seek(0)
    digest = hashlib.sha256()
    while left > 0 and (chunk := stream.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
        if into is not None:
            into.write(chunk)
    return digest.hexdigest().encode()


def _extract(file: Path, folder: Path) -> None:
    """Unpack what is whole, known by name and as it was packed; nothing of it has been used yet."""
    try:
        with regular(file) as stream:
            if _digest(stream) != stream.read(_SEAL):
                raise UserError(
                    f"{file} is no package, or not as it was written: its last {_SEAL} bytes are "
                    "no checksum of the others; fetch it again"
                )
            size = stream.tell()
            with ZipFile(stream) as archive:
                _extract_parts(archive, size, folder)
    except FileNotFoundError as error:
        raise UserError(f"there is no package {file}") from error
    except NotAFileError as error:
        raise UserError(f"{file}: {error.strerror}, so no package") from error
    # What `zipfile` raises for a zip that only looks like one is not limited to its own error.
    except (BadZipFile, ValueError, LookupError, EOFError, RuntimeError) as error:
        raise UserError(f"{file} is no package that `bts pack` has written ({error})") from error


def _extract_parts(archive: ZipFile, size: int, folder: Path) -> None:
    entries = {entry.filename: entry for entry in archive.infolist()}
    strangers = [name for name in entries if name != MANIFEST and not _PART.fullmatch(name)]
    if strangers:
        raise ValueError(f"{strangers[0]!r} is no part of one")
    # Stored bytes cannot grow; and what overlaps would be more than the file.
    is_plain = all(
        entry.compress_type == ZIP_STORED and entry.compress_size == entry.file_size
        for entry in entries.values()
    )
    held = sum(entry.file_size for entry in archive.infolist())
    if not is_plain or held > size or len(entries) != len(archive.infolist()):
        raise ValueError("it would unpack to more than it holds")
    if entries[MANIFEST].file_size > _MOST_MANIFEST:
        raise ValueError("its manifest is too long")
    write_whole(folder / MANIFEST, archive.read(MANIFEST))
    digests = _read_manifest(folder)["parts"]
    if digests.keys() | {MANIFEST} != entries.keys():
        raise ValueError("its manifest lists other parts than it holds")
    for name, digest in digests.items():
        found = hashlib.sha256()
        with archive.open(name) as part, whole(folder / name) as stream:
            while chunk := part.read(_CHUNK):
                found.update(chunk)
                stream.write(chunk)
        if found.hexdigest() != digest:
            raise ValueError(f"{name} is not what the manifest says")


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check a manifest."""
    file = folder / MANIFEST
    try:
        told = json.loads(content(file))
        form, parts = told["format"], dict(told["parts"])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"{file} is no manifest of a package ({error})") from error
    if form != _FORMAT:
        raise UserError(f"{file} is of a {form}, and this bts reads {_FORMAT}; update it")
    runs = [name.removesuffix(CONFIG) for name in parts if name.endswith(CONFIG)]
    if not runs or not all(_PART.fullmatch(name) for name in parts):
        raise UserError(f"{file} is no manifest of a package: it lists no run")
    if missing := [run for run in runs if f"{run}{WEIGHTS}" not in parts]:
        raise UserError(f"{file} lists {missing[0]}{CONFIG} without its {WEIGHTS}")
    return {**told, "parts": parts}
