"""Write docs/field.md, the methods side by side: `python -m tests.networks.field docs/field.md`.

Names behind the page write their rows again and keep the others. What no code can know stands in
`field.yaml`, with the place where it was read.
"""

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bts_lightning import config
from bts_lightning.bench.network_page import SIZES, cost, on_meta
from bts_lightning.config.merge import experiments
from bts_lightning.files import write_whole
from bts_lightning.modalities import REGIONS
from bts_lightning.report.published import Row, rows, select
from tests.networks.claims import BY_TEST, FORMS, compared, learned

FACTS = Path(__file__).with_suffix(".yaml")
BEGIN, END = "<!-- field -->\n", "<!-- end of field -->\n"
COLUMNS = (
    "system",
    "year",
    "weights (M)",
    "one pass",
    "15 subsets, naive",
    "15 here",
    "absent images leak",
    "trains as released",
    "tests as released",
    "published",
    "proven here",
)


@cache
def facts() -> dict[str, dict[str, Any]]:
    """Read what was read in the released programs."""
    found: Any = OmegaConf.to_container(OmegaConf.load(FACTS))
    return dict(found)


def row(system: str) -> list[str]:
    """Give the cells of a system."""
    fact = facts()[system]
    return [
        system,
        str(fact["year"]),
        *costs(fact["words"], skips_absent=fact.get("skips_absent", False)),
        *(fact[key] for key in ("leak", "trains", "tests")),
        published(system, fact.get("repository") or "no repository"),
        proven(fact["words"]),
    ]


def costs(words: str, *, skips_absent: bool) -> list[str]:
    """Count weights and GFLOP of a window, the largest that the network takes."""
    if words.split()[0] not in experiments():
        return ["–"] * 4
    node = config.load(words.split()).task.net
    found = ((size, cost(node, size)) for size in SIZES)
    size, count = next((size, one) for size, one in found if one is not None)
    passes = count.once, count.loop(skips_absent=skips_absent), count.encode + count.decode_all
    weights = sum(p.numel() for p in on_meta(node).parameters())
    return [f"{weights / 1e6:.3f}", *(f"{one:,.0f} at {size}³" for one in passes)]


def published(system: str, repository: str) -> str:
    """Give the mean over 15 subsets of a clean table: the authors' own first, then the youngest."""
    if system not in {table.method for table in select(metric="dice")}:
        return "–"
    clean = [
        one
        for one in rows(select(method=system, metric="dice"))
        if one.quality == "ok" and set(REGIONS) <= one.values.keys()
        if not any("secondary" in note or "full modality" in note for note in one.notes)
    ]
    if not clean:
        return "no clean source"

    def order(one: Row) -> tuple[bool, str]:
        is_own = repository in one.source or one.source.startswith(f"{system} paper")
        return is_own, one.dataset

    best = max(clean, key=order)
    values = " / ".join(f"{best.values[region]:.1f}" for region in REGIONS)
    by = "" if order(best)[0] else ", by others"
    return f"{best.dataset} {values} ({best.split}{by})".replace("|", "/")


def proven(words: str) -> str:
    """Say what was compared with the released program."""
    forms = BY_TEST | {
        "rfnet dcseg": ("nothing", "its terms, in a third party's copy"),
        "rfnet medmap": ("official fragment", "its penalty and gradients"),
        "rfnet passion": ("nothing", "its terms"),
    }
    outputs, training = forms.get(words) or (
        compared(FORMS.get(words, ("", ""))[0]),
        learned(*FORMS.get(words, ("", ""))),
    )
    return f"outputs: {outputs}; training: {training}"


def write(page: str, names: list[str]) -> str:
    """Put rows between the two marks of a page; rows of other systems are kept."""
    before, _, rest = page.partition(BEGIN)
    old, end, after = rest.partition(END)
    assert end, f"the page has no {BEGIN.strip()} with {END.strip()} below it"
    costs_and_facts = old.partition("\n\n| system | released program")[0]
    found = re.findall(r"^\| .*", costs_and_facts, re.MULTILINE)
    known = {line.split(" | ")[0][2:]: line for line in found}
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for system in facts():
        is_kept = names and system not in names and system in known
        lines.append(known[system] if is_kept else f"| {' | '.join(row(system))} |")
    lines += ["", "| system | released program | read in |", "| --- | --- | --- |"]
    lines += [
        f"| {system} | {fact.get('repository') or 'none'} | {fact['read']} |"
        for system, fact in facts().items()
    ]
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_whole(path, write(path.read_text(encoding="utf-8"), sys.argv[2:]))
