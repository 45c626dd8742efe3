"""Imports point one way, so that a network or a data set can be added without touching the rest."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import bts_lightning

ROOT = Path(bts_lightning.__file__).parent
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(ROOT.rglob("*.py"))
    if file != ROOT / "__init__.py"
}

# From the ground up; a module imports from its own room and from the floors below.
FLOORS = (
    {"errors", "modalities", "chance", "files", "memory", "compiled"},
    {"metrics", "losses", "networks", "availability", "config", "loggers", "schedules"},
    {"inference", "data", "task", "report"},
    {"bench", "runs"},
    {"callbacks", "distillation", "preprocess", "study", "sweep", "viewer"},
    {"commands"},
    {"__main__"},
)

# Who may know what, where the floor alone would allow more.
KNOWS_ONLY = {
    "modalities": set(),
    "errors": set(),
    "config": {"errors", "config"},
    "availability": {"errors", "modalities", "chance", "files"},
    "networks": {"errors", "modalities", "networks"},
    "data": {"errors", "modalities", "chance", "files", "compiled", "availability", "data"},
}
MAY_NOT_NAME = {"report": {"torch", "lightning"}}


def room(module: str) -> str:
    return module.partition(".")[0]


def floor(module: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room(module) in rooms)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def named(module: str) -> frozenset[str]:
    """List what a module imports, inside functions and as `import_module("bts_lightning.…")` too.

    A string that is handed on as a `_target_` names a class, which is no import.
    """
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write imports from the top, as bts_lightning.x"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= literals(node)
    return frozenset(found)


def literals(call: ast.Call) -> set[str]:
    """List the modules that a call of `import_module` can name; `{…}` stands for any of a room."""
    name = call.args[0]
    if isinstance(name, ast.Constant):
        return {str(name.value)}
    parts = name.values if isinstance(name, ast.JoinedStr) else []
    start = parts[0].value if parts and isinstance(parts[0], ast.Constant) else ""
    prefix = str(start).removeprefix("bts_lightning.") if str(start).startswith("bts_") else None
    return {f"bts_lightning.{m}" for m in MODULES if prefix and m.startswith(prefix)}


@cache
def imports(module: str) -> frozenset[str]:
    """List the modules of ours that a module imports."""
    ours = {
        name.removeprefix("bts_lightning.") for name in named(module) if "bts_lightning." in name
    }
    known = {name if name in MODULES else name.rpartition(".")[0] for name in ours}
    return frozenset(known & set(MODULES) - {module})


def arrows() -> list[tuple[str, str]]:
    return [(module, other) for module in MODULES for other in sorted(imports(module))]


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
        if room(module) == package
        for name, parents in classes(module).items()
    }
    found = {base}
    while more := {name for name, parents in bases.items() if found & set(parents)} - found:
        found |= more
    return found - {base}


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


def none_of(wrong: list[str]) -> None:
    assert not wrong, "\n" + "\n".join(wrong)


def test_a_module_imports_from_its_room_or_the_floors_below():
    none_of(
        [
            f"{module} imports {other}"
            for module, other in arrows()
            if room(other) != room(module) and floor(other) >= floor(module)
        ]
    )


def test_the_ground_knows_little_of_ours():
    none_of(
        [
            f"{module} may not know {other}"
            for module, other in arrows()
            if room(other) not in KNOWS_ONLY.get(room(module), {room(other)})
        ]
    )


def test_pages_are_written_without_torch():
    none_of(
        [
            f"{module} imports {name}"
            for module in MODULES
            for name in sorted(named(module))
            if room(name) in MAY_NOT_NAME.get(room(module), ())
        ]
    )


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


def test_the_door_shows_few_rooms_and_no_name_repeats_its_room():
    flat = [module for module, file in MODULES.items() if file.parent == ROOT]
    assert len(flat) < 12, f"with __init__.py at most 12 files lie in the root: {flat}"
    none_of([m for m in MODULES if set(m.split(".")[:-1]) & set(re.split(r"[._]", m)[-1:])])


def test_every_package_that_is_imported_is_declared():
    # What another package brings along may be gone with its next version.
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [re.split(r"[<>=!~]", line)[0] for line in project["project"]["dependencies"]]
    # They may be missing; their packages have the names of their modules.
    optional = project["project"]["optional-dependencies"]
    extra = {re.split(r"[<>=]", line)[0] for kind in ("onnx", "view") for line in optional[kind]}
    nodes = [node for module in MODULES for node in ast.walk(tree(module))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    strangers = {name.partition(".")[0] for name in names} - {
        *sys.stdlib_module_names,
        "bts_lightning",
        *extra,
    }
    homes = packages_distributions()
    brought = {homes[name][0].lower().replace("_", "-") for name in strangers}
    assert brought - {name.lower().replace("_", "-") for name in wanted} == set()


def test_only_the_experiments_name_a_network():
    networks = derived("networks", "Backbone")
    none_of(
        [
            f"{module} imports {other}: the contract is all that others may know"
            for module, other in arrows()
            if room(other) == "networks" != room(module)
            if other not in ("networks", "networks.backbone", "networks.convolutions")
            if not other.startswith("networks.official.")
        ]
        + [
            f"{module} names {name}"
            for module in MODULES
            if room(module) != "networks"
            for name in sorted(names_in(module) & networks)
        ]
    )


def test_only_the_experiments_name_a_data_module():
    modules = derived("data", "LightningDataModule")
    none_of(
        [
            f"{module} names {name}"
            for module in MODULES
            if room(module) != "data"
            for name in sorted(names_in(module) & modules)
        ]
    )


# What may stand in one file alone, so that nobody writes it a second time.
WRITTEN_ONCE = {
    "fcntl.flock(": "files",
    "os.fsync(": "files",
    "<!doctype": "report.document",
    '"&lt;"': "report.document",
    "<svg ": "report.svg",
    "<text ": "report.svg",
}


def test_locks_writers_pages_and_pictures_are_written_once():
    holders = {
        words: [module for module, file in MODULES.items() if words in file.read_text("utf-8")]
        for words in WRITTEN_ONCE
    }
    assert holders == {words: [module] for words, module in WRITTEN_ONCE.items()}


def test_names_are_printed_by_the_screen_alone():
    # Bars without names, in a room that may not know the screen.
    bars = {"data.cache.prepare", "data.phantom.write"}
    none_of(
        [
            f"{module} names {name}"
            for module in MODULES
            for name in sorted(named(module) & {"rich.console.Console", "rich.markup.escape"})
            if module not in {"report.screen", *bars}
        ]
    )


def test_the_checks_above_see_what_they_look_for():
    assert derived("networks", "Backbone"), "no network was found"
    assert "config.merge" in imports("config.build")
    assert "bench.loader_peers" in imports("bench.loader"), "a literal of import_module"
    assert "bench.step" in imports("commands.bench"), "one that is put together"
    assert "Backbone" in names_in("task")
    assert floor("__main__") > floor("commands.train") > floor("task") > floor("losses")


def test_numba_is_asked_in_one_place() -> None:
    # Its own decorator fails where nothing can be cached, as in a container.
    wrong = [m for m in MODULES if m != "compiled" and any(n.startswith("numba") for n in named(m))]
    assert not wrong, "\n".join(wrong)
