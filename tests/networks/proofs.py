"""Write the page of proofs from what the two commands printed.

    python -m tests.networks.golden | tee forward.txt
    python -m tests.networks.golden_train | tee training.txt
    python -m tests.networks.proofs forward.txt training.txt > docs/proofs.md

Numbers are the worst of all files and masks of a network. What no file can show stands in `JUDGED`,
in words; the tests that are named there hold it.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

FORWARD = re.compile(
    r"(\S+) +\S+ +(\S+) (\S+) \(limit \S+\), worst of \d+: \S.* (\S+) (ok|FAILED)$"
)
TRAINING = re.compile(r"(\S+) +(.+?) +(\S+) \(limit \S+\) (ok|FAILED)$")
# By the first word of a file's name; a network without a training file has outputs only.
NETWORKS = {
    "a2fseg": "A2FSeg",
    "acn": "ACN",
    "amoe": "AMoE-BTS",
    "dcseg": "DC-Seg",
    "demoseg": "DeMoSeg",
    "gmd": "GMD",
    "imfuse": "IM-Fuse",
    "lckd": "LCKD",
    "m2ftrans": "M2FTrans",
    "m3ae": "M3AE",
    "medmap": "MedMAP",
    "metakd": "MetaKD",
    "mfi": "U-Net-MFI",
    "mifpn": "MIFPN",
    "mmformer": "mmFormer",
    "rfnet": "RFNet",
    "shaspec": "ShaSpec",
    "robustseg": "RobustSeg",
    "smunet": "SMU-Net",
    "uhved": "U-HVED",
    "unimrseg": "UniMRSeg",
}
KINDS = ("loss", "gradient", "later gradients", "losses", "rate")
# Draws of subsets, augmentation, inference: `proven`, or what differs.
JUDGED = {
    "A2FSeg": (
        "proven; a subset for each sample, not for the batch of one",
        "differs: linear where nnU-Net is cubic; the box around a patch is as large as needed",
        "proven; differs: z-scores of own brains (`data.normalisation=legacy_nnunet`)",
    ),
    "ACN": (
        "not comparable: one subset a network",
        "differs: flips alone, on a z-score in place of 0…1",
        "differs: whole cases without dropout, not one centre crop with it",
    ),
    "AMoE-BTS": (
        "differs: it always has all four (`availability.Complete`)",
        "proven in what is drawn; differs: background stays zero",
        "proven; z-scores of the case, not of the crop",
    ),
    "DC-Seg": (
        "not comparable: terms around RFNet, of a third party's copy",
        "as RFNet",
        "as RFNet, in windows of 112³",
    ),
    "DeMoSeg": ("proven", "as A2FSeg", "differs: small ET kept (`evaluation.et_minimum=500`)"),
    "GMD": (
        "proven: none is drawn, all 15 subsets teach in each step, with gradient surgery",
        "flips as published, on z-scores in place of 0…1",
        "differs: windows over whole cases, not one centre crop",
    ),
    "IM-Fuse": ("proven", "as RFNet", "proven; differs: ET below 500 voxels is kept"),
    "LCKD": (
        "proven; after 80,000 complete steps; a subset for each sample, not for the batch",
        "differs: no elastic deformation, no added brightness; z-scores without clipping",
        "windows as published; differs: parts that are small or low are not removed",
    ),
    "M2FTrans": (
        "proven for v1; differs: v2 draws a subset for the batch, ours for each sample",
        "v1 as RFNet; v2 flips alone, as published",
        "v1 as RFNet; differs: v2 scores one centre crop of an image scaled to 0…1",
    ),
    "M3AE": (
        "proven: two a case, 1/16, 1/24, 1/16, 1/4 for one to four modalities",
        "as published: slices scaled and shifted, flips; both copies alike",
        "differs: the substitute stands where the window lies (`net.substitute_frame=released`)",
    ),
    "MedMAP": ("not comparable: a fragment", "not comparable", "not comparable"),
    "MetaKD": ("proven; as LCKD", "as LCKD", "as LCKD"),
    "MIFPN": (
        "differs: a subset for each sample",
        "as RFNet",
        "differs: the released network sees what is absent (`net.leak=released` fails the law)",
    ),
    "U-Net-MFI": (
        "proven",
        "as RFNet, without a change of intensity",
        "proven; differs: z-scores without percentiles, the box of the brain alone",
    ),
    "mmFormer": ("proven", "as RFNet", "proven"),
    "RFNet": (
        "proven",
        "differs: any angle, linear, corners read from the case; background stays zero",
        "proven; differs: z-scores of own brains (`data.normalisation=legacy_rfnet`)",
    ),
    "RobustSeg": ("proven", "proven: none", "proven"),
    "ShaSpec": (
        "proven; after 80,000 complete steps",
        "differs: z-scores without clipping; scale and flips as published",
        "windows as published; differs: z-scores of brains without clipping",
    ),
    "SMU-Net": (
        "not comparable: one subset a network",
        "differs: flips alone, as published, on a z-score in place of 0…1",
        "differs: whole cases without dropout, not one centre crop with it",
    ),
    "U-HVED": (
        "proven",
        "differs: z-scores for histogram standardisation, no blur before shrinking",
        "differs: posterior mean for a sample; windows of 112³ for 140³",
    ),
    "UniMRSeg": (
        "proven: all 14 incomplete subsets in each step; its second stage draws the size first",
        "flips, scale and shift as published, on z-scores of the brain",
        "windows as published; differs: z-scores of the brain, not of the volume",
    ),
}
HEAD = """# Proofs

What is known of each network beside its official program. This page is generated
(`tests/networks/proofs.py`); the files are described in `tests/golden/README.md` and
`tests/golden_train/README.md`.

- **Outputs**: the logits for the subsets of a file, relative error, single precision.
  Losses that a file of outputs holds are judged with them (`python -m tests.networks.golden`).
- **Loss, gradient**: of the first step; **later**: gradients after some steps of training;
  **losses**: along the training; **rate**: the learning rate. Relative errors, in double precision
  where a file is.
- **proven**: a test holds it (`tests/networks/test_facts.py`). **differs**: by choice, named in the
  header of the experiment, with the option that repeats the program where there is one. **not
  comparable**: nothing was released to compare with.

A bias right before a normalisation has no gradient but rounding, which Adam turns into steps, so
later gradients of single precision are not compared.
"""


def main(forward: Path, training: Path) -> str:
    """Give the page."""
    outputs: dict[str, list[float]] = defaultdict(list)
    steps: dict[tuple[str, str], list[float]] = defaultdict(list)
    files: dict[str, set[str]] = defaultdict(set)
    for line in forward.read_text(encoding="utf-8").splitlines():
        if found := FORWARD.match(line):
            file, first, error, worst, verdict = found.groups()
            assert verdict == "ok", line
            # What has no logits shows the worst of what it has.
            outputs[network_of(file)].append(float(error if first == "logits" else worst))
            files[network_of(file)].add(file)
    found_rows = map(TRAINING.match, training.read_text(encoding="utf-8").splitlines())
    trained = [found.groups() for found in found_rows if found]
    in_double = {network_of(file) for file, *_ in trained if file.endswith("f64")}
    for file, kind, error, verdict in trained:
        assert verdict == "ok", f"{file}: {kind}"
        if file == "schedules":
            network, kind = network_of(kind), "rate"
        else:
            network = network_of(file)
            files[network].add(file)
            kind = "loss" if kind in ("divergence", "entropy", "dice") else kind
            kind = "gradient" if kind == "its gradient" else kind
        # Single precision says less, so it is told only where there is nothing else.
        if kind in KINDS and not (file.endswith("f32") and network in in_double):
            steps[network, kind].append(float(error))
    heads = ["network", "outputs", "loss", "gradient", "later", "losses", "rate"]
    lines = [HEAD, row(heads), row(["---"] + ["---:"] * 6)]
    for network in sorted(JUDGED):
        errors = [outputs[network], *(steps[network, kind] for kind in KINDS)]
        lines.append(row([network, *(f"{max(e):.0e}" if e else "–" for e in errors)]))
    lines += ["", row(["network", "draws of subsets", "augmentation", "inference"])]
    lines.append(row(["---"] * 4))
    lines += [row([network, *JUDGED[network]]) for network in sorted(JUDGED)]
    lines += ["", row(["network", "files"]), row(["---"] * 2)]
    lines += [row([n, ", ".join(f"`{f}`" for f in sorted(files[n]))]) for n in sorted(JUDGED)]
    return "\n".join(lines) + "\n"


def network_of(file: str) -> str:
    """Name the network of a file or of an experiment."""
    return NETWORKS.get(file.split("_")[0], file)


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.stdout.write(main(Path(sys.argv[1]), Path(sys.argv[2])))
