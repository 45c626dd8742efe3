"""ACN: the U-Net of a path in adversarial co-training, for the modalities that it reads."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import parse_subset
from bts_lightning.networks.backbone import Backbone, Features, Output
from bts_lightning.networks.modules import Modules

# Residual blocks of each level, finest first; all normalise in groups of channels.
BLOCKS = (1, 2, 2, 4)
GROUPS = 8


class ACN(Backbone):
    """Segment from a fixed subset, early fusion; `CoTrainingTask` trains it beside a full path.

    Wang et al.: ACN: Adversarial Co-training Network for Brain Tumor Segmentation with Missing
    Modalities, MICCAI 2021. Official code: github.com/Wangyixinxin/ACN at 0643c57 (no licence;
    nothing was copied).

    Deviations: left out is a variational branch (4,876,628 weights at 160×192×128) that is computed
    there while its losses are not used. In evaluation dropout is off; there the missing path is
    never told that it is evaluated. The maps are background, NCR/NET, ED, ET; there ED, NCR/NET,
    ET, background.

    Args:
        width: channels of the finest level, a multiple of 8.
        reads: the modalities that are its input channels; it knows no others.
        dropout: of the deepest features.

    Example:
        >>> net = ACN(width=8, reads="t1c+flair").eval()
        >>> present = torch.tensor([[False, True, False, True]])
        >>> net(torch.randn(1, 4, 16, 16, 16), present).logits.shape
        torch.Size([1, 4, 16, 16, 16])
    """

    divisor = 8
    least_width = GROUPS

    def __init__(
        self,
        *,
        width: int = 16,
        reads: str = "t1+t1c+t2+flair",
        dropout: float = 0.2,
        out_channels: int = 4,
    ) -> None:
        super().__init__(out_channels, width=width)
        if width % GROUPS:
            raise ConfigError(
                f"width is {width}; {type(self).__name__} needs a multiple of {GROUPS}"
            )
        self.reads = [m for m, is_read in enumerate(parse_subset(reads)) if is_read]
        widths = [width * 2**level for level in range(len(BLOCKS))]
        fine, coarse = widths[:-1], widths[1:]
        self.deepest = widths[-1]
        self.stem = nn.Sequential(
            nn.Conv3d(len(self.reads), width, 3, padding=1),
            *(Residual(width) for _ in range(BLOCKS[0])),
        )
        self.contract = Modules(
            nn.Sequential(
                nn.Conv3d(a, b, 3, stride=2, padding=1), *(Residual(b) for _ in range(count))
            )
            for a, b, count in zip(fine, coarse, BLOCKS[1:], strict=True)
        )
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in zip(fine, coarse, strict=True))
        self.join = nn.ModuleList(Residual(w) for w in fine)
        self.head = nn.Conv3d(width, out_channels, 1)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 8, "reads": "t1+t1c+t2+flair"}

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Keep the image: nothing is computed before the modalities meet."""
        return (image.unsqueeze(2),)

    def decode(self, features: Features) -> Output:
        """Run the whole network on the channels that may be seen."""
        return self.decode_with_depth(features)[0]

    def decode_with_depth(self, features: Features) -> tuple[Output, Tensor]:
        """Also give the deepest features, which co-training compares."""
        levels, _ = self.contracted(self.seen(features))
        return self.predicted(self.expanded(levels, self.dropout(levels[-1]))), levels[-1]

    def seen(self, features: Features) -> Tensor:
        """Give the channels that the stem reads."""
        return features.selected(0).squeeze(2)[:, self.reads]

    def contracted(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Give the features of each level, and what the strided convolutions made of the finer."""
        levels = [self.stem(x)]
        halved: list[Tensor] = []
        for halve, *blocks in self.contract:
            x = halve(levels[-1])
            halved.append(x)
            for block in blocks:
                x = block(x)
            levels.append(x)
        return levels, halved

    def expanded(self, levels: list[Tensor], x: Tensor) -> list[Tensor]:
        """Decode from what stands in for the deepest level; finest first."""
        decoded = [x]
        for level in reversed(range(len(self.up))):
            enlarged = F.interpolate(self.up[level](decoded[0]), scale_factor=2, mode="nearest")
            decoded.insert(0, self.join[level](enlarged + levels[level]))
        return decoded

    def predicted(self, decoded: list[Tensor]) -> Output:
        """Read the prediction off the finest."""
        return Output(self.head(decoded[0]), embedding=decoded[0])


class Residual(nn.Module):
    """Add to the input what two normalised, activated convolutions make of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            *(
                layer
                for _ in range(2)
                for layer in (
                    nn.GroupNorm(GROUPS, width),
                    nn.ReLU(),
                    nn.Conv3d(width, width, 3, padding=1),
                )
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.change(x)
        return changed
