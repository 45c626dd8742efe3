"""Files that appear whole or not at all."""

import os
from pathlib import Path


def write_whole(file: Path, content: str | bytes) -> Path:
    """Write a file so that a reader finds the old one or the new one, never half of one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file
