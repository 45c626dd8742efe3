"""Write docs/status.md, what is known of each network and what was reproduced of its paper.

    python -m tests.networks.status docs/status.md

What was compared is what README.md claims (`tests/networks/claims.py`). What was trained are the
files of docs/status/, which `bts record STUDY` writes.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bts_lightning.files import write_whole
from bts_lightning.modalities import REGIONS
from tests.networks.claims import BY_TEST, FORMS, compared, learned

RECORDS = Path(__file__).parents[2] / "docs" / "status"
# Of each network: the class, the words that train it as published, and where its program lies.
NETWORKS = {
    "A2FSeg": ("A2FSeg", "a2fseg", "Zirui0623/A2FSeg"),
    "ACN": ("ACN", "acn", "Wangyixinxin/ACN"),
    "AMoE-BTS": ("AMoEBTS", "amoe_bts net.gam=official", "jeongeunKim-art/AMoE-BTS"),
    "DC-Seg": ("DC-Seg", "dcseg", ""),
    "DeMoSeg": ("DeMoSeg", "demoseg", "kk42yy/DeMoSeg"),
    "GMD": ("GMD", "gmd", "HaoWang420/Gradient-guided-Modality-Decoupling"),
    "IM-Fuse": ("IMFuse", "imfuse", "AImageLab-zip/IM-Fuse"),
    # MetaKD trains the same class with another task: its records are of this network.
    "LCKD": ("LCKD", "lckd", "billhhh/LCKD"),
    "M2FTrans": ("M2FTrans", "m2ftrans", "Jun-Jie-Shi/M2FTrans"),
    "M3AE": ("M3AE", "m3ae", "ccarliu/m3ae"),
    "MedMAP": ("MedMAP", "medmap", ""),
    "MIFPN": ("MIFPN", "mifpn net.leak=released", "diaoyq121/MIFPN"),
    "mmFormer": ("MMFormer", "mmformer net.legacy_token_layout=true", "YaoZhang93/mmFormer"),
    "RFNet": ("RFNet", "rfnet", "dyh127/RFNet"),
    "RobustSeg": ("RobustSeg", "robustseg", "cchen-cc/Robust-Mseg"),
    "ShaSpec": ("ShaSpec", "shaspec", "billhhh/ShaSpec"),
    "SMU-Net": ("SMUNet", "smunet", "rezazad68/smunet"),
    "U-HeMIS": ("UHeMIS", "uhemis", "ReubenDo/U-HVED"),
    "U-HVED": ("UHVED", "uhved", "ReubenDo/U-HVED"),
    "U-Net": ("UNet", "unet", ""),
    "U-Net-MFI": ("MFI", "mfi", "zzc1909/UNET-MFI"),
    "UniMRSeg": ("UniMRSeg", "unimrseg", "Xiaoqi-Zhao-DLUT/UniMRSeg"),
}
# Read in the READMEs of these repositories; the files themselves lie on drives.
LINKED = {
    "DeMoSeg": "five models: BraTS 2020, 2018 (three lists), 2015",
    "M2FTrans": "one folder; it does not say of which version and data",
    "mmFormer": "one model (BraTS 2018, says its script)",
    "RFNet": "five checkpoints: BraTS 2020, 2018 (three lists), 2015",
    "U-HVED": "TensorFlow checkpoints, with other names",
}
HEAD = """# Status of reproduction

What is known of each network, and what was reached of its paper. This page is generated
(`python -m tests.networks.status docs/status.md`).

- **Forward, training**: what outputs and training steps were compared with. [Proofs](proofs.md) has
  the numbers.
- **Official weights**: what the README of the repository linked when it was read.
- **Imported**: who has evaluated these weights with this program.
- **Trained**: on which data and hardware, and the hours of its steps, without validations.
- **Paper**, **ours**, **gap**: mean Dice in percent over 15 subsets, for WT / TC / ET; ours with
  the standard deviation over seeds. The paper's numbers are of one source, with its split
  ([Published numbers](published.md)). A gap is only as good as the two splits are alike.

You can fill a row. Train with several seeds, then write the file, and send it as a file of
`docs/status/` or in an issue. It holds no path of your machine.

```bash
bts study rfnet --seeds 3 data.root=/data/BraTS2020
bts record studies/rfnet --by "a name or a link"
```

If several sources printed numbers of the method on these data, `bts record` lists them, and
`--source` chooses one. Of a run with official weights write `bts record RUN --official`.
"""


def page(records: Path = RECORDS) -> str:
    """Give the page."""
    filled: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(records.glob("*.json")):
        told = json.loads(file.read_text(encoding="utf-8"))
        filled.setdefault(told["network"], []).append(told)
    lines = [
        HEAD,
        "| network | forward | training | official weights | imported |",
        "|---|---|---|---|---|",
    ]
    official = [told for several in filled.values() for told in several if told["official_weights"]]
    lines += [f"| {' | '.join(cells)} |" for cells in known(official)]
    heads = "network | trained on | hardware, hours | paper | ours | gap | commit | by"
    lines += ["", f"| {heads} |", f"|{'---|' * 8}"]
    # A network that is not listed, as a guest's, comes last under its own name.
    names = {name: network for network, (name, _, _) in NETWORKS.items()}
    for name in [*names, *sorted(filled.keys() - names)]:
        network = names.get(name, name)
        empty = [network, "not trained", *["–"] * 6]
        trained = [told for told in filled.get(name, []) if not told["official_weights"]]
        for cells in [row(network, told) for told in trained] or [empty]:
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def known(official: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Give what does not depend on a training here."""
    forms = BY_TEST | {
        "dcseg": ("nothing", "its terms, in a third party's copy"),
        "medmap": ("official fragment", "its penalty and gradients"),
    }
    for network, (name, words, home) in NETWORKS.items():
        first, both = FORMS.get(words, ("", ""))[:1], FORMS.get(words, ("", ""))
        told = forms.get(words) or (compared(*first), learned(*both))
        link = f"[{home}](https://github.com/{home})" if home else ""
        weights = f"{link}: {LINKED[network]}" if network in LINKED else "none"
        rows = [row(network, told) for told in official if told["network"] == name]
        seen = [
            f"yes, by {by}, {data}: {ours}; paper {of}" for _, data, _, of, ours, *_, by in rows
        ]
        yield [network, *told, weights, "<br>".join(seen) or "–"]


def row(network: str, told: dict[str, Any]) -> list[str]:
    """Give what one record says."""
    data = f"{told['data']}, {told['split']}"
    if not told["official_weights"]:
        data += f": {len(told['seeds'])} seeds"
    data += f" × {told['folds']} folds" if told["folds"] else ""
    hours = told["hours_a_training"]
    machine = str(told["hardware"]) + (f", {hours} h" if hours is not None else "")
    ours = " / ".join(" ± ".join(f"{value:.2f}" for value in told["ours"][r]) for r in REGIONS)
    paper = gap = "–"
    if told["paper"]:
        paper = " / ".join(f"{told['paper'][r]:.2f}" for r in REGIONS)
        paper += f" ({told['paper']['source']}; {told['paper']['split']})"
        gap = " / ".join(f"{told['gap'][r]:+.2f}" for r in REGIONS)
    cells = [network, data, machine, paper, ours, gap, str(told["commit"])[:9], told["by"] or "–"]
    return [cell.replace("|", "/").replace("<", "&lt;") for cell in cells]


if __name__ == "__main__":
    write_whole(Path(sys.argv[1]), page())
