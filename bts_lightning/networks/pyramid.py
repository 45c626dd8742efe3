"""The scaffold of the RFNet family: unit, encoder, decoder and heads of single modalities."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Auxiliary, Features, over
from bts_lightning.networks.presence import full_precision

Order = Literal["post", "pre"]
Border = Literal["reflect", "zeros"]
# Soft-max over background and three or four tumour labels; with others each is a region of its own.
LABEL_CHANNELS = (4, 5)


class Unit(nn.Sequential):
    """Convolve, normalise and activate (`post`, RFNet); `pre` (mmFormer) convolves last."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        order: Order = "post",
        border: Border = "reflect",
    ) -> None:
        convolution = nn.Conv3d(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=kernel // 2,
            padding_mode=border if kernel > 1 else "zeros",
        )
        if order == "post":
            super().__init__(convolution, nn.InstanceNorm3d(outputs), nn.LeakyReLU(0.2))
        else:
            super().__init__(nn.InstanceNorm3d(inputs), nn.LeakyReLU(0.2), convolution)


class Upsample(nn.Upsample):
    """Enlarge trilinearly; the corner voxels keep their place, as in the official networks."""

    def __init__(self, factor: int) -> None:
        super().__init__(scale_factor=factor, mode="trilinear", align_corners=True)


class Encoder(nn.Module):
    """Encode one modality into levels of these widths, each half as large as the one before."""

    def __init__(self, widths: Sequence[int], *, order: Order = "post") -> None:
        super().__init__()
        first: nn.Module = Unit(1, widths[0])
        if order == "pre":
            first = Unit(1, widths[0], order=order)[-1]  # the image itself is left as it is
        down = [Unit(a, b, stride=2, order=order) for a, b in pairwise(widths)]
        self.down = nn.ModuleList([first, *down])
        self.residual = nn.ModuleList(
            nn.Sequential(Unit(w, w, order=order), Unit(w, w, order=order)) for w in widths
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = []
        for down, residual in zip(self.down, self.residual, strict=True):
            x = down(x)
            x = x + residual(x)
            levels.append(x)
        return tuple(levels)


class ModalityDecoder(nn.Module):
    """Segment from the features of one modality; the weights are shared by all four."""

    def __init__(self, widths: Sequence[int], out_channels: int, *, order: Order = "post") -> None:
        super().__init__()
        self.enlarge = nn.ModuleList(enlarging(b, a, order=order) for a, b in pairwise(widths))
        self.join = nn.ModuleList(joining(width, order=order) for width in widths[:-1])
        self.head = nn.Conv3d(widths[0], out_channels, kernel_size=1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.head(self.join_levels(levels))
        return logits

    def join_levels(self, levels: Sequence[Tensor]) -> Tensor:
        """Give what the head reads."""
        x = levels[-1]
        for level in reversed(range(len(self.join))):
            x = self.join[level](torch.cat([self.enlarge[level](x), levels[level]], dim=1))
        return x


def enlarging(coarse: int, fine: int, *, order: Order = "post") -> nn.Sequential:
    """Double the resolution of coarse features and give them the width of the next level."""
    return nn.Sequential(Upsample(2), Unit(coarse, fine, order=order))


def joining(width: int, *, order: Order = "post") -> nn.Sequential:
    """Reduce the features of a level, concatenated with the enlarged ones, to its width."""
    return nn.Sequential(
        Unit(2 * width, width, order=order), Unit(width, width, kernel=1, order=order)
    )


def bottleneck(
    inputs: int, inner: int, outputs: int, *, order: Order = "post", border: Border = "reflect"
) -> nn.Sequential:
    """Chain the three units 1³, 3³, 1³ with which the family fuses concatenated modalities."""
    return nn.Sequential(
        Unit(inputs, inner, kernel=1, order=order),
        Unit(inner, inner, order=order, border=border),
        Unit(inner, outputs, kernel=1, order=order),
    )


def to_maps(logits: Tensor) -> Tensor:
    """Turn logits into probability maps in full precision."""
    logits = full_precision(logits)
    return logits.softmax(dim=1) if logits.shape[1] in LABEL_CHANNELS else logits.sigmoid()


def from_maps(maps: Tensor) -> Tensor:
    """Turn probability maps, enlarged perhaps, back into logits that a loss can take."""
    tiny = torch.finfo(maps.dtype).tiny
    log = maps.clamp_min(tiny).log()
    if maps.shape[1] in LABEL_CHANNELS:
        return log  # the soft-max of log-probabilities is the probabilities
    return log - (1 - maps).clamp_min(tiny).log()


def enlarged_head(name: str, maps: Tensor, factor: int) -> Auxiliary:
    """Supervise coarse probability maps at full size: the maps are enlarged, not their logits."""
    logits = from_maps(maps)
    return Auxiliary(name, from_maps(Upsample(factor)(maps)), coarse=logits)


def modality_auxiliaries(
    decoder: ModalityDecoder, features: Features, levels: Sequence[int]
) -> tuple[Auxiliary, ...]:
    """Segment every modality on its own, also those that dropout removed."""
    if not features.heads:
        return ()
    own = features.original or features
    real = own.real
    pyramid = []
    for level in levels:
        x = own.levels[level]  # B M C D H W
        pyramid.append(torch.where(over(real, x), x, 0).flatten(0, 1))  # (B M) C D H W
    logits = torch.unflatten(decoder(pyramid), 0, real.shape)  # B M C D H W
    return tuple(
        Auxiliary(name=f"modality/{name}", logits=logits[:, m], valid=real[:, m])
        for m, name in enumerate(MODALITIES)
    )


def initialise(net: nn.Module, *kinds: type[nn.Conv3d] | type[nn.Linear]) -> None:
    """Draw the weights of these layers as the family does; biases keep PyTorch's default."""
    for module in net.modules():
        if isinstance(module, kinds):
            nn.init.kaiming_normal_(module.weight)
