"""`bts show`: the merged experiment, and every argument that its classes take."""

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bts_lightning.config import targets
from bts_lightning.config.build import SUPPLIED, as_yaml, check, load
from bts_lightning.config.merge import SECTIONS, experiments, find_experiment, is_override, join
from bts_lightning.config.schema import REQUIRED, describe, signature
from bts_lightning.errors import ConfigError, did_you_mean, visible

Row = tuple[str, str, str, str]
HEADER: Row = ("key", "value", "default", "type")
# A union of twelve strategies is not read anyway; the table should stay one line a key.
LONGEST = 60
PARAGRAPH = "\n\n"
# An experiment extends another one or says which network it trains; a mix-in does neither.
_IS_WHOLE = re.compile(r"^extends:|^net:[\s{]*(?:_target_|\?\?\?)", re.MULTILINE)


def show(words: Sequence[str], allow: Sequence[str] = ()) -> int:
    """Print an experiment, or of an experiment the arguments that some of its nodes take."""
    if not words:
        print_experiments()
        return 0
    keys = [word for word in words if _is_key(word)]
    config = load([word for word in words if word not in keys], allow=allow)
    if not keys:
        # First the YAML: whoever has made a mistake wants to see what came of it.
        print(as_yaml(config), end="", flush=True)
        check(config, supplied=SUPPLIED)
    for key in keys:
        node = _select(config, key)
        cls = _class_of(node, key)
        print(f"{key}: {cls.__module__}.{cls.__qualname__}")
        text = inspect.cleandoc(cls.__doc__ or "")
        # Ours are written to be read here, others' can fill pages.
        print(
            f"\n{text if cls.__module__.startswith(targets.OURS) else text.split(PARAGRAPH)[0]}\n"
        )
        print_table([HEADER, *_rows(node, key)])
    return 0


def print_keys(words: Sequence[str], allow: Sequence[str] = ()) -> None:
    """Print every key that an experiment has or could have."""
    tree = _plain(load(words, allow=allow))
    print_table([HEADER, *(row for name in tree for row in _all_rows(tree[name], str(name)))])


def print_experiments() -> None:
    """Print what can be trained and what can be mixed in, each with the first line of its file."""
    texts = {name: find_experiment(name).read_text(encoding="utf-8") for name in experiments()}
    whole = [name for name, text in texts.items() if _IS_WHOLE.search(text)]
    mixins = [name for name in texts if name not in whole]
    for title, names in (("experiments", whole), ("mix-ins, named behind an experiment", mixins)):
        print(f"{title}:" if names is whole else f"\n{title}:")
        print_table([(f"  {name}", _headline(texts[name])) for name in names])


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns; plain text, so that grep works on it."""
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _is_key(word: str) -> bool:
    return word.split(".")[0] in SECTIONS and not is_override(word) and word not in experiments()


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=False)


def _select(config: DictConfig, key: str) -> Any:
    """Give what stands at a dotted key, behind references too."""
    node: Any = config
    for name in key.split("."):
        known = [str(known) for known in node] if OmegaConf.is_dict(node) else []
        if name not in known or OmegaConf.is_missing(node, name):
            raise ConfigError(f"{key} has no value here; {did_you_mean(name, known)}")
        try:
            node = node[name]
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
    return _plain(node) if OmegaConf.is_config(node) else node


def _class_of(node: Any, key: str) -> type:
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{key} is {node}, not a class with arguments")
    return targets.find_class(node["_target_"], join(key, "_target_"))


def _all_rows(node: Any, key: str) -> Iterator[Row]:
    """Go through a node, and through what it holds."""
    if not isinstance(node, dict):
        yield (key, _short(node), "", "")
        return
    if "_target_" in node:
        yield (key, _short(node), "", "")
        yield from _rows(node, key)
    for name, inner in node.items():
        if isinstance(inner, dict):
            yield from _all_rows(inner, join(key, name))


def _rows(node: dict[str, Any], key: str) -> Iterator[Row]:
    takes = signature(_class_of(node, key))
    for name, argument in takes.arguments.items():
        default = "required" if argument.default is REQUIRED else _short(argument.default)
        if default == "required" and node.get("_partial_") and name not in node:
            default = "given later"
        value = _short(node[name]) if name in node else ""
        yield (join(key, name), value, default, _cut(describe(argument.annotation)))
    if takes.is_open:
        yield (join(key, "…"), "", "", "other keywords are handed on")


def _short(value: Any) -> str:
    if isinstance(value, dict) and "_target_" in value:
        return str(value["_target_"]).rpartition(".")[2]
    return _cut("null" if value is None else str(value))


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _headline(text: str) -> str:
    first = text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
