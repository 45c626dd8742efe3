"""The tables know every parameter of the official networks, by name, order and shape."""

import gzip
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bts_lightning import config
from bts_lightning.errors import DataError
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.official.state import bare, learned, translate
from bts_lightning.networks.official.table import read_table, tables
from tests.networks.conformity import Recorded, entries

# Names and shapes of the official classes in their published size, and how many have no effect.
FILE = Path(__file__).parents[1] / "golden" / "official_names.json.gz"
PAGE = Path(__file__).parents[2] / "docs" / "official_weights.md"


@cache
def facts() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress(FILE.read_bytes()))
    return found


@cache
def ours(name: str) -> dict[str, Tensor]:
    """Build the network, or the task, in its published size, without memory for it."""
    table = read_table(name)
    experiment = config.load(table.train)
    with torch.device("meta"):
        module: nn.Module = config.build(experiment.task if table.whole_task else experiment.net)
    return learned(module)


def official(name: str, **changes: Any) -> dict[str, Tensor]:
    shapes = dict(facts()[name]["parameters"]) | changes
    return {name: torch.empty(s, device="meta") for name, s in shapes.items() if s is not None}


@pytest.mark.parametrize("name", sorted(facts()))
def test_every_official_parameter_is_taken_or_without_effect(name: str) -> None:
    table, state = read_table(name), official(name)
    taken = translate(bare(state), ours(name), table)
    count, size = facts()[name]["dead"]
    assert taken.skipped == (count, size)
    assert taken.taken == (len(state) - count, sum(x.numel() for x in state.values()) - size)
    assert taken.ours.keys() == ours(name).keys()
    row = [f"`{name}`", *(f"{n:,}" for pair in (taken.taken, taken.skipped) for n in pair)]
    assert f"| {' | '.join(row)} |" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(facts()))
def test_orders_are_the_official_ones(name: str) -> None:
    table, known = read_table(name), facts()[name]
    assert table.reads == known["order"]
    assert table.gives in ([], known["outputs"])
    assert table.gives or known["outputs"][0] in ("BG", "WT")  # as ours


# Where an official name holds the number of a modality, and from where it counts; or a word.
NUMBERED = {
    "a2fseg": (r"(?:models|modules)\.(\d)\.", 0),
    "amoe_bts": (r"encoders\.(\d)\.", 0),
    "gmd": (r"norm_(\d)\.", 0),
    "mfi": (r"^(?:init_conv_|(?:en|ed|ud|un)\d_|out_conv)(\d)\.", 1),
    "mifpn": (r"^(?:share|f)(\d)", 1),
}
WORDS = {"flair": "flair", "t2flare": "flair", "t1ce": "t1c", "t1c": "t1c", "t1": "t1", "t2": "t2"}
WORD = r"(?<![a-z0-9])(flair|t1ce|t1c|t1|t2flare|t2)(?=[_.])"
CONFIG = {"variant": "official", "mamba_skip": True, "first_skip": True}
OWNERS = {
    entry.table_of(CONFIG).name: entry
    for entry in entries().values()
    if isinstance(entry, Recorded)
}


@pytest.mark.parametrize("name", sorted(OWNERS))
def test_a_branch_reads_the_modality_that_its_official_name_says(name: str) -> None:
    table, entry = read_table(name), OWNERS[name]
    pattern, first = NUMBERED.get(name, (WORD, 0))
    if not any(entry.salt(own) // 10 in range(1, 5) for own in ours(name)):
        pytest.skip("no modality owns a parameter")
    count = 0
    for own, place in table.places(ours(name)).items():
        found, owner = re.search(pattern, place.name), entry.salt(own) // 10
        if found and owner:
            word = found[1]
            said = facts()[name]["order"][int(word) - first] if word.isdigit() else WORDS[word]
            assert said == MODALITIES[owner - 1], (own, place.name)
            count += 1
    assert count > 4


def test_only_the_form_without_a_list_of_names_has_none() -> None:
    assert set(tables()) - set(facts()) == {"imfuse_mfb"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"t1_encoder.e2_c1.conv.bias": None},
            "1 of 288 .* missing, as t1_encoder.e2_c1.conv.bias",
        ),
        ({"more.weight": (3,)}, "1 are unknown, as more.weight"),
        ({"t2_encoder.e1_c1.conv.bias": (8,)}, r"t2_encoder.e1_c1.conv.bias: 8 for 16"),
        ({"decoder_fuse.seg_layer.weight": (5, 16, 1, 1, 1)}, "5×16×1×1×1 for 4×16×1×1×1"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], said: str) -> None:
    table = read_table("rfnet")
    with pytest.raises(DataError, match=said):
        translate(bare(official("rfnet", **changes)), ours("rfnet"), table)


def test_blocks_of_modalities_follow_our_order() -> None:
    places = read_table("rfnet").places(ours("rfnet"))
    x = torch.arange(5).expand(2, 5)  # four modalities and a share: FLAIR, T1c, T1, T2
    assert places["fusions.0.weigh.0.0.weight"].take(x)[0].tolist() == [2, 1, 3, 0, 4]


def test_axes_outputs_and_parts_follow_our_order() -> None:
    shaspec, amoe = read_table("shaspec"), read_table("amoe_bts")
    stem = shaspec.places(ours("shaspec"))["shared.stem.0.weight"]
    assert stem.take(torch.empty(1, 1, 3, 5, 7)).shape == (1, 1, 5, 7, 3)  # z, x, y there
    places = amoe.places(ours("amoe_bts"))
    assert places["head.bias"].take(torch.arange(3)).tolist() == [1, 0, 2]  # TC, WT, ET there
    term = places["encoders.0.terms.0.weight"]
    assert term.take(torch.arange(8).view(1, 8)).tolist() == [[2, 3]]  # T1 is the second there
