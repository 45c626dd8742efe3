"""Imports point one way, so that a network or a data set can be added without touching the rest."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import bts_lightning

ROOT = Path(bts_lightning.__file__).parent
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(ROOT.rglob("*.py"))
    if file != ROOT / "__init__.py"
}

# From the ground up; a module imports from its own layer or those below. What no layer names is a
# verb, or a part of one.
LAYERS = (
    ("errors", "modalities", "chance", "allocator"),
    ("targets", "schema", "merge", "config", "availability", "networks", "data"),
    ("losses", "metrics", "inference", "schedules"),
    ("task", "distillation", "callbacks", "checkpoints", "guards", "loggers", "runs", "report"),
)
VERBS = len(LAYERS)

# Who may know what of ours, where the layer alone would allow more.
KNOWS_ONLY = {
    "modalities": set(),
    "errors": set(),
    "targets": {"errors"},
    "schema": {"errors"},
    "merge": {"errors"},
    "config": {"errors", "targets", "schema", "merge"},
    "availability": {"errors", "modalities", "chance"},
    "networks": {"errors", "modalities", "networks"},
    "data": {"errors", "modalities", "chance", "availability", "data"},
}


def part(module: str) -> str:
    return module.partition(".")[0]


def layer(module: str) -> int:
    if module == "__main__":
        return VERBS + 1
    return next((i for i, names in enumerate(LAYERS) if part(module) in names), VERBS)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> frozenset[str]:
    """List the modules of ours that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write imports from the top, as bts_lightning.x"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.removeprefix("bts_lightning.") for name in found if "bts_lightning." in name}
    known = {name if name in MODULES else name.rpartition(".")[0] for name in ours}
    return frozenset(known & set(MODULES) - {module})


def classes(module: str) -> dict[str, list[str]]:
    """List the classes of a module with the names of their bases."""
    return {
        node.name: [ast.unparse(base).rpartition(".")[2] for base in node.bases]
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ClassDef)
    }


def derived(package: str, base: str) -> set[str]:
    """List the classes of a package that derive from a base, through any number of others."""
    bases = {
        name: parents
        for module in MODULES
        if part(module) == package
        for name, parents in classes(module).items()
    }
    found = {base}
    while more := {name for name, parents in bases.items() if found & set(parents)} - found:
        found |= more
    return found - {base}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_layer_or_below(module):
    above = {other for other in imports(module) if layer(other) > layer(module)}
    assert not above, f"{module} imports upwards: {sorted(above)}"


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) in KNOWS_ONLY])
def test_the_ground_knows_little_of_ours(module):
    strangers = {other for other in imports(module) if part(other) not in KNOWS_ONLY[part(module)]}
    assert not strangers, f"{module} may not know {sorted(strangers)}"


def test_no_module_imports_itself_through_others():
    finished: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        if module not in finished:
            for other in sorted(imports(module)):
                visit(other, (*trail, module))
            finished.add(module)

    for module in MODULES:
        visit(module, ())


def test_every_package_that_is_imported_is_declared():
    # What another package brings along may be gone with its next version.
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [re.split(r"[<>=!~]", line)[0] for line in project["project"]["dependencies"]]
    nodes = [node for module in MODULES for node in ast.walk(tree(module))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    strangers = {name.partition(".")[0] for name in names} - {
        *sys.stdlib_module_names,
        "bts_lightning",
    }
    homes = packages_distributions()
    brought = {homes[name][0].lower().replace("_", "-") for name in strangers}
    assert brought - {name.lower().replace("_", "-") for name in wanted} == set()


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) != "networks"])
def test_only_the_experiments_name_a_network(module):
    others = {other for other in imports(module) if part(other) == "networks"}
    assert others <= {"networks", "networks.backbone"}, "the contract is all that others may know"
    assert not names_in(module) & derived("networks", "Backbone")


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) != "data"])
def test_only_the_experiments_name_a_data_module(module):
    assert not names_in(module) & derived("data", "LightningDataModule")


def names_in(module: str) -> set[str]:
    """List every identifier, and the last part of every string that is a `_target_`."""
    nodes = list(ast.walk(tree(module)))
    words = {node.value for node in nodes if isinstance(node, ast.Constant)}
    targets = {w for w in words if isinstance(w, str) and w.startswith("bts_lightning.")}
    return (
        {node.id for node in nodes if isinstance(node, ast.Name)}
        | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        | {node.name for node in nodes if isinstance(node, ast.alias)}
        | {target.rpartition(".")[2] for target in targets}
    )


def test_the_checks_above_see_what_they_look_for():
    assert derived("networks", "Backbone"), "no network was found"
    assert "merge" in imports("config")
    assert "Backbone" in names_in("task")
    assert layer("__main__") > layer("train") > layer("task") > layer("losses") > layer("data")
