"""Read what a class takes from its source, so that a misspelt key is found before torch is loaded.

Only what the text says for certain counts: a class of that name, with a constructor of its own that
takes no `**kwargs`, or hands them to that of its only base. Of everything else `check` judges, by
the class itself.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

# Their source says what they take: Lightning's decorator of the trainer leaves the signature alone.
_TRANSPARENT = {"_defaults_from_env_vars"}


def arguments(target: str) -> list[str] | None:
    """List what the constructor of a class takes, following `from x import y`; None if unsure."""
    place, _, name = target.rpartition(".")
    for _ in range(4):  # lightning.Trainer lies two modules deeper
        file = _file(place)
        if file is None:
            return None
        # A module runs from top to bottom, so the last statement that binds the name wins.
        last = next(
            (n for n in reversed(ast.parse(file.read_bytes()).body) if _binds(n, name)), None
        )
        if isinstance(last, ast.ClassDef):
            return _constructor(last, place)
        if not isinstance(last, ast.ImportFrom) or last.level or last.names[0].name == "*":
            return None
        place = last.module or ""
        name = next(one.name for one in last.names if (one.asname or one.name) == name)
    return None


def _file(place: str) -> Path | None:
    """Find a module's file; only a top package is looked up, so nothing is imported."""
    top, *rest = place.split(".")
    spec = find_spec(top) if top else None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin)
    inside = file.parent.joinpath(*rest)
    tried = [inside.with_suffix(".py"), inside / "__init__.py"] if rest else [file]
    return next((one for one in tried if one.is_file()), None)


def _binds(node: ast.stmt, name: str) -> bool:
    """Say whether a statement at the top of a module may give something this name."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name == name
    return any(
        (isinstance(one, ast.alias) and (one.asname or one.name) in (name, "*"))
        or (isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store) and one.id == name)
        or (isinstance(one, ast.ClassDef | ast.FunctionDef) and one.name == name)
        for one in ast.walk(node)
    )


def _constructor(cls: ast.ClassDef, place: str) -> list[str] | None:
    found = [node for node in cls.body if _binds(node, "__init__")]
    if len(found) != 1 or not isinstance(found[0], ast.FunctionDef):
        return None
    decorators = [*cls.decorator_list, *cls.keywords, *found[0].decorator_list]
    if {ast.unparse(one) for one in decorators} - _TRANSPARENT:
        return None
    takes = found[0].args
    _, *others = [*takes.posonlyargs, *takes.args, *takes.kwonlyargs]
    own = [one.arg for one in others]
    if takes.kwarg is None:
        return own
    bases = [name for base in cls.bases if (name := ast.unparse(base)) != "ABC"]
    if len(bases) != 1 or not bases[0].isidentifier() or not handed(found[0], takes.kwarg.arg):
        return None
    inherited = arguments(f"{place}.{bases[0]}")
    return None if inherited is None else list(dict.fromkeys([*own, *inherited]))


def handed(constructor: ast.AST, keywords: str) -> list[ast.Call]:
    """List the calls by which a constructor gives its `**kwargs` to the next one."""
    return [
        call
        for call in ast.walk(constructor)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).startswith("super(")
        and any(one.arg is None and ast.unparse(one.value) == keywords for one in call.keywords)
    ]
