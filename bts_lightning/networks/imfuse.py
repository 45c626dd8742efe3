"""IM-Fuse: Mamba blocks fuse the modalities of each level, voxel after voxel."""

import torch
from torch import Tensor, nn

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.attention import to_tokens, to_volume
from bts_lightning.networks.backbone import Features
from bts_lightning.networks.layers import initialise
from bts_lightning.networks.mamba import Mamba
from bts_lightning.networks.mmformer import OFFICIAL_ORDER, RAW, TOKENS, TokenPyramid
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.pyramid import Unit, bottleneck

# Of the block at the deepest level, whose tokens are wide.
MOST_STATES = 256


class IMFuse(TokenPyramid):
    """Read the modalities of each voxel in turn, and write what is fused into a token of its own.

    Pipoli et al.: IM-Fuse: A Mamba-based Fusion Block for Brain Tumor Segmentation with Incomplete
    Modalities, MICCAI 2025. Official code: github.com/AImageLab-zip/IM-Fuse at fbbd48e (no licence;
    nothing was copied).

    A learned token for each voxel of the patch makes a third of the weights, fits no other size,
    and puts the same token on another place of the head in each window. A scan goes through the
    voxels row by row, so the network is not symmetric to mirroring. Nothing of it can be shared
    between subsets: encoders and their transformers alone are computed once.

    Deviations:
        Left out are the parts that the official code never calls: a second block of the deepest
        level and four 1³ convolutions (3,221,504 parameters at full width).
        Heads of single modalities and of deep supervision are computed in training only.

    Args:
        width: channels of the finest level.
        patch: edge of the cube of voxels that all tokens are made for; the network takes no other.
        token_width: channels of a token of the deepest level.
        hidden: hidden channels of the transformers' perceptrons.
        interleaved: the modalities of a voxel stand side by side in the row; otherwise one whole
            modality follows the other.
        mamba_skip: blocks fuse the finer levels too; otherwise modalities are concatenated there.
        first_skip: the decoder sees the finest level of the encoders.

    Example:
        >>> net = IMFuse(**IMFuse.small()).eval()
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
        interleaved: bool = True,
        mamba_skip: bool = True,
        first_skip: bool = True,
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
        self.first = 0 if first_skip else 1
        self.fused_levels = (*range(self.first, RAW), TOKENS)
        self.mix = FusionBlock(token_width, self.tokens, interleaved=interleaved)
        self.fused_position = nn.Parameter(torch.zeros(1, self.tokens, token_width))
        self.gather = nn.Conv3d(token_width, token_width, 1)
        self.deepest = bottleneck(
            token_width, self.widths[-1], self.widths[-1], order="pre", border="zeros"
        )
        skips = range(self.first, RAW)
        self.mixes = Modules(
            FusionBlock(self.widths[level], (patch // 2**level) ** 3, interleaved=interleaved)
            for level in (skips if mamba_skip else ())
        )
        inputs = 1 if mamba_skip else len(MODALITIES)
        # These alone see zeros beyond the border, all other convolutions a mirror image.
        self.fusions = nn.ModuleList(
            bottleneck(inputs * w, w, w, order="pre", border="zeros")
            for w in self.widths[self.first : RAW]
        )
        self.add_decoder()
        if not first_skip:
            self.join[0] = nn.Sequential(
                Unit(width, width, order="pre"), Unit(width, width, kernel=1, order="pre")
            )
        initialise(self)

    def fuse_tokens(self, features: Features) -> Tensor:
        fused: Tensor = self.deepest(self.gathered(features))
        return fused

    def gathered(self, features: Features) -> Tensor:
        """Fuse the tokens of all modalities and let them attend to each other."""
        x = self.mix(features.selected(TOKENS))
        size = x.shape[2:]
        tokens = self.across(to_tokens(x) + self.fused_position)
        gathered: Tensor = self.gather(to_volume(tokens, size))
        return gathered

    def fuse(self, features: Features, level: int) -> Tensor | None:
        if level < self.first:
            return None
        x = features.selected(level)
        skip = level - self.first
        x = self.mixes[skip](x) if len(self.mixes) else x[:, OFFICIAL_ORDER].flatten(1, 2)
        fused: Tensor = self.fusions[skip](x)
        return fused


class FusionBlock(nn.Module):
    """Fuse the maps of four modalities, absent ones zero, into the places of learned tokens."""

    def __init__(self, width: int, voxels: int, *, interleaved: bool) -> None:
        super().__init__()
        self.interleaved = interleaved
        self.fused = nn.Parameter(torch.randn(1, voxels, width))
        self.norm = nn.LayerNorm(width)
        self.mamba = Mamba(width, states=min(width, MOST_STATES))
        self.transform = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Read B×M×C×D×H×W, write B×C×D×H×W."""
        # The scan sees FLAIR first, T1c, T1, T2, as in the official code.
        maps = x[:, OFFICIAL_ORDER].flatten(3).transpose(2, 3)  # B M V C
        tokens = torch.cat([maps, self.fused.expand(x.shape[0], -1, -1).unsqueeze(1)], dim=1)
        if self.interleaved:
            tokens = tokens.transpose(1, 2)  # B V M C
        shape = tokens.shape[1:3]
        row = tokens.flatten(1, 2)
        row = row + self.mamba(self.norm(row))
        row = row + self.transform(row)
        tokens = torch.unflatten(row, 1, shape)
        return to_volume(tokens[:, :, -1] if self.interleaved else tokens[:, -1], x.shape[3:])
