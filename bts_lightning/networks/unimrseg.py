"""UniMRSeg: one encoder for whatever is there, and adapters that make up for what is not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Auxiliary, Backbone, Features, Output, over, recorded
from bts_lightning.networks.convolutions import OneDNN
from bts_lightning.networks.flat_attention import FlatAttention
from bts_lightning.networks.likeness import agreement, contrast, distance
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.presence import (
    Presence,
    full_precision,
    is_nobody,
    pick,
    spread,
    without_autocast,
)
from bts_lightning.networks.pyramid import to_maps
from bts_lightning.networks.repainting import damaged, repaired

# Of the pyramid at the deepest level. At 128³ the widest meets data with its centre alone.
DILATIONS = (1, 6, 12, 18)
HEADS = (2, 4, 4, 8, 8)
Stage = Literal["reconstruction", "contrast", "adapters"]


class UniMRSeg(Backbone):
    """Run a complete image through one U-Net; on others, adapters at each level add what is amiss.

    Zhao et al.: UniMRSeg: Unified Modality-Relax Segmentation via Hierarchical Self-Supervised
    Compensation, NeurIPS 2025, arXiv 2509.16170. Official code:
    github.com/Xiaoqi-Zhao-DLUT/UniMRSeg at 7da4b7c (no licence; nothing was copied).

    The deepest level is as large as the one above it. The released decoder enlarges it nevertheless
    and cuts the centre out: what is deep is shown at twice its size, away from its place, and its
    outer seven eighths are never read. All published numbers have it so; `aligned` mends it.

    In the last stage a complete image teaches the decoder by its label; the prediction from it and
    its levels teach the adapters, on the same image without some modalities, and no label does. So
    give it all that a case has (`availability.Complete`). A case that lacks something has nothing
    but its label to learn from.

    Deviations:
        Statistics of the frozen encoder stay as they are; `statistics="released"` lets a complete
        image meet those of its own batch and move the others, as officially. There all subsets of
        a step count; here `pairs` may take some of them. On sides of 7 voxels or less the windows
        of the adapters are filled up; the official ones shrink and read their table wrongly.
        In the second stage batch normalisation sees complete and incomplete images apart,
        officially together. Each case of a batch is the other of one, and in training mode;
        officially the second case of two is that of the first, in evaluation mode.

    Args:
        width: channels of the finest level, even.
        aligned: leave the deepest level where it belongs.
        stage: what it learns. By `reconstruction` it paints its images, which come in any order,
            with channels and voxels taken away; the head learns nothing. By `contrast` it predicts
            from what is present and from all that a case has, and pulls the levels of both
            together, away from another case of the batch, which needs two. Last come `adapters`
            to an encoder that is frozen, and only these two stages segment.
        contrast: the weight of that pull; 0 predicts from what is present alone.
        pairs: how many of the 7 pairs of incomplete subsets a step learns from; they are drawn.
            With more than one, each is computed once more on the way back, to spare its memory.
        level_weight: of the distance between the levels of an incomplete and a complete image.
        statistics: see above.
        out_channels: 3 for regions, 4 for labels.

    Example:
        >>> net = UniMRSeg(width=4).eval()
        >>> present = torch.tensor([[False, True, False, True]])
        >>> net(torch.randn(1, 4, 16, 16, 16), present).logits.shape
        torch.Size([1, 3, 16, 16, 16])
    """

    divisor = 8
    least_width = 2
    subsets: Tensor

    def __init__(
        self,
        *,
        width: int = 64,
        aligned: bool = False,
        stage: Stage = "adapters",
        contrast: float = 1.0,
        pairs: int = 7,
        level_weight: float = 0.2,
        statistics: Literal["frozen", "released"] = "frozen",
        out_channels: int = 3,
    ) -> None:
        super().__init__(out_channels, width=width)
        incomplete = in_pairs()
        if width % 2:
            raise ConfigError(f"width is {width}; UniMRSeg needs an even one")
        if not 1 <= pairs <= len(incomplete):
            raise ConfigError(f"pairs is {pairs}; give 1 to {len(incomplete)}")
        self.aligned = aligned
        self.stage: Stage = stage
        self.learns_from_dropped = stage == "contrast"
        self.contrast = contrast
        self.pairs = pairs
        self.level_weight = level_weight
        self.moves_statistics = statistics == "released"
        self.widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        inputs = [len(MODALITIES), *self.widths[:-1]]
        doubles = zip(inputs[:-1], self.widths[:-1], strict=True)
        self.stages = Modules[nn.Module](
            [*(double(a, b) for a, b in doubles), Surroundings(self.widths[-1])]
        )
        ups = [(2 * skip, max(width, skip // 2)) for skip in reversed(self.widths[:-1])]
        self.up = Modules(double(a, b) for a, b in ups)
        self.head = nn.Conv3d(width, out_channels, kernel_size=1)
        self.register_buffer("subsets", incomplete, persistent=False)
        if stage == "reconstruction":
            self.paint = nn.Conv3d(width, len(MODALITIES), kernel_size=1)
        if stage == "adapters":
            adapters = zip(inputs, self.widths, HEADS, strict=True)
            self.adapters = Modules(Adapter(a, b, heads=heads) for a, b, heads in adapters)
            self.stages.requires_grad_(False)
            self.freeze(True)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 4, "pairs": 1}

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Give the image as its own and only level."""
        return (image.unsqueeze(2),)  # B M 1 D H W

    def decode(self, features: Features) -> Output:
        """Run the whole network, in training as its stage does."""
        image, present = features.selected(0).squeeze(2), features.present[0]
        if self.stage == "adapters":
            return self.decode_adapted(image, present)
        paints = self.training and self.stage == "reconstruction"
        levels = self.plain(damaged(image, present) if paints else image)
        x = self.joined(levels)
        output = Output(self.head(x), embedding=x)
        if paints:
            with without_autocast(x):
                penalties = repaired(self.paint(full_precision(x)), image, present)
            return replace(output, weight=0.0, penalties=penalties)
        if not self.training or not self.contrast:
            return output
        is_complete = features.real.all(dim=1)
        complete = self.plain(replace(features, present=(features.real,)).selected(0).squeeze(2))
        extra = Auxiliary("complete", self.head(self.joined(complete)), valid=is_complete)
        with without_autocast(x):
            apart = contrast(levels, complete, is_complete)
        return replace(output, auxiliary=(extra,), penalties={"contrast": self.contrast * apart})

    def decode_adapted(self, image: Tensor, present: Tensor) -> Output:
        """Decode each row by its own path, and in training compare pairs of subsets with it."""
        is_complete = present.all(dim=1)
        flags = torch.stack([is_complete, ~is_complete], dim=1)
        paths = Presence([flags], read=not recorded)
        levels = self.routed(image, paths)
        x = self.joined(levels)
        output = Output(self.head(x), embedding=x)
        if not self.training or is_nobody(paths.rows(0)):
            return output
        apart = self.consistency(image, levels, output.logits, is_complete)
        return replace(output, penalties=apart)

    def plain(self, x: Tensor) -> list[Tensor]:
        """Give the levels of an image, finest first; the last two are equally large."""
        levels = []
        for level, stage in enumerate(self.stages):
            x = stage(shrunk(x, level))
            levels.append(x)
        return levels

    def joined(self, levels: Sequence[Tensor]) -> Tensor:
        """Decode."""
        *skips, x = levels
        for step, (up, skip) in enumerate(zip(self.up, reversed(skips), strict=True)):
            if step > 0 or not self.aligned:
                x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)
                x = centre(x, skip.shape[2:])
            x = up(torch.cat([skip, x], dim=1))
        return x

    def routed(self, image: Tensor, paths: Presence) -> Sequence[Tensor]:
        """Give the levels of each row by the path that is its own."""
        if image.is_meta:
            return self.complete(image)  # counts what a complete image costs
        if recorded:
            return self.complete(image) if all(recorded[-1]) else self.adapted(image)
        walked = []
        for path, walk in enumerate((self.complete, self.adapted)):
            rows = paths.rows(path)
            if is_nobody(rows):
                continue
            if isinstance(rows, slice):
                return walk(image)
            made = walk(pick(image, rows))
            walked.append([spread(x, rows, len(image)) for x in made])
        return [torch.where(paths.keep(0), a, b) for a, b in zip(*walked, strict=True)]

    def complete(self, image: Tensor) -> list[Tensor]:
        """Give the levels of a complete image."""
        if not (self.training and self.moves_statistics):
            return self.plain(image)
        self.freeze(False)
        try:
            return self.plain(image)
        finally:
            self.freeze(True)

    def freeze(self, is_frozen: bool) -> None:
        """Let the encoder normalise by its statistics as they are, or by those of a batch."""
        for module in self.stages.modules():
            if isinstance(module, Norm):
                module.is_frozen = is_frozen

    def adapted(self, x: Tensor) -> list[Tensor]:
        """Give the levels of an image that lacks something."""
        levels = []
        for level, (stage, adapter) in enumerate(zip(self.stages, self.adapters, strict=True)):
            x = shrunk(x, level)
            with torch.no_grad():  # gradients find their way through the adapters alone
                encoded = stage(x)
            x = adapter(x, encoded)
            levels.append(x)
        return levels

    def consistency(
        self, image: Tensor, levels: Sequence[Tensor], logits: Tensor, is_complete: Tensor
    ) -> dict[str, Tensor]:
        """Compare with complete images the same ones without some modalities."""
        drawn = range(len(self.subsets))
        chosen = self.subsets  # pairs, 2, M
        if self.pairs < len(drawn):
            chosen = chosen[torch.randperm(len(drawn))[: self.pairs].to(chosen.device)]
        spares = self.pairs > 1 and not torch.compiler.is_compiling() and not image.is_meta
        if image.is_meta:
            chosen = chosen[:1]  # counts what is held at a time
        target = to_maps(logits.detach())
        kept = [x.detach() for x in levels]
        total = []
        for pair in chosen:
            given = (image, pair, target, kept, is_complete)
            if spares:
                total.append(
                    checkpoint(
                        self.of_a_pair,
                        *given,
                        use_reentrant=False,
                        preserve_rng_state=False,
                        context_fn=lambda: (nullcontext(), self.once_more()),
                    )
                )
            else:
                total.append(self.of_a_pair(*given))
        # Officially a step adds up what the seven pairs give, each the mean of its two.
        maps, apart = (len(drawn) * torch.stack(total).mean(dim=0)).unbind()
        return {"consistency": maps, "levels": self.level_weight * apart}

    def of_a_pair(
        self,
        image: Tensor,
        pair: Tensor,
        target: Tensor,
        kept: Sequence[Tensor],
        is_complete: Tensor,
    ) -> Tensor:
        """Give the distances of predictions and of levels, averaged over two subsets."""
        both = torch.cat([torch.where(over(s.unsqueeze(0), image), image, 0) for s in pair])
        levels = self.adapted(both)
        logits = self.head(self.joined(levels))
        with without_autocast(image):
            maps = 1 - agreement(to_maps(logits), target.repeat(len(pair), 1, 1, 1, 1))
            far = [distance(x, y) for x, y in zip(levels, kept, strict=True)]
            apart = torch.stack(far).sum(dim=0)
            each = torch.stack([maps, apart])  # 2, subsets × B
            return torch.where(is_complete.repeat(len(pair)), each, 0).mean(dim=1)

    @contextmanager
    def once_more(self) -> Iterator[None]:
        """Compute again what was computed: no statistics move, and convolutions are the same."""
        norms = [module for module in self.modules() if isinstance(module, Norm)]
        before = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            with OneDNN() if self.head.weight.device.type == "cpu" else nullcontext():
                yield
        finally:
            for norm, momentum in zip(norms, before, strict=True):
                norm.momentum = momentum


class Adapter(nn.Module):
    """Add to the levels of the frozen encoder what was learned from the level above, weighed."""

    def __init__(self, inputs: int, width: int, *, heads: int) -> None:
        super().__init__()
        self.match = single(inputs, width)
        self.fuse = single(width, width)
        self.look = FlatAttention(width, heads=heads)

    def forward(self, x: Tensor, encoded: Tensor) -> Tensor:
        more = self.fuse(encoded + self.match(x))
        # One weight for a column across the slices.
        weight = torch.sigmoid(-self.look(more)).unsqueeze(1).unsqueeze(-1)  # B 1 D H 1
        added: Tensor = encoded + weight * more
        return added


class Surroundings(nn.Module):
    """Look around at four distances and at the whole, without shrinking."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.around = Modules(
            nn.Conv3d(width, width, 3, padding=d, dilation=d, bias=False) for d in DILATIONS
        )
        self.whole = nn.Conv3d(width, width, 1, bias=False)
        self.mix = nn.Conv3d((len(DILATIONS) + 1) * width, width, 1, bias=False)
        self.finish = nn.Sequential(Norm(width), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        whole = self.whole(x.mean(dim=(2, 3, 4), keepdim=True)).expand_as(x)
        seen = torch.cat([*(look(x) for look in self.around), whole], dim=1)
        finished: Tensor = self.finish(self.mix(seen))
        return finished


class Norm(nn.BatchNorm3d):
    """Normalise over the batch in training, unless it is frozen."""

    is_frozen = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_frozen:
            return super().forward(x)
        kept = self.running_mean, self.running_var
        return F.batch_norm(x, *kept, self.weight, self.bias, eps=self.eps)


def single(inputs: int, outputs: int) -> nn.Sequential:
    """Convolve, normalise over the batch, activate."""
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, padding=1, bias=False),
        Norm(outputs),
        nn.ReLU(inplace=True),
    )


def double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*single(inputs, outputs), *single(outputs, outputs))


def shrunk(x: Tensor, level: int) -> Tensor:
    """Halve what a level reads, but for the first and the last."""
    return F.max_pool3d(x, kernel_size=2) if 0 < level < len(HEADS) - 1 else x


def centre(x: Tensor, size: Sequence[int]) -> Tensor:
    """Cut the centre out of what is larger than that."""
    for axis, length in enumerate(size, start=2):
        first = -((length - x.shape[axis]) // 2)
        x = x.narrow(axis, first, length)
    return x


def in_pairs() -> Tensor:
    """Give the 14 incomplete subsets as 7 pairs: those lacking one first, then two, then three.

    The order within a size is that of official channels: FLAIR, T1c, T1, T2.
    """
    order = [MODALITIES.index(name) for name in ("flair", "t1c", "t1", "t2")]
    lacking = [set(gone) for size in (1, 2, 3) for gone in combinations(order, size)]
    subsets = torch.tensor([[m not in gone for m in range(len(order))] for gone in lacking])
    return torch.unflatten(subsets, 0, (-1, 2))
