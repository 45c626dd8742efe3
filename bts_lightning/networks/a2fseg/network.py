"""A2FSeg: four complete U-Nets whose finest features are fused by an average and an attention."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.a2fseg.modality_attention import ModalityAttention, Score, Variant
from bts_lightning.networks.a2fseg.subsets import MOST_BYTES, OwnTerms, SkipTerms, fuse_locally
from bts_lightning.networks.backbone import Auxiliary, Backbone, Features, Output, Weigher, over
from bts_lightning.networks.layers import (
    Block,
    ContractingPath,
    ExpandingPath,
    deep_weights,
    halving_widths,
    initialise,
)
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.presence import Presence, encode_present, is_worth_sharing


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
        fold: stride of the first convolution; what is fused is enlarged as often before the head.
            2, which is ours, lets everything between work on an eighth of the voxels.
        poolings: how often the resolution is halved; sizes must be multiples of fold × 2^poolings.
        width_limit: no level is wider.
        deep_supervision: let the coarser levels of each decoder predict too, in training; by
            default all variants do but `paper`, whose text has one head for each modality.
        final_head_weight: of the loss of the final head; by default that of the finest head of a
            decoder, as in the official code. With deep supervision the poolings decide it: 0.5333
            with five, 0.5714 with four, 0.6667 with three; without, it is 1.
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
        fold: int = 1,
        poolings: int = 5,
        width_limit: int = 320,
        deep_supervision: bool | None = None,
        final_head_weight: float | None = None,
        skip_absent: bool = True,
        out_channels: int = 3,
    ) -> None:
        sizes = {"width": width, "fold": fold, "poolings": poolings, "width_limit": width_limit}
        super().__init__(out_channels, **sizes)
        self.variant = variant
        self.fold = fold
        self.divisor = fold * 2**poolings
        is_deep = variant != "paper" if deep_supervision is None else deep_supervision
        heads = poolings if is_deep else 1
        self.final_head_weight = (
            deep_weights(heads)[0] if final_head_weight is None else final_head_weight
        )
        self.skip_absent = skip_absent
        deep = variant in ("official", "decoder")
        self.fused_levels = tuple(range(poolings + 1)) if deep else (0,)
        widths = halving_widths(width, poolings, width_limit)
        self.unets = Modules(Branch(widths, out_channels, heads, fold) for _ in MODALITIES)
        self.fusion_decoder = ExpandingPath(widths, out_channels, heads=heads) if deep else None
        initialise(self)  # what follows keeps PyTorch's default, as in the official code
        self.attention = (
            None if variant in ("decoder", "base") else ModalityAttention(width, variant)
        )
        self.average_head = (
            nn.Conv3d(width, out_channels, 1, bias=False) if variant == "paper" else None
        )
        self.refine = Block(2 * width, width) if variant not in ("base", "paper") else None
        self.unfold = nn.Identity() if fold == 1 else enlarging(width, fold)
        self.head = nn.Conv3d(width, out_channels, kernel_size=1, bias=False)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 4, "poolings": 3, "width_limit": 16}

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Run each U-Net on its modality, for the samples that have it."""
        return encode_present(self.unets, image, present, skip=self.skip_absent)

    def decode(self, features: Features) -> Output:
        """Fuse the finest features of the present modalities and predict."""
        presence = Presence(features.present, read=self.skip_absent)
        fused, averages = self.fuse(features.levels, presence)
        fused = self.unfold(fused)
        logits = self.head(fused)
        if not self.training:
            return Output(logits, embedding=fused)
        return Output(
            logits,
            weight=self.final_head_weight,
            auxiliary=self._modality_heads(features) + self._average_heads(averages),
            embedding=fused,
        )

    def fuse(
        self, levels: Sequence[Tensor], presence: Presence, score: Score | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Give what the head reads, and the averages of modalities, the finest of them decoded."""
        finest = levels[0].unbind(dim=1)
        if self.fusion_decoder is None:
            averages = [presence.average(finest)]
        else:
            averages = self.fusion_decoder(
                [presence.average(x.unbind(dim=1), level) for level, x in enumerate(levels)]
            )
        if not self.training:
            del averages[1:]  # at full size half of a gigabyte that nobody reads
        return self.attend(finest, presence, averages[0], score), averages

    def attend(
        self,
        finest: Sequence[Tensor],
        presence: Presence,
        reference: Tensor,
        score: Score | None = None,
    ) -> Tensor:
        """Fuse the finest features of the modalities, weighed against the reference feature."""
        if self.attention is not None:
            fused: Tensor = self.attention(finest, presence, reference, score)
        else:
            fused = presence.average(finest) if self.variant == "decoder" else reference
        if self.refine is not None:
            fused = self.refine(torch.cat([fused, reference], dim=1))
        return fused

    def decode_subsets(self, features: Features, subsets: Tensor) -> Tensor:
        """Do only once what is linear in each modality, for all subsets of a case."""
        if not is_worth_sharing(features.levels):
            return super().decode_subsets(features, subsets)
        presence = Presence(features.restrict(subsets).present, read=self.skip_absent)
        finest = features.levels[0].unbind(dim=1)
        # For fewer subsets it is no less work, and large features would take gigabytes.
        many = len(subsets) > len(MODALITIES)
        plain = self.fusion_decoder is None and self.refine is None and self.fold == 1
        if many and plain and not self.is_heard:
            shown = presence.present[0].cpu()
            return fuse_locally(self.attention, self.head, finest, shown).unsqueeze(1)
        score, skips = None, None
        if many and features.levels[0].nbytes <= MOST_BYTES:
            score = OwnTerms(self.attention, finest) if self.attention is not None else None
            if self.fusion_decoder is not None:
                skips = SkipTerms(self.fusion_decoder, features.levels)

        def fused(row: Presence) -> Tensor:
            if skips is None:
                return self.fuse(features.levels, row, score)[0]
            return self.attend(finest, row, skips.reference(row), score)

        each = (fused(presence.row(i)) for i in range(len(subsets)))
        return torch.stack([self.head(self.unfold(x)) for x in each])

    def weighers(self) -> tuple[Weigher, ...]:
        """Tell the attention, averaged over channels; an average has none."""
        return () if self.attention is None else (self.attention.weigher,)

    def _modality_heads(self, features: Features) -> tuple[Auxiliary, ...]:
        own = features.original or features
        heads: tuple[Auxiliary, ...] = ()
        for m, name in enumerate(MODALITIES):
            branch, valid = self.unets[m], own.present[0][:, m]
            keep = over(valid, own.levels[0][:, m])
            decoded = [torch.where(keep, level[:, m], 0) for level in own.levels]
            heads += branch.expand.supervise(decoded, f"modality/{name}", valid=valid)
        return heads

    def _average_heads(self, averages: list[Tensor]) -> tuple[Auxiliary, ...]:
        if self.fusion_decoder is not None:
            return self.fusion_decoder.supervise(averages, "average")
        if self.average_head is not None:
            logits = self.average_head(averages[0])
            return (Auxiliary("average", logits, self.final_head_weight),)
        return ()


def enlarging(width: int, factor: int) -> nn.Sequential:
    """Make of each voxel a block of voxels."""
    blocks = nn.ConvTranspose3d(width, width, kernel_size=factor, stride=factor, bias=False)
    return nn.Sequential(blocks, nn.LeakyReLU(0.01))


class Branch(nn.Module):
    """Decode one modality into its finest features: a U-Net without its last word."""

    def __init__(self, widths: list[int], out_channels: int, heads: int, fold: int) -> None:
        super().__init__()
        self.contract = ContractingPath(1, widths, stride=fold)
        self.expand = ExpandingPath(widths, out_channels, heads=heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Give the decoded levels, finest first, and the bottleneck."""
        decoded: list[Tensor] = self.expand(self.contract(x))
        return decoded
