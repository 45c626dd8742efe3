"""Find NiiVue in the wheel `ipyniivue`, and give its class a name that a page can import."""

import re
from importlib.util import find_spec
from pathlib import Path

from bts_lightning.errors import UserError
from bts_lightning.files import content

EXTRA = "pip install 'bts_lightning[view]'"
# The widget makes one NiiVue and hides it. Its class has a short name, another in each release.
_CLASS = re.compile(rb'"Creating new Niivue instance"\);.{1,200}?=new (\w+)\(', re.DOTALL)


def niivue_module() -> bytes:
    """Read the widget's JavaScript module, and let it export the class `Niivue` as well.

    Nothing is changed in the installed file. The wheel is not imported: that takes a second.
    """
    file = bundle()
    module = content(file)
    found = _CLASS.search(module)
    if found is None:
        raise UserError(
            f"{file} makes its NiiVue in a way that this version does not know; install the "
            f"release that belongs to it: {EXTRA}"
        )
    return module + b"\nexport{%s as Niivue};\n" % found[1]


def bundle() -> Path:
    """Give the file of the module, or say what is missing."""
    spec = find_spec("ipyniivue")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / "static" / "widget.js"
        if file.is_file():
            return file
    raise UserError(f"NiiVue is not here, which draws the patient: {EXTRA}")
