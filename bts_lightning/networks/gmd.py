"""GMD: segment each modality with one U-Net whose norms know the modality, and average."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import COMPLETE, MODALITIES, SUBSETS, subset_name
from bts_lightning.networks.backbone import Auxiliary, Backbone, Features, Output, over
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.presence import Presence, is_nobody, stack_pyramids

GROUPS = 8  # of each norm


class GMD(Backbone):
    """Share the convolutions of a U-Net between the modalities and give each its own norms.

    Wang et al.: Gradient-Guided Modality Decoupling for Missing-Modality Robustness, AAAI 2024,
    arXiv 2402.16318. Official code: github.com/HaoWang420/Gradient-guided-Modality-Decoupling at
    90e482f (no licence; nothing was copied).

    Each modality is segmented alone; the prediction is the mean of the logits of those present. A
    step of training predicts from all 15 subsets, so give it all that a case has
    (`availability.Complete`): of what was dropped it learns nevertheless. The surgery on the
    gradients of these predictions, after which the method is named, is `task.gradients=surgery`.

    Deviations: none in the network. The head meets the mean of the features where theirs makes
    four maps and averages these; it is linear, so this differs by rounding alone.

    Args:
        width: channels of the finest level, a multiple of 8; they double with each halving.
        out_channels: 3 for regions, 4 for labels.

    Example:
        >>> net = GMD(width=8).eval()
        >>> present = torch.tensor([[False, True, False, True]])
        >>> net(torch.randn(1, 4, 32, 32, 32), present).logits.shape
        torch.Size([1, 3, 32, 32, 32])
    """

    divisor = 16
    fused_levels = (0,)
    learns_from_dropped = True
    skip_absent = True
    least_width = GROUPS

    def __init__(self, *, width: int = 16, out_channels: int = 3) -> None:
        super().__init__(out_channels, width=width)
        if width % GROUPS:
            nearest = max(GROUPS, round(width / GROUPS) * GROUPS)
            raise ConfigError(f"width {width} is not a multiple of {GROUPS}; nearest: {nearest}")
        self.unet = UNet(width)
        self.norms = Modules(self.unet.make_norms() for _ in MODALITIES)
        self.head = nn.Conv3d(width, out_channels, kernel_size=1)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink: the tests use them."""
        return {"width": GROUPS}

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Run the whole U-Net on each modality: only the mean is left to do."""
        # Data-parallel training waits for the norms of each modality, so there all of them run.
        presence = Presence([present], read=not self.training)

        def encode(m: int) -> tuple[Tensor] | None:
            return (
                None
                if is_nobody(presence.rows(m))
                else (self.unet(image[:, m : m + 1], self.norms[m]),)
            )

        return stack_pyramids(encode)

    def decode(self, features: Features) -> Output:
        """Average what is present, and in training predict from every subset of what is there."""
        x = average(features.selected(0), features.present[0])
        output = Output(self.head(x), embedding=x)
        if not self.training or not features.heads:
            return output
        share = 1 / len(SUBSETS)
        return replace(output, weight=share, auxiliary=tuple(self.incomplete(features, share)))

    def incomplete(self, features: Features, weight: float) -> Iterable[Auxiliary]:
        """Predict from the 14 incomplete subsets, each for the samples that have all of it."""
        own = features.original or features
        maps = self.maps(replace(own, present=(features.real,)))
        for subset in SUBSETS:
            if subset != COMPLETE:
                seen = features.real & features.real.new_tensor(subset)
                whole = seen.sum(dim=1) == sum(subset)
                # PASSION knows the heads of single modalities by their name.
                name = f"{'modality' if sum(subset) == 1 else 'subset'}/{subset_name(subset)}"
                yield Auxiliary(name, average(maps, seen), weight=weight, valid=whole)

    def decode_subsets(self, features: Features, subsets: Tensor) -> Tensor:
        """Average the predictions of single modalities: they are made once for all subsets."""
        maps = self.maps(features)
        return torch.stack([average(maps, features.present[0] & subset) for subset in subsets])

    def maps(self, features: Features) -> Tensor:
        """Give the logits of each modality alone, B×M×C×D×H×W."""
        x = features.selected(0)
        return torch.unflatten(self.head(x.flatten(0, 1)), 0, x.shape[:2])


class UNet(nn.Module):
    """The convolutions of a U-Net, two a step; whoever calls it brings the norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The deepest level is no wider than the one above: nothing narrows it on the way up.
        skips = [width, 2 * width, 4 * width, 8 * width]
        widths = [*skips, skips[-1]]
        self.down = Modules(two(a, b, b) for a, b in zip([1, *widths[:-1]], widths, strict=True))
        self.up = Modules(two(2 * skip, skip, max(width, skip // 2)) for skip in reversed(skips))

    def make_norms(self) -> Modules[nn.GroupNorm]:
        """Make a norm for each convolution, in the order of their use."""
        steps = [*self.down, *self.up]
        return Modules(nn.GroupNorm(GROUPS, each.out_channels) for step in steps for each in step)

    def forward(self, x: Tensor, norms: Iterable[nn.GroupNorm]) -> Tensor:
        """Give the finest features, B×C×D×H×W."""
        own = iter(norms)
        levels = [convolved(x, self.down[0], own)]
        for down in self.down[1:]:
            levels.append(convolved(F.max_pool3d(levels[-1], kernel_size=2), down, own))
        x = levels.pop()
        for up in self.up:
            x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)
            x = convolved(torch.cat([levels.pop(), x], dim=1), up, own)
        return x


def two(inputs: int, middle: int, outputs: int) -> Modules[nn.Conv3d]:
    return Modules(
        nn.Conv3d(before, after, kernel_size=3, padding=1)
        for before, after in ((inputs, middle), (middle, outputs))
    )


def convolved(x: Tensor, step: Modules[nn.Conv3d], norms: Iterator[nn.GroupNorm]) -> Tensor:
    for convolution in step:
        x = F.relu(next(norms)(convolution(x)))
    return x


def average(x: Tensor, seen: Tensor) -> Tensor:
    """Average B×M×C×D×H×W over the modalities that may be seen, B×M; zero where there are none."""
    total = torch.where(over(seen, x), x, 0).sum(dim=1)  # B C D H W
    return total / over(seen.sum(dim=1).clamp(min=1), total)
