"""mmFormer: transformers within each modality, then across those that are present."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.attention import TransformerLayer, to_tokens, to_volume
from bts_lightning.networks.backbone import Backbone, Features, Output
from bts_lightning.networks.presence import encode_each
from bts_lightning.networks.pyramid import (
    Encoder,
    ModalityDecoder,
    bottleneck,
    enlarged_head,
    enlarging,
    initialise,
    joining,
    modality_auxiliaries,
    to_maps,
)

# The order of the official code, which only `legacy_token_layout` depends on: FLAIR, T1c, T1, T2.
OFFICIAL_ORDER = [MODALITIES.index(name) for name in ("flair", "t1c", "t1", "t2")]
# Levels of `Features`: four fine ones, the encoder's deepest, and that one after its transformer.
RAW, TOKENS = 4, 5


class TokenPyramid(Backbone):
    """mmFormer's encoders, transformers within each modality, and decoder; others fuse anew.

    A subclass adds what `fuse_tokens` and `fuse` need, then calls `add_decoder`.

    Args:
        width: channels of the finest level.
        patch: edge of the cube of voxels that the position tables are made for; the network takes
            no other.
        token_width: channels of a token.
        hidden: hidden channels of the transformers' perceptrons.
    """

    divisor = 16
    learns_from_dropped = True  # the head of single modalities sees all that the case has
    fused_levels: tuple[int, ...] = (0, 1, 2, 3, TOKENS)

    def __init__(
        self,
        *,
        width: int,
        patch: int,
        token_width: int,
        heads: int,
        hidden: int,
        dropout: float,
        out_channels: int,
    ) -> None:
        super().__init__(
            out_channels, width=width, token_width=token_width, heads=heads, hidden=hidden
        )
        self.bind(patch)
        if token_width % heads:
            raise ConfigError(f"token_width {token_width} is not a multiple of heads {heads}")
        self.widths = [width * 2**level for level in range(5)]
        self.tokens = (patch // self.divisor) ** 3

        def transformer() -> TransformerLayer:
            return TransformerLayer(token_width, heads=heads, hidden=hidden, dropout=dropout)

        self.encoders = nn.ModuleList(Encoder(self.widths, order="pre") for _ in MODALITIES)
        self.embed = nn.ModuleList(nn.Conv3d(self.widths[-1], token_width, 1) for _ in MODALITIES)
        self.positions = nn.ParameterList(
            torch.zeros(1, self.tokens, token_width) for _ in MODALITIES
        )
        self.within = nn.ModuleList(transformer() for _ in MODALITIES)
        self.across = transformer()

    @abstractmethod
    def fuse_tokens(self, features: Features) -> Tensor:
        """Fuse the deepest level, B×width×d×h×w."""

    @abstractmethod
    def fuse(self, features: Features, level: int) -> Tensor | None:
        """Fuse a finer level for the decoder; None where it gets nothing."""

    def add_decoder(self) -> None:
        """Build what comes after the fusions."""
        widths = self.widths
        self.enlarge = nn.ModuleList(enlarging(2 * w, w, order="pre") for w in widths[:-1])
        self.join = nn.ModuleList(joining(w, order="pre") for w in widths[:-1])
        self.head = nn.Conv3d(widths[0], self.out_channels, 1)
        self.coarse_heads = nn.ModuleList(nn.Conv3d(w, self.out_channels, 1) for w in widths[1:])
        self.modality_decoder = ModalityDecoder(widths, self.out_channels, order="pre")

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 4, "patch": 32, "token_width": 16, "heads": 2, "hidden": 32}

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        levels = encode_each(self.encoders, image)
        raw = levels[RAW]
        attended = [
            to_volume(within(to_tokens(embed(raw[:, m])) + position), raw.shape[3:])
            for m, (embed, position, within) in enumerate(
                zip(self.embed, self.positions, self.within, strict=True)
            )
        ]
        return *levels, torch.stack(attended, dim=1)

    def decode(self, features: Features) -> Output:
        x = self.fuse_tokens(features)
        coarse = {RAW: x}
        for level in reversed(range(RAW)):
            x = self.enlarge[level](x)
            fused = self.fuse(features, level)
            x = self.join[level](x if fused is None else torch.cat([fused, x], dim=1))
            coarse[level] = x
        logits = self.head(x)
        if not self.training:
            return Output(logits, embedding=x)
        deep = tuple(
            enlarged_head(f"deep/{level}", to_maps(head(coarse[level])), 2**level)
            for level, head in enumerate(self.coarse_heads, start=1)
        )
        modalities = modality_auxiliaries(self.modality_decoder, features, range(RAW + 1))
        return Output(logits, auxiliary=modalities + deep, embedding=x, fused=coarse[RAW])


class MMFormer(TokenPyramid):
    """Attend over the tokens of each modality, then over the tokens of all.

    Zhang et al.: mmFormer: Multimodal Medical Transformer for Incomplete Multimodal Learning of
    Brain Tumor Segmentation, MICCAI 2022. Official code: github.com/YaoZhang93/mmFormer at b18663a
    (Apache-2.0; nothing was copied).

    Deviations:
        `legacy_token_layout=False`: the tokens of one place in the four modalities meet in one
        voxel. The official code views them without regrouping, so that a voxel receives four
        neighbouring tokens of one modality; `True` repeats that, as official weights need.
        Left out are four 1³ convolutions (262,656 parameters) that the official code never uses.
        Heads of single modalities and of deep supervision are computed in training only.

    Args:
        width: channels of the finest level.
        patch: edge of the cube of voxels that the position tables are made for; the network takes
            no other.
        token_width: channels of a token.
        hidden: hidden channels of the transformers' perceptrons.

    Example:
        >>> net = MMFormer(**MMFormer.small()).eval()
        >>> present = torch.tensor([[True, False, True, True]])
        >>> net(torch.randn(1, 4, 32, 32, 32), present).logits.shape
        torch.Size([1, 4, 32, 32, 32])
    """

    def __init__(
        self,
        *,
        width: int = 8,
        patch: int = 128,
        token_width: int = 512,
        heads: int = 8,
        hidden: int = 4096,
        dropout: float = 0.1,
        legacy_token_layout: bool = False,
        out_channels: int = 4,
    ) -> None:
        super().__init__(
            width=width,
            patch=patch,
            token_width=token_width,
            heads=heads,
            hidden=hidden,
            dropout=dropout,
            out_channels=out_channels,
        )
        self.legacy_token_layout = legacy_token_layout
        modalities = len(MODALITIES)
        self.gather = nn.Conv3d(modalities * token_width, modalities * self.widths[-1], 1)
        # The fusions alone see zeros beyond the border, all other convolutions a mirror image.
        self.fusions = nn.ModuleList(
            bottleneck(modalities * w, w, w, order="pre", border="zeros") for w in self.widths
        )
        self.add_decoder()
        initialise(self, nn.Conv3d)

    def fuse_tokens(self, features: Features) -> Tensor:
        fused: Tensor = self.fusions[-1](self.attend_across(features.selected(TOKENS)))
        return fused

    def fuse(self, features: Features, level: int) -> Tensor:
        fused: Tensor = self.fusions[level](features.selected(level).flatten(1, 2))
        return fused

    def attend_across(self, modalities: Tensor) -> Tensor:
        """Let the tokens of all modalities attend to each other; absent ones are zeros that answer.

        Their positions are added too, as published: no attention mask hides them.
        """
        order = OFFICIAL_ORDER if self.legacy_token_layout else range(len(MODALITIES))
        tokens = torch.cat([to_tokens(modalities[:, m]) for m in order], dim=1)
        positions = torch.cat([self.positions[m] for m in order], dim=1)
        tokens = self.across(tokens + positions)  # B (M N) C
        size = modalities.shape[3:]
        if self.legacy_token_layout:
            volume = torch.unflatten(tokens, 1, (size.numel(), -1)).flatten(2)  # B N (4 C)
        else:
            each = torch.unflatten(tokens, 1, (-1, size.numel()))  # B M N C
            volume = each.transpose(1, 2).flatten(2)  # B N (M C)
        gathered: Tensor = self.gather(to_volume(volume, size))
        return gathered
