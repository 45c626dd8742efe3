"""Hide packages that a plain deep-learning image lacks.

Python imports this at its start where the folder is on PYTHONPATH, so children have it too.
"""

from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

ABSENT = {"torchio", "SimpleITK", "nilearn", "optuna", "wandb", "sklearn", "monai"}

_find = PathFinder.find_spec


def _hide(name: str, *args: Any) -> ModuleSpec | None:
    return None if name.partition(".")[0] in ABSENT else _find(name, *args)


# A finder that raised would end those who only ask whether there is such a package.
# A test that reads ABSENT imports this by another name, and its process keeps what it has.
if __name__ == "sitecustomize":
    # pytest keeps it in a class of its own, where a plain function would become a method.
    PathFinder.find_spec = partial(_hide)
