"""What stands at the project's door agrees with what is inside."""

import ast
import re
import tomllib
from pathlib import Path

import yaml

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


def test_no_module_of_tests_imports_another() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {node.module}"
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and re.search(r"^tests\b.*\.test_\w+$", str(node.module))
    ]
    assert not wrong, "\n".join(wrong)
