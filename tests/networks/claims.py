"""Write what README.md claims of each network: `python -m tests.networks.claims README.md`.

What was compared follows from the golden files, which `test_golden.py` and `test_golden_train.py`
hold; who takes MedMAP, from the networks themselves.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from bts_lightning import config
from bts_lightning.config.merge import experiments
from bts_lightning.files import write_whole
from tests.networks.conformity import FOLDER, read
from tests.networks.parts import small

TRAINING = FOLDER.parent / "golden_train"
BEGIN, END = "<!-- claims -->\n", "<!-- end of claims -->\n"
# The words of each form of a network, and how the names of its files begin in the two folders.
FORMS = {
    "a2fseg": ("a2fseg_official", "a2fseg_w"),
    "a2fseg_decoder": ("a2fseg_decoder", ""),
    "a2fseg_base": ("a2fseg_base", ""),
    "a2fseg_post": ("", ""),
    "acn": ("acn", ""),
    "amoe_bts net.gam=official": ("amoe_official", "amoe"),
    "amoe_bts": ("amoe_gam", ""),
    "demoseg": ("demoseg", ""),
    "gmd": ("gmd_3", ""),
    "imfuse": ("imfuse", ""),
    "lckd": ("lckd", ""),
    "m2ftrans": ("m2ftrans", ""),
    "m2ftrans_v1": ("", ""),
    "m3ae": ("m3ae", ""),
    "metakd": ("metakd", ""),
    "mfi": ("mfi", ""),
    "mifpn net.leak=released": ("mifpn_official", ""),
    "mifpn": ("mifpn_4", ""),
    "mmformer net.legacy_token_layout=true": ("mmformer", "mmformer"),
    "mmformer": ("", ""),
    "rfnet": ("rfnet", "rfnet"),
    "robustseg": ("robustseg", ""),
    "shaspec": ("shaspec", ""),
    "smunet": ("smunet", ""),
    "uhved": ("uhved", "uhved"),
    "uhemis": ("", ""),
    "unet": ("", ""),
    "unimrseg": ("unimrseg", ""),
}
# What a test compares without a file: tests/networks/test_a2fseg_paper.py.
BY_TEST = {"a2fseg_paper": ("the paper's equations", "their loss and gradients")}
# Experiments of a network that stands there already: another width or another task.
SAME = {
    "demo": "a2fseg",
    "kd_rfnet": "rfnet",
    "kd_unet": "unet",
    "mmformer_medmap": "mmformer",
    "rfnet_medmap": "rfnet",
    "unet_small": "unet",
}


def table() -> Iterator[str]:
    """Give the lines of the table."""
    yield "| `bts train …` | outputs compared with | training compared with | takes MedMAP |"
    yield "|---|---|---|:-:|"
    found = {words: (compared(a), learned(a, b)) for words, (a, b) in FORMS.items()} | BY_TEST
    for words, (outputs, training) in sorted(found.items()):
        takes = "yes" if takes_medmap(words) else "no"
        yield f"| `{words}` | {outputs} | {training} | {takes} |"
    fragment = read(FOLDER / "medmap.npz")
    assert "align_loss_train" in fragment
    yield "| `… medmap` | official fragment | its penalty and gradients | |"
    assert "batch2/anatomy" in read(FOLDER / "parts" / "dcseg_terms.npz")
    yield "| `… dcseg` | nothing | its terms, in a third party's copy | |"


def compared(start: str) -> str:
    """Say whose outputs the files hold."""
    found = [read(path)["config"].item() for path in files(start)]
    if not found:
        return "nothing"
    if any(" port)" in config for config in found):
        return "a third party's port"
    if any("gam_intended_reference" in config or "SINGLE CHANGE" in config for config in found):
        return "official code with one change"
    return "official code"


def learned(outputs: str, training: str) -> str:
    """Say what of a training was compared."""
    held = {key for path in files(training, TRAINING) + files(outputs) for key in read(path)}
    if "grads" in held:
        return "official steps: losses, gradients, rate"
    if held & {"grad", "pc_coefs"}:
        return "losses and their gradients"
    return "losses" if "loss_values" in held else "nothing"


def files(start: str, folder: Path = FOLDER) -> list[Path]:
    """List the files whose names begin so; none where nothing is given."""
    found = sorted(folder.glob(f"{start}*.npz")) if start else []
    assert found or not start, start
    return found


def takes_medmap(words: str) -> bool:
    """Ask the network, without any weights, whether it keeps the modalities apart."""
    with torch.device("meta"):
        return bool(config.build(small(config.load(words.split()).net)).fused_levels)


def left_out() -> set[str]:
    """Name experiments with a network that the table does not tell of."""
    named = {words.split()[0] for words in FORMS | BY_TEST} | SAME.keys()
    nodes = {name: config.load([name]).get("net") or {} for name in experiments()}
    return {name for name, node in nodes.items() if "_target_" in node} - named


def write(page: str) -> str:
    """Put the table between the two marks of a page."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"the page has no {BEGIN.strip()} with {END.strip()} below it"
    return f"{before}{BEGIN}\n" + "\n".join(table()) + f"\n\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    write_whole(page, write(page.read_text(encoding="utf-8")))
