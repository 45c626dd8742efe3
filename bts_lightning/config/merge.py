"""Find experiments and lay them over each other: files left to right, then overrides."""

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bts_lightning.errors import ConfigError, did_you_mean

# The top level of every experiment, and the kind of thing that each section builds.
SECTIONS: dict[str, str | None] = {
    "net": "torch.nn.Module",
    "task": "lightning.pytorch.LightningModule",
    "data": "lightning.pytorch.LightningDataModule",
    "trainer": "lightning.pytorch.Trainer",
    "callbacks": "lightning.pytorch.callbacks.Callback",
    "logger": "lightning.pytorch.loggers.Logger",
    "evaluation": "bts_lightning.inference.protocol.Protocol",
    "seed": None,
}
OPTIONAL = ("callbacks", "logger", "evaluation", "seed")
# `smoke` asks with it for the sizes that the class of `net` gives as its smallest.
SMALL = "_small_"
# Sections that hold several named nodes; null takes one out again.
MAPPINGS = ("callbacks", "logger")

_HERE = Path(__file__).parents[1]
# A checkout keeps the experiments beside the package, a wheel inside it.
SEARCH = (Path("experiments"), _HERE / "experiments", _HERE.parent / "experiments")

_OVERRIDE = re.compile(r"-{0,2}([A-Za-z_]\w*(?:\.\w+)*)=(.*)", re.DOTALL)

Tree = dict[str, Any]


def merge(
    words: Sequence[str],
    search: Sequence[Path] = SEARCH,
    sizes: Callable[[Tree], Tree] = lambda tree: {},
) -> Tree:
    """Lay the files that the words name over each other, then the overrides among the words.

    Args:
        sizes: gives those of the smallest network, once a file has asked for it.
    """
    files: list[Path] = []
    overrides = [word for word in words if is_override(word)]
    for word in words:
        if word not in overrides:
            _collect(find_experiment(word, search), files, search)
    # All others are differences over the base, also a mix-in that was named before the experiment.
    files.sort(key=lambda file: file.name != "base.yaml")
    tree: Tree = {}
    for file in files:
        difference = _read(file)
        difference.pop("extends", None)
        tree = _merge(tree, difference)
    net = tree.get("net")
    if isinstance(net, dict) and net.pop(SMALL, False):
        tree = _merge(tree, {"net": _sizes_of(net, sizes(override(tree, overrides)))})
    return override(tree, overrides)


def _sizes_of(net: Tree, sizes: Tree) -> Tree:
    """Leave out what follows another key, as a patch that is that of the data."""
    return {name: size for name, size in sizes.items() if "${" not in str(net.get(name, ""))}


def override(tree: Tree, words: Sequence[str]) -> Tree:
    """Lay overrides over a tree; a null takes a callback or a logger out."""
    tree = _merge(tree, _overrides_tree(words, tree))
    for section in MAPPINGS:
        if isinstance(tree.get(section), dict):
            tree[section] = {k: v for k, v in tree[section].items() if v is not None}
    return tree


def is_override(word: str) -> bool:
    """Tell `net.width=8` and `--net.width=8` from the name of an experiment."""
    return not _is_yaml(word) and _OVERRIDE.fullmatch(word) is not None


def experiments(search: Sequence[Path] = SEARCH) -> list[str]:
    """List the names that `load` would find."""
    return sorted({file.stem for folder in search for file in folder.glob("*.yaml")})


def find_experiment(word: str, search: Sequence[Path] = SEARCH) -> Path:
    """Give an experiment's file: a path to a YAML file, or a name in one of the folders."""
    if _is_yaml(word) and Path(word).is_file():
        return Path(word)
    for folder in search:
        file = folder / (word if _is_yaml(word) else f"{word}.yaml")
        if file.is_file():
            return file
    if "=" in word:
        raise ConfigError(f"cannot read the override {word!r}; write key=value, as net.width=8")
    hint = did_you_mean(Path(word).stem, experiments(search))
    raise ConfigError(f"no experiment is named {word!r}; {hint}")


def _is_yaml(word: str) -> bool:
    return word.endswith((".yaml", ".yml"))


def _collect(
    file: Path, files: list[Path], search: Sequence[Path], trail: tuple[Path, ...] = ()
) -> None:
    """Append a file after those that it extends, each once."""
    file = file.resolve()
    if file in trail:
        raise ConfigError(f"{file}: extends itself, through {trail[-1].name}")
    if file in files:
        return
    extends = _read(file).get("extends") or []
    parents = [extends] if isinstance(extends, str) else extends
    if not isinstance(parents, list) or not all(isinstance(one, str) for one in parents):
        raise ConfigError(f"{file}: extends is {extends}; give a name, or a list of names")
    for parent in parents:
        _collect(_extended(file, parent, search), files, search, (*trail, file))
    files.append(file)


def _extended(file: Path, parent: str, search: Sequence[Path]) -> Path:
    beside = file.parent / parent
    if beside.is_file() and beside != file:
        return beside
    if beside == file:
        # A user's own base.yaml may extend the one that comes with the package.
        search = [folder for folder in search if folder.resolve() != file.parent]
    try:
        return find_experiment(parent, search)
    except ConfigError as error:
        raise ConfigError(f"{file}, under extends: {error}") from error


def _read(file: Path) -> Tree:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    # Thousands of digits are a ValueError, a bare number is an OSError of OmegaConf.
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError) as error:
        raise ConfigError(f"{file}: not readable as YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected a mapping with the keys {', '.join(SECTIONS)}")
    for name in tree:
        if name not in (*SECTIONS, "extends"):
            raise ConfigError(
                f"unknown key {str(name)!r} in {file}; {did_you_mean(str(name), SECTIONS)}"
            )
    return _python_none(tree)


def _python_none(value: Any) -> Any:
    """Read Python's None, which YAML takes for a word."""
    if isinstance(value, dict):
        return {name: _python_none(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_python_none(item) for item in value]
    return None if value == "None" else value


def _overrides_tree(words: Sequence[str], known: Tree) -> Tree:
    """Lay overrides into one tree: `net.width=8 net._target_=…` means the same in either order."""
    tree: Tree = {}
    for word in words:
        match = _OVERRIDE.fullmatch(word)
        if match is None:
            raise ConfigError(f"cannot read the override {word!r}; write key=value, as net.width=8")
        key, text = match.groups()
        top, *_ = *path, last = key.split(".")
        if top not in SECTIONS:
            raise ConfigError(f"unknown key '{key}'; {_nearest_key(key, known)}")
        try:
            value = OmegaConf.to_container(OmegaConf.create(f"it: {text}"), resolve=False)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
            raise ConfigError(
                f"cannot read the value in {word!r}; quote it as YAML does"
            ) from error
        # A place may be called so, and the rest would be another one.
        if re.search(r"(^|\s)#", text) and repr(value).count("#") < text.count("#"):
            raise ConfigError(
                f"in {word!r} YAML takes what follows # for a comment; quote the value: "
                f'{key}="…", within the quotes of your shell'
            )
        branch = tree
        for part in path:
            if not isinstance(branch.get(part), dict):
                branch[part] = {}
            branch = branch[part]
        assert isinstance(value, dict)
        branch[last] = _python_none(value["it"])
    return tree


def _nearest_key(key: str, known: Tree) -> str:
    top, dot, rest = key.partition(".")
    near = get_close_matches(top, SECTIONS, n=1)
    same_tail = [
        name for name in _leaves(known) if name.rpartition(".")[2] == key.rpartition(".")[2]
    ]
    if near:
        return f"did you mean {near[0]}{dot}{rest}?"
    return f"did you mean {same_tail[0]}?" if same_tail else did_you_mean(top, SECTIONS)


def _leaves(tree: Tree, key: str = "") -> list[str]:
    leaves = []
    for name, value in tree.items():
        inner = _leaves(value, join(key, name)) if isinstance(value, dict) else []
        leaves += inner or [join(key, name)]
    return leaves


def _merge(old: Tree, new: Tree, key: str = "") -> Tree:
    return old | {
        name: _lay_over(old.get(name), value, join(key, name)) for name, value in new.items()
    }


def _lay_over(old: Any, new: Any, key: str) -> Any:
    if not isinstance(new, dict):
        return new
    if isinstance(old, dict):
        has_other_target = (
            "_target_" in old and new.get("_target_", old["_target_"]) != old["_target_"]
        )
        return new if has_other_target else _merge(old, new, key)
    if isinstance(old, list) and all(str(index).isdigit() for index in new):
        return _lay_into_list(old, new, key)
    if isinstance(old, str) and "${" in old and "_target_" not in new:
        refers_to = old.strip("${}")
        raise ConfigError(f"{key} is {old}; set {refers_to}.{next(iter(new), '…')} instead")
    return new


def _lay_into_list(old: list[Any], new: Tree, key: str) -> list[Any]:
    merged = list(old)
    for index, value in new.items():
        if int(index) >= len(merged):
            raise ConfigError(f"{join(key, index)}: the list has {len(merged)} entries, from 0")
        merged[int(index)] = _lay_over(merged[int(index)], value, join(key, index))
    return merged


def join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
