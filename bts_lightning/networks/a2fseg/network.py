"""A2FSeg: four complete U-Nets whose finest features are fused by an average and an attention."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.a2fseg.local_fusion import SHARED_BYTES, attend, average_heads
from bts_lightning.networks.a2fseg.modality_attention import ModalityAttention, Once, Variant
from bts_lightning.networks.backbone import Auxiliary, Backbone, Features, Output
from bts_lightning.networks.layers import (
    Block,
    ContractingPath,
    ExpandingPath,
    deep_weights,
    halving_widths,
    initialise,
)
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.presence import (
    Presence,
    is_nobody,
    is_worth_sharing,
    nothing_of,
    pick,
    spread,
    stack_pyramids,
)

# Applied in this order; the parts of nnU-Net's `Generic_UNet` first.
OFFICIAL_NAMES = (
    (r"(\.\d+\.\d)\.blocks\.0\.", r"\1."),
    (r"\.blocks\.(\d)\.", r".\1."),
    (r"\bconv\.", "0."),
    (r"\binstnorm\.", "1."),
    (r"conv_blocks_context\.", "contract.stages."),
    (r"conv_blocks_localization\.", "expand.joins."),
    (r"\btu\.", "expand.ups."),
    (r"seg_outputs\.", "expand.heads."),
    (r"^fusion_decoder\.expand\.", "fusion_decoder."),
    (r"^modality_specific_models\.", "unets."),
    (r"^modality_aware_modules\.", "attention."),
    (r"^lastconv\.0\.", "refine."),
    (r"^output\.", "head."),
)


class A2FSeg(Backbone):
    """Fuse the features of the present modalities with weights per voxel and channel.

    Wang, Hong: A2FSeg: Adaptive Multi-Modal Fusion Network for Medical Image Segmentation, MICCAI
    2023. Official code: github.com/Zirui0623/A2FSeg at ed0936f (Apache-2.0), which holds four
    networks, none of which is the text of the paper:

    ==========  ====================================  ===========  ==========  ================
    variant     reference feature                     attention    refinement  average is
                                                      ends in                  supervised
    ==========  ====================================  ===========  ==========  ================
    official    decoder over averages of all levels   LeakyReLU    yes         yes, deeply
    post        average of the finest level           sigmoid      yes         no
    decoder     as official                           none: mean   yes         yes, deeply
    base        average of the finest level           none: mean   no          is the output
    paper       average of the finest level           sigmoid, one no          yes, one head
                                                      convolution
    ==========  ====================================  ===========  ==========  ================

    Deviations: the fusion decoder's own encoder, which the official code builds and never uses, is
    left out (14,025,120 weights); the subset may differ within a batch. The features that
    `encode` gives are those of the *decoders* of the U-Nets, finest first, and the bottleneck.

    Args:
        variant: see above.
        width: channels at full resolution; they double with each halving.
        poolings: how often the resolution is halved; sizes must be multiples of 2^poolings.
        width_limit: no level is wider.
        final_head_weight: of the loss of the final head; by default the official code's, that of
            the finest deeply supervised head, which the poolings decide: 0.5333 with five, 0.5714
            with four, 0.6667 with three. 1 in the text of the paper.
        skip_absent: do not run what nobody in the batch needs; a compiled graph runs it all.
        out_channels: 3 for regions, 4 for labels.

    Example:
        >>> net = A2FSeg(width=4, poolings=2).eval()
        >>> present = torch.tensor([[False, True, False, True]])
        >>> net(torch.randn(1, 4, 16, 16, 16), present).logits.shape
        torch.Size([1, 3, 16, 16, 16])
    """

    def __init__(
        self,
        *,
        variant: Variant = "official",
        width: int = 32,
        poolings: int = 5,
        width_limit: int = 320,
        final_head_weight: float | None = None,
        skip_absent: bool = True,
        out_channels: int = 3,
    ) -> None:
        super().__init__(out_channels, width=width, poolings=poolings, width_limit=width_limit)
        self.variant = variant
        self.divisor = 2**poolings
        self.final_head_weight = (
            deep_weights(poolings)[0] if final_head_weight is None else final_head_weight
        )
        self.skip_absent = skip_absent
        deep = variant in ("official", "decoder")
        self.fused_levels = tuple(range(poolings + 1)) if deep else (0,)
        widths = halving_widths(width, poolings, width_limit)
        self.unets = Modules(Branch(widths, out_channels) for _ in MODALITIES)
        self.fusion_decoder = ExpandingPath(widths, out_channels) if deep else None
        initialise(self)  # what follows keeps PyTorch's default, as in the official code
        self.attention = (
            None if variant in ("decoder", "base") else ModalityAttention(width, variant)
        )
        self.average_head = (
            nn.Conv3d(width, out_channels, 1, bias=False) if variant == "paper" else None
        )
        self.refine = Block(2 * width, width) if variant not in ("base", "paper") else None
        self.head = nn.Conv3d(width, out_channels, kernel_size=1, bias=False)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 4, "poolings": 3, "width_limit": 16}

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of the official network, without the encoder that it never uses."""
        dead = "fusion_decoder.conv_blocks_context."
        live = {name: value for name, value in state.items() if not name.startswith(dead)}
        poolings = len(self.unets[0].contract.stages) - 1
        self.load_state_dict({from_official(name, poolings): live[name] for name in live})

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Run each U-Net on its modality, for the samples that have it."""
        presence = Presence([present], read=self.skip_absent)
        if not self.training:
            return stack_pyramids(lambda m: self._branch(m, image, presence))
        branches = [self._branch(m, image, presence) for m in range(len(self.unets))]
        some = next(levels for levels in branches if levels is not None)
        for m, unet in enumerate(self.unets):
            if branches[m] is None:
                branches[m] = [torch.zeros_like(x) + nothing_of(unet) for x in some]
        return stack_pyramids(branches.__getitem__)

    def _branch(self, m: int, image: Tensor, presence: Presence) -> list[Tensor] | None:
        """Run a U-Net for the rows that have its modality; give None where none has."""
        rows = presence.rows(m)
        if is_nobody(rows):
            return None
        levels = self.unets[m](pick(image[:, m : m + 1], rows))
        return [spread(x, rows, len(image)) for x in levels]

    def decode(self, features: Features) -> Output:
        """Fuse the finest features of the present modalities and predict."""
        presence = Presence(features.present, read=self.skip_absent)
        fused, averages, reference = self._fuse(features.levels, presence)
        logits = self.head(fused)
        if not self.training:
            return Output(logits, embedding=fused)
        return Output(
            logits,
            embedding=fused,
            weight=self.final_head_weight,
            auxiliary=self._modality_heads(features) + self._average_heads(averages, reference),
        )

    def decode_subsets(self, features: Features, subsets: Tensor) -> Tensor:
        """Do only once what is linear in each modality, for all subsets of a case."""
        if not is_worth_sharing(features.levels):
            return super().decode_subsets(features, subsets)
        presence = Presence(features.restrict(subsets).present, read=self.skip_absent)
        return self._decode_case(features.levels, presence).unsqueeze(1)  # S 1 C D H W

    def _decode_case(self, case: Sequence[Tensor], presence: Presence) -> Tensor:
        # For fewer subsets than this it is no less work.
        many = presence.batch > len(MODALITIES)
        if many and self.fusion_decoder is None and self.refine is None:
            finest, subsets = case[0].unbind(dim=1), presence.present[0].cpu()
            if self.attention is None:
                return average_heads(self.head, finest, subsets)
            return attend(self.attention, self.head, finest, subsets)
        # From half a gigabyte of finest features on, what is shared would take gigabytes.
        once = self._once(case) if many and case[0].nbytes <= SHARED_BYTES / 2 else None
        rows = range(presence.batch)
        return torch.cat([self.head(self._fuse(case, presence.row(i), once)[0]) for i in rows])

    def _fuse(
        self, levels: Sequence[Tensor], presence: Presence, once: Once | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Give what the head reads, the levels of the fusion decoder and the reference feature."""
        finest = levels[0].unbind(dim=1)
        averages: list[Tensor] = []
        if self.fusion_decoder is None:
            reference = presence.average(finest)
        elif once is None:
            averages = self.fusion_decoder(
                [presence.average(x.unbind(dim=1), level) for level, x in enumerate(levels)]
            )
            reference = averages[0]
        else:
            terms = [presence.average(parts, step) for step, parts in enumerate(once.skips)]
            bottleneck = presence.average(levels[-1].unbind(dim=1), len(levels) - 1)
            reference = self.fusion_decoder.from_skip_terms(terms, bottleneck)[0]

        if not self.training:
            averages = []  # at full size half of a gigabyte that nobody reads

        if self.attention is not None:
            fused = self.attention(finest, presence, reference, once)
        elif self.variant == "decoder":
            fused = presence.average(finest)
        else:
            fused = reference
        if self.refine is not None:
            fused = self.refine(torch.cat([fused, reference], dim=1))
        return fused, averages, reference

    def _once(self, case: Sequence[Tensor]) -> Once:
        """Compute what is linear in each modality, for all subsets of a case."""
        once = Once()
        if self.fusion_decoder is not None:
            for step, level in enumerate(case[:-1]):
                parts = [self.fusion_decoder.skip_term(step, x) for x in level.unbind(dim=1)]
                once.skips.append(parts)
        if self.attention is not None:
            finest = case[0].unbind(dim=1)
            once.own = [self.attention.own_term(m, x) for m, x in enumerate(finest)]
        return once

    def _modality_heads(self, features: Features) -> tuple[Auxiliary, ...]:
        own = features.original or features
        heads: tuple[Auxiliary, ...] = ()
        for m, name in enumerate(MODALITIES):
            branch, valid = self.unets[m], own.present[0][:, m]
            keep = valid.view(-1, 1, 1, 1, 1)
            decoded = [torch.where(keep, level[:, m], 0) for level in own.levels]
            heads += branch.expand.supervise(decoded, f"modality/{name}", valid=valid)
        return heads

    def _average_heads(self, averages: list[Tensor], reference: Tensor) -> tuple[Auxiliary, ...]:
        if self.fusion_decoder is not None:
            return self.fusion_decoder.supervise(averages, "average")
        if self.average_head is not None:
            logits = self.average_head(reference)
            return (Auxiliary("average", logits, self.final_head_weight),)
        return ()


class Branch(nn.Module):
    """Decode one modality into features at full resolution: a U-Net without its last word."""

    def __init__(self, widths: list[int], out_channels: int) -> None:
        super().__init__()
        self.contract = ContractingPath(1, widths)
        self.expand = ExpandingPath(widths, out_channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Give the decoded levels, finest first, and the bottleneck."""
        decoded: list[Tensor] = self.expand(self.contract(x))
        return decoded


def from_official(name: str, poolings: int) -> str:
    """Translate the name of an official weight; its decoders count from the coarsest step."""

    def from_finest(step: re.Match[str]) -> str:
        return f"{step[1]}.{poolings - 1 - int(step[2])}."

    for pattern, ours in OFFICIAL_NAMES:
        name = re.sub(pattern, ours, name)
    return re.sub(r"\b(ups|joins|heads)\.(\d+)\.", from_finest, name)
