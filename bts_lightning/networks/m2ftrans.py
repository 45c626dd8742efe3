"""M2FTrans: tokens of a fusion look at those modalities that are there, and steer a decoder."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.attention import SelfAttention, perceptron_branch, to_volume
from bts_lightning.networks.backbone import Backbone, Features, Output, Weigher, over
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.presence import encode_each
from bts_lightning.networks.pyramid import (
    Encoder,
    ModalityDecoder,
    Unit,
    bottleneck,
    enlarged_head,
    enlarging,
    initialise,
    joining,
    modality_auxiliaries,
    to_maps,
)

# Levels of `Features`: four fine ones, the encoder's deepest, then that one after each layer of the
# transformer. From level ATTENTIVE on, channels of all modalities are fused by attention.
ATTENTIVE, DEEP = 3, 4


class M2FTrans(Backbone):
    """Fuse modalities through tokens of their own, in a transformer that hides what is absent.

    Shi et al.: M²FTrans: Modality-Masked Fusion Transformer for Incomplete Multi-Modality Brain
    Tumor Segmentation, IEEE JBHI 2024. Official code: github.com/Jun-Jie-Shi/M2FTrans at 03a0b28
    (MIT; nothing was copied). The defaults are those of its second version; the first has
    `width=16` and `patch=80`.

    The tokens of a modality see that modality alone, so `encode` runs them through the transformer
    once for all subsets; `decode` runs the tokens of the fusion. How these look at each place of a
    modality in the first layer weighs its features at every level.

    Deviations, none of which changes a number:
        Each sample has its own `present`. Heads of single modalities and of deep supervision are
        computed in training only. Where an alignment fills an absent modality at a finer level
        alone, its features are weighed as those present are on average.

    Args:
        width: channels of the finest level; a token has 16 times as many.
        patch: edge of the cube of voxels that the position tables are made for; the network takes
            no other.
        heads: of the transformer.
        hidden: hidden channels of the transformer's perceptrons.
        depth: layers of the transformer.

    Example:
        >>> net = M2FTrans(**M2FTrans.small()).eval()
        >>> present = torch.tensor([[True, False, True, True]])
        >>> net(torch.randn(1, 4, 32, 32, 32), present).logits.shape
        torch.Size([1, 4, 32, 32, 32])
    """

    divisor = 16
    learns_from_dropped = True  # the head of single modalities sees all that the case has

    def __init__(
        self,
        *,
        width: int = 8,
        patch: int = 128,
        heads: int = 8,
        hidden: int = 4096,
        depth: int = 3,
        dropout: float = 0.1,
        out_channels: int = 4,
    ) -> None:
        super().__init__(out_channels, width=width, heads=heads, hidden=hidden, depth=depth)
        self.bind(patch)
        widths = [width * 2**level for level in range(DEEP + 1)]
        deepest, modalities = widths[DEEP], len(MODALITIES)
        if deepest % heads:
            raise ConfigError(f"16 · width = {deepest} is not a multiple of heads {heads}")
        self.fused_levels = tuple(range(DEEP + 1 + depth))
        tokens = (patch // self.divisor) ** 3

        self.weigher = Weigher("attention", DEEP)
        self.encoders = nn.ModuleList(Encoder(widths) for _ in MODALITIES)
        self.positions = nn.ParameterList(torch.zeros(1, tokens, deepest) for _ in MODALITIES)
        self.fusion_positions = nn.Parameter(torch.zeros(1, tokens, deepest))
        self.fusion = nn.Parameter(torch.randn(1, tokens, deepest))
        self.layers = Modules(FusionLayer(deepest, heads, hidden, dropout) for _ in range(depth))
        self.attentive = nn.ModuleList(ChannelTransformer(w, dropout) for w in widths[ATTENTIVE:])
        self.plain = nn.ModuleList(bottleneck(modalities * w, w, w) for w in widths[:ATTENTIVE])
        self.join = nn.ModuleList(joining(w) for w in widths)
        self.enlarge = nn.ModuleList(enlarging(2 * w, w) for w in widths[:DEEP])
        self.head = nn.Conv3d(width, out_channels, kernel_size=1)
        self.coarse_heads = nn.ModuleList(
            nn.Sequential(Unit(w, width, kernel=1), nn.Conv3d(width, out_channels, 1))
            for w in widths
        )
        self.modality_decoder = ModalityDecoder(widths, out_channels)
        initialise(self, nn.Conv3d)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 4, "patch": 32, "heads": 2, "hidden": 32, "depth": 2}

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        levels = encode_each(self.encoders, image)
        deep = levels[DEEP]
        tokens = self.located(deep).flatten(0, 1)  # (B M) N C
        states = []
        for layer in self.layers:
            tokens = layer(tokens)
            states.append(tokens.mT.reshape(deep.shape))
        return *levels, *states

    def weighers(self) -> tuple[Weigher, ...]:
        """Tell how the fusion looks at each place, summed over its tokens and heads."""
        return (self.weigher,)

    def decode(self, features: Features) -> Output:
        fused, weights = self.fuse(features)
        x = fused
        states = [x]
        for level in reversed(range(DEEP + 1)):
            if level < DEEP:
                x = self.enlarge[level](x)
                states.insert(0, x)
            gathered = self.gather(level, features, weights, x)
            x = self.join[level](torch.cat([gathered, x], dim=1))
        logits = self.head(x)
        if not self.training:
            return Output(logits, embedding=x)
        # As published, a head reads what comes from below, before its own level joins.
        coarse = tuple(
            enlarged_head(f"deep/{level}", to_maps(head(state)), 2**level)
            for level, (head, state) in enumerate(zip(self.coarse_heads, states, strict=True))
        )
        modalities = modality_auxiliaries(self.modality_decoder, features, range(DEEP + 1))
        return Output(logits, auxiliary=modalities + coarse, embedding=x, fused=fused)

    def fuse(self, features: Features) -> tuple[Tensor, Tensor]:
        """Run the fusion's tokens: what they become, B×C×d×h×w, and how they look, B×M×d×h×w."""
        size = features.levels[DEEP].shape[3:]
        tokens = (self.fusion + self.fusion_positions).expand(features.real.shape[0], -1, -1)
        looks = []
        for level, layer in enumerate(self.layers, start=DEEP):
            states = features.selected(level)
            modalities = self.located(states) if level == DEEP else states.flatten(3).mT
            tokens, look = layer.fuse(tokens, modalities, features.present[level])
            looks.append(look)
        weights = torch.unflatten(looks[0].detach(), 2, size)
        if self.weigher.listener:
            self.weigher.listener(weights)
        # An alignment may fill an absent modality at a finer level alone.
        present = over(features.present[DEEP], weights)
        mean = torch.where(present, weights, 0).sum(dim=1, keepdim=True)
        mean = mean / present.sum(dim=1, keepdim=True)
        return to_volume(tokens, size), torch.where(present, weights, mean)

    def located(self, deep: Tensor) -> Tensor:
        """Turn the deepest features into tokens, B×M×N×C, and add their positions."""
        return deep.flatten(3).mT + torch.stack(list(self.positions), dim=1)

    def gather(self, level: int, features: Features, weights: Tensor, x: Tensor) -> Tensor:
        """Fuse the weighed modalities of a level; at the deepest, as the transformer left them."""
        source = level if level < DEEP else self.fused_levels[-1]
        modalities = features.selected(source)  # B M C D H W
        grown = F.interpolate(weights, modalities.shape[3:], mode="nearest").unsqueeze(2)
        weighed = modalities * grown.to(modalities.dtype)
        if level < ATTENTIVE:
            fused: Tensor = self.plain[level](weighed.flatten(1, 2))
        else:
            fused = self.attentive[level - ATTENTIVE](x, weighed, features.present[source])
        return fused


class FusionLayer(nn.Module):
    """Attend and transform: a modality by itself, or the fusion over all that is there."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads=heads, dropout=dropout)
        self.drop = nn.Dropout(dropout)  # a second one after the attention's own, as published
        self.transform = perceptron_branch(width, hidden=hidden, dropout=dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Take the tokens of one modality, B×N×C."""
        return self.add(tokens, self.attention(self.norm(tokens)))

    def fuse(self, tokens: Tensor, modalities: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Let the fusion's tokens, B×N×C, look at themselves and at B×M×N×C; both are returned.

        The second is how much they look at each, B×M×N, summed over tokens and heads.
        """
        blocks = self.norm(torch.cat([modalities, tokens.unsqueeze(1)], dim=1))  # B M+1 N C
        there = torch.cat([present, torch.ones_like(present[:, :1])], dim=1)
        sees = there.repeat_interleave(tokens.shape[1], dim=1)[:, None, None]
        found, looks = self.attention.explained(blocks.flatten(1, 2), sees, blocks[:, -1])
        shares = torch.unflatten(looks.sum(dim=(1, 2)), 1, blocks.shape[1:3])
        return self.add(tokens, found), shares[:, :-1]

    def add(self, tokens: Tensor, found: Tensor) -> Tensor:
        tokens = tokens + self.drop(found)
        transformed: Tensor = tokens + self.transform(tokens)
        return transformed


class ChannelTransformer(nn.Module):
    """Let the channels of the fusion look at those of all modalities, twice."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.first = ChannelAttention(width, dropout)
        self.between = ChannelPerceptron(width)  # one for all modalities
        self.second = ChannelAttention(width, dropout)

    def forward(self, x: Tensor, modalities: Tensor, present: Tensor) -> Tensor:
        """Take the fusion B×C×D×H×W and modalities B×M×C×D×H×W."""
        x = self.first(x, modalities, present)
        changed = torch.unflatten(self.between(modalities.flatten(0, 1)), 0, present.shape)
        fused: Tensor = self.second(x, changed, present)
        return fused


class ChannelAttention(nn.Module):
    """Attend with whole maps as tokens: a channel of the fusion asks all those of modalities."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.query, self.out = channel_map(width), channel_map(width)
        self.keys = nn.ModuleList(channel_map(width) for _ in MODALITIES)
        self.values = nn.ModuleList(channel_map(width) for _ in MODALITIES)
        self.drop = nn.Dropout(dropout)
        self.transform = ChannelPerceptron(width)

    def forward(self, x: Tensor, modalities: Tensor, present: Tensor) -> Tensor:
        each = modalities.unbind(dim=1)
        keys = [key(m) for key, m in zip(self.keys, each, strict=True)]
        values = [value(m) for value, m in zip(self.values, each, strict=True)]
        sees = present.repeat_interleave(x.shape[1], dim=1).unsqueeze(1)  # B 1 (M C)
        parts = [self.query(x), torch.cat(keys, dim=1), torch.cat(values, dim=1)]
        # The exporter to ONNX knows attention with heads alone.
        if torch.compiler.is_exporting():
            parts, sees = [part.unsqueeze(1) for part in parts], sees.unsqueeze(1)
        query, key, value = (part.flatten(-3) for part in parts)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=sees)
        x = x + self.drop(self.out(found.view(x.shape)))
        transformed: Tensor = self.transform(x)
        return transformed


class ChannelPerceptron(nn.Module):
    """Transform each voxel and its neighbours in four times as many channels; add, and activate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 4 * width
        self.body = nn.Sequential(
            nn.Conv3d(width, wide, kernel_size=1),
            ChannelNorm(wide),
            nn.GELU(),
            nn.Conv3d(wide, wide, kernel_size=3, padding=1, groups=width),
            ChannelNorm(wide),
            nn.GELU(),
            nn.Conv3d(wide, width, kernel_size=1),
            ChannelNorm(width),
        )
        self.activate = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        transformed: Tensor = self.activate(x + self.body(x))
        return transformed


class ChannelNorm(nn.LayerNorm):
    """Normalise the channels of each voxel."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def channel_map(width: int) -> nn.Sequential:
    """Mix the channels of a voxel, look around in each, and mix again."""
    return nn.Sequential(
        nn.Conv3d(width, width, kernel_size=1),
        ChannelNorm(width),
        nn.GELU(),
        nn.Conv3d(width, width, kernel_size=3, padding=1, groups=width),
        ChannelNorm(width),
        nn.GELU(),
        nn.Conv3d(width, width, kernel_size=1),
        ChannelNorm(width),
    )
