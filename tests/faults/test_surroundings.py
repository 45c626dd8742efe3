"""Streams, locales, homes and rights as login nodes, containers and batch jobs have them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bts_lightning.__main__ import main
from bts_lightning.compiled import compiled
from bts_lightning.data.cache.prepare import build
from bts_lightning.errors import DataError
from bts_lightning.files import write_whole
from bts_lightning.loggers import has_credentials
from bts_lightning.report.facts import write_protocol
from tests.report.synthetic import protocol, rows

BTS = [sys.executable, "-m", "bts_lightning"]
LOCALES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def two_evaluations(folder: Path) -> list[str]:
    for name in ("a", "b"):
        write_whole(folder / name / "cases.csv", pd.DataFrame(rows(3)).to_csv(index=False))
        write_protocol(folder / name, protocol(experiment=name))
    return [str(folder / name) for name in ("a", "b")]


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("verb", ["prepare", "compare"])
def test_a_plain_locale_gets_plain_letters(
    phantom: Path, tmp_path: Path, locale: str, verb: str
) -> None:
    words = [str(phantom)] if verb == "prepare" else two_evaluations(tmp_path)
    done = subprocess.run(
        [*BTS, verb, *words], env=os.environ | LOCALES[locale], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    # A case that has all four modalities; the outlines of tables are of + and -.
    assert re.search(rb"\*  ?\*   ?\*  ?\*" if verb == "compare" else rb"\*\*\*\*", done.stdout)
    assert b"---" in done.stdout
    assert done.stdout.isascii() or locale == "latin-1"


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_fault(tmp_path: Path, closed: str) -> None:
    words = two_evaluations(tmp_path)
    command = f'"$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, "sh", *BTS, "compare", *words, "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    # What is printed does not end up in the files that are written.
    text = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert text.startswith("<!")


def test_where_nothing_can_be_kept_functions_are_compiled_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from numba.core import caching

    def locators_nowhere(*args: object) -> None:
        return None

    for name, kind in vars(caching).items():
        if isinstance(kind, type) and name.endswith("Locator"):
            monkeypatch.setattr(kind, "from_function", classmethod(locators_nowhere))

    def double(values: np.ndarray) -> np.ndarray:
        return values * 2

    np.testing.assert_array_equal(compiled(double)(np.arange(3)), [0, 2, 4])


def test_a_user_needs_no_home(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)

    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert not has_credentials()
    monkeypatch.setattr("os.access", lambda *args: False)
    with pytest.raises(DataError, match="it is not known where this home folder lies"):
        build(phantom, workers=1)
    build(phantom, tmp_path / "cache", workers=1)


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "a\x1b[2Jb", "..", "a/b"])
def test_a_name_that_is_none_is_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["evaluate", str(trained), "--name", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
