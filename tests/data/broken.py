"""TorchIO transforms that fail in the ways a transform can fail."""

import os
import signal
import sys
import time
from typing import Any

import torchio


class Broken(torchio.Transform):  # type: ignore[misc]
    """Raise."""

    def apply_transform(self, subject: Any) -> Any:
        raise ValueError("boom\nand more")


class Leaver(torchio.Transform):  # type: ignore[misc]
    """Leave the interpreter."""

    def apply_transform(self, subject: Any) -> Any:
        sys.exit(3)


class Killer(torchio.Transform):  # type: ignore[misc]
    """Kill its own process, as the system does when memory runs out."""

    def apply_transform(self, subject: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class Sleeper(torchio.Transform):  # type: ignore[misc]
    """Never return."""

    def apply_transform(self, subject: Any) -> Any:
        time.sleep(3600)


class Thief(torchio.Transform):  # type: ignore[misc]
    """Take a modality away."""

    def apply_transform(self, subject: Any) -> Any:
        subject.pop("t2")
        return subject
