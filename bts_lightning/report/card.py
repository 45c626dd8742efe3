"""The model card of a package: what a hub reads of it, and what a colleague must know."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from bts_lightning.metrics.table import METRICS
from bts_lightning.modalities import REGION_WORDS, SCHEMES
from bts_lightning.report.document import item, plain
from bts_lightning.report.facts import facts, policy
from bts_lightning.report.summary import Summary, count, notes, tables

UNSAID = "not stated"
# A place on the machine that evaluated, and names of cases.
_KEPT_BACK = ("run", "unscored")
_TASK = "Brain tumour segmentation with missing MRI modalities"


@dataclass(frozen=True)
class Card:
    """What whoever packs says, and what the runs say.

    Attributes:
        license: of the weights, by the name that the hub has for it.
        data: what the data set is called.
        networks: of each run.
        cases: how many of each run stood in each part of its split.
        packages: that must be allowed, because the network comes from them.
        summary: of the evaluation that was packed.
    """

    title: str
    license: str
    data: str
    data_license: str
    file: str
    networks: Sequence[str]
    scheme: str
    version: str
    cases: Sequence[Mapping[str, int]]
    packages: Sequence[str]
    summary: Summary | None

    def markdown(self) -> str:
        """Write README.md: the fields that the hub reads, then the card."""
        head = yaml.safe_dump(self._fields(), sort_keys=False, allow_unicode=True)
        sections = {
            "Use": self._use(),
            "Intended use": [
                "Research on segmentation where modalities are missing. This is no medical device: "
                "nothing that it draws may decide about a patient.",
            ],
            "Licence": self._licence(),
            "Results": self._results(),
            "Training": self._training(),
            "Limits": [item(text) for text in self._limits()],
        }
        body = [f"# {plain(self.title)}", "", f"{self._what()}", ""]
        for title, lines in sections.items():
            body += [f"## {title}", "", *lines, ""]
        return f"---\n{head}---\n\n" + "\n".join(body).rstrip() + "\n"

    def _fields(self) -> dict[str, Any]:
        networks = [name.lower() for name in dict.fromkeys(self.networks)]
        return {
            "license": self.license,
            "library_name": "bts_lightning",
            "pipeline_tag": "image-segmentation",
            "tags": ["brain-tumor-segmentation", "mri", "missing-modalities", "medical", *networks],
            "metrics": ["dice"],
            "model-index": [{"name": self.title, "results": self._index()}],
        }

    def _index(self) -> list[dict[str, Any]]:
        if self.summary is None:
            return []
        over, _, means = next(row for row in self.summary.rows("dice") if row[1] is None)
        scores = [
            {"type": "dice", "name": f"Dice {region}, {over}", "value": round(float(value), 4)}
            for region, value in zip(self.summary.regions, means.mean, strict=True)
            if np.isfinite(value)
        ]
        data: dict[str, Any] = {
            "type": re.sub(r"[^a-z0-9]+", "-", self.data.lower()).strip("-"),
            "name": self.data,
            "split": self._part(),
        }
        task = {"type": "image-segmentation", "name": _TASK}
        return [{"task": task, "dataset": data, "metrics": scores}]

    def _part(self) -> str:
        split = self.summary.protocol.get("split") if self.summary else None
        return str(split.get("part", UNSAID)) if isinstance(split, Mapping) else UNSAID

    def _what(self) -> str:
        names = ", ".join(dict.fromkeys(self.networks))
        what = (
            f"{names}."
            if len(self.networks) == 1
            else (f"{len(self.networks)} networks ({names}), whose probabilities are averaged.")
        )
        regions = ", ".join(f"{name} ({REGION_WORDS[name]})" for name in self._regions())
        return f"{plain(what)} It takes any of T1, T1c, T2 and FLAIR, and segments {regions}."

    def _regions(self) -> list[str]:
        return list(SCHEMES[self.scheme].regions)

    def _use(self) -> list[str]:
        allowed = "".join(f" --allow {name}" for name in self.packages)
        return [
            "```bash",
            f"bts predict {self.file}{allowed} --flair f.nii.gz --t1c t1c.nii.gz --out seg.nii.gz",
            "```",
            "",
            f"It was packed with bts_lightning {self.version}. Name the modalities that there are; "
            "the images of a patient must lie on one grid, without skull, as in BraTS.",
        ]

    def _licence(self) -> list[str]:
        return [
            item(f"Weights: {self.license}"),
            item("Code of the networks, bts_lightning: Apache-2.0"),
            item(f"Data that they were trained on ({self.data}): {self.data_license}"),
        ]

    def _results(self) -> list[str]:
        if self.summary is None:
            return ["Nobody has evaluated these weights, or said so here."]
        protocol = self.summary.protocol
        lines = [item(f"{label}: {text}") for label, text in facts(protocol)]
        lines += ["", policy(protocol), "", *map(plain, notes(self.summary)), ""]
        # A section below its title.
        return lines + [re.sub("^## ", "### ", line) for line in tables(self.summary)]

    def _training(self) -> list[str]:
        lines = [
            item(
                f"{name}: {count('case', cases['train'])} to train on, {cases['val']} to choose "
                f"the weights by, {cases['test']} left to test on"
                if cases
                else f"{name}: its split was not kept"
            )
            for name, cases in zip(self.networks, self.cases, strict=True)
        ]
        return [
            *lines,
            "",
            "`config.yaml` is the experiment and `provenance.json` what made it. `seen.json` holds "
            "digests in place of the names of cases: `bts unpack "
            f"{self.file} --seen NAME` says whether a case, or another scan of its patient, was "
            "among them, and `bts predict --folder` warns of such cases.",
        ]

    def _limits(self) -> list[str]:
        said = [
            "Images that were made otherwise than those of training (scanner, field, resolution, "
            "age, treatment, registration, removal of the skull) are untested.",
            "An absent modality costs accuracy, and an uncertain voxel looks like a certain one: "
            "ask for `--probabilities`.",
        ]
        if self.summary is None:
            return [*said, "It is not known how good it is."]
        cells = self.summary.metrics["dice"].cells().mean
        subset, region = np.unravel_index(np.nan_to_num(cells, nan=1).argmin(), cells.shape)
        names = self.summary.table.subsets, self.summary.regions
        said.append(
            f"The weakest of the rows above: Dice {100 * cells[subset, region]:.1f} % for "
            f"{names[1][region]} from {names[0][subset]}."
        )
        if self._part() != "test":
            said.append(
                f"The scores are those of the {self._part()} part, by which something was chosen: "
                "expect less on new patients."
            )
        return said


def told(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Give what may leave the machine of how an evaluation was made."""
    kept = {name: value for name, value in protocol.items() if name not in _KEPT_BACK}
    members = {"members": [told(one) for one in protocol["members"]]} if "members" in kept else {}
    return kept | members


def scores(summary: Summary) -> dict[str, Any]:
    """Give protocol and means as plain values; case by case they stay where they were made."""
    rows = [
        {
            "subset": subset or title,
            "metric": name,
            "region": region,
            **{
                end: float(value[i]) if np.isfinite(value[i]) else None
                for end, value in (("mean", line.mean), ("low", line.low), ("high", line.high))
            },
            "cases": int(line.count[i]),
        }
        for name in METRICS
        if name in summary.metrics
        for title, subset, line in summary.rows(name)
        for i, region in enumerate(summary.regions)
    ]
    return {"protocol": dict(summary.protocol), "rows": rows}
