"""What README and docs say holds: links lead somewhere, commands parse, marked blocks run.

A block ```bash run is executed, in one fresh folder a document, in the order of the page. A block
whose first line is a comment with a path, as `# experiments/mine.yaml: ...`, is that file there.
"""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bts_lightning import config
from bts_lightning.__main__ import VERBS, main, parse
from bts_lightning.config import targets
from bts_lightning.config.merge import find_experiment, is_override
from bts_lightning.networks.official.table import tables

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("", "bash", "sh", "console")
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# ([\w./-]+\.(?:py|yaml|csv|txt))(?::.*)?\n")
SEPARATORS = {"&&", "||", "|", ";", "&", ">", "do", "done"}
# What stands for something that the reader has: `RUN`, `runs/a2fseg/DATE`, `a2fseg.bts`, `…`.
PLACEHOLDER = re.compile(r"[A-Z_…]+|.*/.*|.*\.bts")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the words after it, and what it holds."""

    language: str
    marks: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        """Name the file that the block shows, if it shows one."""
        named = NAMED.match(self.text)
        return named[1] if named else None


def blocks(document: Path) -> list[Block]:
    found = []
    for info, text in FENCE.findall(document.read_text(encoding="utf-8")):
        language, *marks = info.split() or [""]
        found.append(Block(language, tuple(marks), text))
    return found


def commands(document: Path) -> Iterator[list[str]]:
    """Yield every `bts …` and `make …`, from blocks and from code within a sentence."""
    for block in blocks(document):
        if block.language in SHELL and not block.file:
            for line in block.text.replace("\\\n", " ").splitlines():
                yield from commands_of(line)
    prose = FENCE.sub("", document.read_text(encoding="utf-8"))
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose):
        if span.startswith(("bts ", "make ")):
            yield from commands_of(span)


def commands_of(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    words: list[str] | None = None
    for word in [*lexer, ";"]:
        if word in SEPARATORS:
            if words is not None:
                yield words
            words = None
        elif words is not None:
            words.append(word)
        elif word in ("bts", "bts_lightning", "make"):
            words = ["bts" if word == "bts_lightning" else word]


def with_commands(tool: str) -> list[tuple[str, str]]:
    return [
        (document.name, shlex.join(words))
        for document in DOCUMENTS
        for words in commands(document)
        if words[0] == tool and len(words) > 1
    ]


def write_files(document: Path, folder: Path) -> None:
    for block in blocks(document):
        if block.file:
            file = folder / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")


def check_bts(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Take a command apart as `bts` does, and stop before it works."""
    verb, *rest = words
    if verb == "show" or "--help" in rest:
        words = ["a2fseg" if word == "EXPERIMENT" else word for word in words]
        assert main(words) == 0, capsys.readouterr().err
        return
    if not rest and not verb.startswith("-"):
        assert verb in VERBS
        return
    # Words of a table's row stand for `{patch}`; the tests of the benchmarks put them in.
    if verb == "bench":
        words = [re.sub(r"\{.*\}", "1", word) for word in words]
    args = parse(words)
    names = [word for word in vars(args).get("words", ()) if not is_override(word)]
    if verb == "import":
        assert names[0] in (*tables(), "NETWORK")
        return
    if verb in ("study", "distill"):
        # A study takes its experiments as one word, with those of several words quoted inside;
        # what a chain trains is complete once it has written the words for it.
        for name in (n for word in names for part in shlex.split(word) for n in part.split()):
            if not is_override(name) and not PLACEHOLDER.fullmatch(name):
                find_experiment(name)
    elif "words" in args:
        check_experiment(args.words, has_strangers=bool(vars(args).get("allow")))


def check_experiment(words: list[str], *, has_strangers: bool) -> None:
    """Load and check what would be trained; a run stands for one of A2FSeg."""
    names = [word for word in words if not is_override(word)]
    if all(PLACEHOLDER.fullmatch(name) and not name.endswith(".yaml") for name in names):
        names = ["a2fseg"]
    names = [part for name in names for part in name.split("+")]
    # The package behind `--allow` is the reader's, and so is what `smoke` would ask it.
    if has_strangers:
        names = [name for name in names if name != "smoke"]
    loaded = config.load([*names, *(word for word in words if is_override(word))])
    if not has_strangers:
        config.check(loaded, supplied=config.SUPPLIED)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(document: Path) -> None:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    for link in (one or other for one, other in links):
        target, _, anchor = link.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = document.parent / target if target else document
        assert file.exists(), f"{document.name} links to {link}"
        if anchor:
            assert anchor in anchors(file), f"{document.name}: {target} has no heading #{anchor}"


def anchors(file: Path) -> list[str]:
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize(("document", "line"), with_commands("bts"))
def test_commands_parse(
    document: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # What an earlier command has allowed is forgotten.
    monkeypatch.setattr(targets, "_allowed_by_user", set())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_files(next(path for path in DOCUMENTS if path.name == document), tmp_path)
    check_bts(shlex.split(line)[1:], capsys)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("document", "line"), with_commands("make"))
def test_make_verbs_run_commands_that_parse(
    document: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("\\", "") for word in shlex.split(line)]
    done = subprocess.run(
        [words[0], "-n", "-C", str(ROOT), *words[1:]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    variables = [word.partition("=")[0] for word in words if re.match(r"[A-Z]+=", word)]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"\b{name}\b", makefile) for name in variables)
    for expanded in done.stdout.splitlines():
        if "/bin/bts " in expanded:
            check_bts(shlex.split(expanded)[1:], capsys)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("verb", "variable"),
    [("prepare", "DATA"), ("predict", "RUN"), ("compare", "RUN"), ("agent", "SWEEP")],
)
def test_a_make_verb_says_what_it_lacks(verb: str, variable: str) -> None:
    make = ["make", "-n", "-C", str(ROOT), verb, f"{variable}="]
    done = subprocess.run(make, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{variable} is empty; give it, as in: make {verb} {variable}=" in done.stderr
    assert "pip" not in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["train", "DATA=/a b"], ["train", "a2fseg", "data.root=/a b"]),
        (["prepare", "DATA=/a b"], ["prepare", "/a b"]),
        (
            ["evaluate", "EXP=rfnet  medmap net.width=8"],
            ["evaluate", "rfnet+medmap", "net.width=8"],
        ),
        (["evaluate", "EXP=rfnet net.width=8", "RUN=runs/a/1"], ["evaluate", "runs/a/1"]),
        (["sweep", "EXP=rfnet", "LOCAL=1"], ["sweep", "rfnet", "--local"]),
        (["sweep", "EXP=rfnet", "LOCAL=0"], ["sweep", "rfnet"]),
    ],
)
def test_make_passes_words_on(given: list[str], line: list[str]) -> None:
    make = ["make", "-n", "-C", str(ROOT), *given]
    done = subprocess.run(make, capture_output=True, text=True, check=True)
    (expanded,) = (line for line in done.stdout.splitlines() if "/bin/bts " in line)
    assert shlex.split(expanded)[1:] == line


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a clone")
def test_what_verbs_write_into_a_clone_is_no_change_of_its_code() -> None:
    # A run that finds changed files in the clone puts a plus behind its commit.
    ignored = subprocess.run(
        ["git", "-C", str(ROOT), "check-ignore", "--stdin"],
        input="runs/x\nsweeps/x\nstudies/x\ndistill/x\nscratch/x\n"
        "experiments/sweeps/x\nbts_lightning/distill/x\n",
        capture_output=True,
        text=True,
    )
    assert ignored.stdout.split() == ["runs/x", "sweeps/x", "studies/x", "distill/x", "scratch/x"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_python_in_the_docs_names_what_there_is(document: Path) -> None:
    for block in blocks(document):
        if block.language == "python":
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("bts_"):
                    module = importlib.import_module(str(node.module))
                    assert all(hasattr(module, alias.name) for alias in node.names)


RUNNABLE = [path for path in DOCUMENTS if any("run" in block.marks for block in blocks(path))]


@pytest.mark.slow
@pytest.mark.parametrize("document", RUNNABLE, ids=lambda path: path.stem)
def test_marked_blocks_run_in_order(document: Path, tmp_path: Path) -> None:
    if any((block.file or "").startswith("bts_lightning/") for block in blocks(document)):
        # A file of the package is added to a copy of it, which `bts` and Python then find first.
        shutil.copytree(ROOT / "bts_lightning", tmp_path / "bts_lightning")
        shutil.copytree(ROOT / "experiments", tmp_path / "bts_lightning" / "experiments")
    write_files(document, tmp_path)
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {
        "PATH": tools,
        # This clone's package, whichever one is installed.
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "WANDB_MODE": "disabled",
    }
    environment.pop("BTS_RUN", None)
    for block in blocks(document):
        if "run" not in block.marks:
            continue
        shell = (
            [sys.executable, "-"] if block.language == "python" else ["bash", "-euo", "pipefail"]
        )
        done = subprocess.run(
            shell,
            input=block.text,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.slow
def test_the_example_of_a_network_obeys_the_laws(tmp_path: Path) -> None:
    for name in ("bts_lightning", "experiments", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for block in blocks(ROOT / "docs" / "adding_a_network.md"):
        if block.file:
            file = tmp_path / block.file.replace("mynets", "bts_lightning/networks")
            # The line that names the file is the page's.
            text = block.text.partition("\n")[2].replace("mynets.", "bts_lightning.networks.")
            file.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "tests/networks",
            "tests/commands",
            "-k",
            "meanfuse",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout, done.stdout[-4000:]


@pytest.mark.parametrize("page", ["security", "reliability"])
def test_each_promise_is_held_by_a_test(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    promises = [line for line in text.splitlines() if line.startswith("| ") and "`test_" in line]
    assert len(promises) > 12
    tests = "".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name


def test_the_extractor_sees_what_it_looks_for() -> None:
    assert list(commands_of("WANDB_MODE=offline bts train a2fseg net.width=8  # small")) == [
        ["bts", "train", "a2fseg", "net.width=8"]
    ]
    assert list(commands_of("srun bts train a && make demo | head; echo bts")) == [
        ["bts", "train", "a"],
        ["make", "demo"],
        ["bts"],
    ]
    assert len(with_commands("bts")) > 20
    assert len(with_commands("make")) > 5
