"""Which parameter of ours is which official one; `tests/networks/golden_*.py` know the orders."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tests.networks import golden_a2fseg, golden_amoe_bts, golden_mmformer, golden_rfnet
from tests.networks.conformity import Array, as_is
from tests.networks.official_a2fseg import from_official

MODALITY = {"flair": 3, "t1ce": 1, "t1": 0, "t2": 2}
DECODER = {"fuse": "", "sep": "modality_decoder."}
AMOE_ORDER = (3, 0, 1, 2)  # the official encoders are FLAIR's, T1's, T1c's, T2's

# In a pattern, a group in capitals counts from 1; ours count from 0. `c` is the convolution's place
# in a unit.
M, D = r"(?P<m>flair|t1ce|t1|t2)", r"decoder_(?P<d>fuse|sep)"
FAMILY = (
    (rf"{M}_encoder\.e(?P<K>\d)_c1\.conv", "encoders.{m}.down.{K}.{c}"),
    (rf"{M}_encoder\.e1_c1", "encoders.{m}.down.0"),
    (rf"{M}_encoder\.e(?P<K>\d)_c2\.conv", "encoders.{m}.residual.{K}.0.{c}"),
    (rf"{M}_encoder\.e(?P<K>\d)_c3\.conv", "encoders.{m}.residual.{K}.1.{c}"),
    (rf"{M}_encode_conv", "embed.{m}"),
    (rf"{M}_pos", "positions.{m}"),
    (rf"{D}\.d(?P<K>\d)_c1\.conv", "{d}enlarge.{K}.1.{c}"),
    (rf"{D}\.d(?P<K>\d)_c2\.conv", "{d}join.{K}.0.{c}"),
    (rf"{D}\.d(?P<K>\d)_out\.conv", "{d}join.{K}.1.{c}"),
    (rf"{D}\.seg_layer", "{d}head"),
    (r"decoder_fuse\.seg_d(?P<K>\d)", "coarse_heads.{K}"),
    (r"decoder_fuse\.RFM(?P<K>\d)\.fusion_layer\.(?P<j>\d)\.conv", "fusions.{K}.{j}.{c}"),
    (
        r"decoder_fuse\.RFM(?P<K>\d)\.modal_fusion\.(?P<r>\d)\.weight_layer\.(?P<j>\d)",
        "fusions.{K}.weigh.{r}.{j}",
    ),
    (
        r"decoder_fuse\.RFM(?P<K>\d)\.region_fusion\.fusion_layer\.(?P<j>\d)\.conv",
        "fusions.{K}.fuse.{j}.0",
    ),
    (r"decoder_fuse\.RFM(?P<K>\d)\.short_cut\.(?P<j>\d)\.conv", "fusions.{K}.shortcut.{j}.0"),
    (
        r"decoder_fuse\.prm_generator(?P<K>\d)\.embedding_layer\.(?P<j>\d)\.conv",
        "maps.{K}.embed.{j}.0",
    ),
    (r"decoder_fuse\.prm_generator(?P<K>\d)\.prm_layer\.0\.conv", "maps.{K}.head.0.0"),
    (r"decoder_fuse\.prm_generator(?P<K>\d)\.prm_layer\.1", "maps.{K}.head.1"),
    (r"multimodal_decode_conv", "gather"),
    *(
        (rf"{theirs}_transformer\.cross_{part}_list\.0\.fn\.{inner}", f"{ours}.{layer}")
        for theirs, ours in ((M, "within.{m}"), ("multimodal", "across"))
        for part, inner, layer in (
            ("attention", "norm", "attend.0"),
            ("attention", r"fn\.qkv", "attend.1.qkv"),
            ("attention", r"fn\.proj", "attend.1.project"),
            ("ffn", "norm", "transform.0"),
            ("ffn", r"fn\.net\.0", "transform.1"),
            ("ffn", r"fn\.net\.3", "transform.4"),
        )
    ),
)
E, MIXER = r"encoder\.encoders\.(?P<e>\d)", "encoders.{e}.stages.{k}.mixers.{j}."
DOWN, BLOCK = rf"{E}\.down_(?P<k>\d)", rf"{E}\.down_(?P<k>\d)\.block_list\.(?P<j>\d)"
AMOE = (
    (rf"{E}\.conv_0\.conv_1\.conv_1\.0", "encoders.{e}.stages.0.0"),
    (rf"{E}\.conv_0\.conv_2\.conv_1\.0", "encoders.{e}.stages.0.3"),
    (rf"{DOWN}\.embeddings\.patch_embeddings", "encoders.{e}.stages.{k}.embed"),
    (rf"{DOWN}\.embeddings\.norm", "encoders.{e}.stages.{k}.norm"),
    (rf"{DOWN}\.cbam\.ca\.fc1", "encoders.{e}.stages.{k}.look.squeeze.0"),
    (rf"{DOWN}\.cbam\.ca\.fc2", "encoders.{e}.stages.{k}.look.squeeze.2"),
    (rf"{DOWN}\.cbam\.sa\.conv1", "encoders.{e}.stages.{k}.look.look"),
    (rf"{BLOCK}\.attention_norm", MIXER + "before_average"),
    (rf"{BLOCK}\.ffn_norm", MIXER + "before_experts"),
    (rf"{BLOCK}\.ffn\.gate", MIXER + "gate"),
    (rf"{BLOCK}\.ffn\.experts\.(?P<x>\d)\.0", MIXER + "experts.experts.{x}.0"),
    (rf"{BLOCK}\.ffn\.experts\.(?P<x>\d)\.2", MIXER + "experts.experts.{x}.3"),
    (r"fusion_conv_5\.conv_1\.conv_1\.0", "bottleneck.0"),
    (r"fusion_conv_5\.conv_2\.conv_1\.0", "bottleneck.3"),
    (r"fusion_conv_(?P<K>\d)\.conv_1\.conv_1\.0(?=\.bias)", "skips.{K}"),
    (r"fusion_conv_(?P<K>\d)\.conv_2\.conv_1\.0", "skips.{K}.rest.2"),
    (r"upcat_(?P<K>\d)\.upsample", "up.{K}"),
    (r"upcat_(?P<K>\d)\.convs\.conv_1\.conv_1\.0", "join.{K}.0"),
    (r"upcat_(?P<K>\d)\.convs\.conv_2\.conv_1\.0", "join.{K}.3"),
    (r"final_conv", "head"),
)


@dataclass(frozen=True)
class Layout:
    """How the official parameters of a network map onto ours.

    Attributes:
        rename: gives our names by the official one, several where the official tensor holds their
            second axes one after the other, and none where ours leaves it out.
        salt: 10*m + j by our name.
        arrange: reorders a tensor of the official layout to ours, by our name.
    """

    rename: Callable[[str], tuple[str, ...]]
    salt: Callable[[str], int]
    arrange: Callable[[str, Array], Array] = as_is

    def put(self, official: Tensor, names: tuple[str, ...], into: dict[str, Tensor]) -> None:
        """Write an official tensor into parameters of ours."""
        if len(names) == 1:
            (name,) = names
            parts = [official.flatten()[self._order(name, into[name])]]
        else:
            parts = list(official.chunk(len(names), dim=1))
        for name, part in zip(names, parts, strict=True):
            into[name].copy_(part.reshape(into[name].shape))

    def take(self, names: tuple[str, ...], ours: dict[str, Tensor]) -> Tensor:
        """Read an official tensor, flat, from ours."""
        if len(names) > 1:
            return torch.cat([ours[name] for name in names], dim=1).flatten()
        (name,) = names
        official = torch.empty_like(ours[name]).flatten()
        official[self._order(name, ours[name])] = ours[name].flatten()
        return official

    def _order(self, name: str, ours: Tensor) -> Tensor:
        places = np.arange(ours.numel()).reshape(tuple(ours.shape))
        return torch.from_numpy(np.ascontiguousarray(self.arrange(name, places)).flatten())


def renamed(
    name: str, rules: tuple[tuple[str, str], ...], convolution: str = "0"
) -> tuple[str, ...]:
    for pattern, template in rules:
        if found := re.match(pattern + r"(?=\.\w+$|$)", name):
            words = {key: value for key, value in found.groupdict().items() if value is not None}
            words |= {key: str(int(value) - 1) for key, value in words.items() if key.isupper()}
            if "m" in words:
                words["m"] = str(MODALITY[words["m"]])
            if "e" in words:
                words["e"] = str(AMOE_ORDER[int(words["e"])])
            if "d" in words:
                words["d"] = DECODER[words["d"]]
            return (template.format(c=convolution, **words) + name[found.end() :],)
    return ()


def renamed_amoe(name: str) -> tuple[str, ...]:
    if found := re.fullmatch(r"fusion_conv_([1-4])\.conv_1\.conv_1\.0\.weight", name):
        return tuple(f"encoders.{e}.terms.{int(found[1]) - 1}.weight" for e in AMOE_ORDER)
    return renamed(name, AMOE)


def renamed_a2fseg(name: str, poolings: int) -> tuple[str, ...]:
    dead = name.startswith("fusion_decoder.conv_blocks_context.")
    return () if dead else (from_official(name, poolings),)


def arranged_amoe(name: str, value: Array) -> Array:
    if name == "bottleneck.0.weight":
        return np.concatenate([np.split(value, 4, axis=1)[i] for i in (1, 2, 3, 0)], axis=1)
    return value[[1, 0, 2]] if name.startswith("head.") else value  # theirs are TC, WT, ET


def layout(network: str, poolings: int = 0) -> Layout:
    """Give the layout of an official network."""
    if network == "RFNet":
        return Layout(partial(renamed, rules=FAMILY), golden_rfnet.salt, golden_rfnet.arrange)
    if network == "mmFormer":
        rename = partial(renamed, rules=FAMILY, convolution="2")
        return Layout(rename, golden_mmformer.salt, golden_mmformer.arrange)
    if network == "AMoE-BTS":
        return Layout(renamed_amoe, golden_amoe_bts.salt, arranged_amoe)
    return Layout(partial(renamed_a2fseg, poolings=poolings), golden_a2fseg.salt)
