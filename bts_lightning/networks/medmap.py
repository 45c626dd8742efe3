"""MedMAP: align the features of the modalities to an anchor that stands in for absent ones."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES, Modality
from bts_lightning.networks.backbone import Backbone, Features, Output, over


class MedMAP(Backbone):
    """Wrap any network that encodes each modality alone.

    Liu et al.: MedMAP: Promoting Incomplete Multi-modal Brain Tumor Segmentation with Alignment,
    arXiv 2408.09465. Official fragment at 76413fc (no licence; nothing was copied). It gives no
    weight of the loss and no place; its names point at the finest level.

    At each of the chosen levels the features f of the modalities are pulled to an anchor p,
    ½ mean (f - p)², and p fills the slots of absent modalities; the network then takes that level
    as complete. Levels that are not chosen stay as they are. A level whose filling changes nothing
    is refused in the first training step that misses a modality.

    Deviations (the value in brackets is the official one):
        `substitute_from="available"` ["all"]: in training p is made of what the sample keeps, as
        at test time it has to be; the official p contains the modality that it replaces.
        `scale_by_weight="none"` ["official"]: features are not multiplied by their weights. The
        official code does so at test time and not in training.
        Each sample has its own `present`; officially the first row of a batch decides for all.

    Args:
        backbone: the network around which to align.
        levels: `finest`, `deepest`, `all`, or indices into the levels that the network fuses.
        anchor: `adaptive`, a mix with learned weights; `fixed`, one modality; `standard_normal`,
            zero, as the features of a standard normal distribution have on average.
        fixed_modality: the anchor when it is `fixed`. Where it is absent, what is there is
            averaged instead, and nothing is pulled.
        loss_anchor: pull `all` modalities that the case has, or only those the sample keeps.
        substitute_from: make p of what the sample keeps, or in training of `all` the case has.
        scale_by_weight: see above.
        detach_anchor: let the pull move the modalities alone, not the anchor.
        weight: factor of the penalty `align`, which is the mean over the aligned levels.

    Example:
        >>> net = MedMAP(RFNet(width=4), levels="all").eval()
        >>> present = torch.tensor([[True, False, True, True]])
        >>> net(torch.randn(1, 4, 16, 16, 16), present).logits.shape
        torch.Size([1, 4, 16, 16, 16])
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        levels: Literal["finest", "deepest", "all"] | list[int] = "finest",
        anchor: Literal["adaptive", "fixed", "standard_normal"] = "adaptive",
        fixed_modality: Modality = "t1c",
        loss_anchor: Literal["all", "available"] = "all",
        substitute_from: Literal["available", "all"] = "available",
        scale_by_weight: Literal["none", "official"] = "none",
        detach_anchor: bool = False,
        weight: float = 1.0,
    ) -> None:
        super().__init__(backbone.out_channels)
        if scale_by_weight == "official" and anchor != "adaptive":
            raise ConfigError(
                f"scale_by_weight=official needs learned weights, and anchor={anchor} has none; "
                "use anchor=adaptive or scale_by_weight=none"
            )
        self.aligned = _choose(backbone, levels)
        self.backbone = backbone
        self.anchor = anchor
        self.fixed_modality = fixed_modality
        self.pulls_all = loss_anchor == "all"
        self.mixes_all = substitute_from == "all"
        self.scales = scale_by_weight == "official"
        self.detach_anchor = detach_anchor
        self.weight = weight
        self.divisor = backbone.divisor
        self.leaks = backbone.leaks
        self.fused_levels = backbone.fused_levels
        self.learns_from_dropped = self.pulls_all or self.mixes_all or backbone.learns_from_dropped
        self._matters = False  # not known before a batch misses something
        if anchor == "adaptive":
            self.theta = nn.Parameter(torch.zeros(len(self.aligned), len(MODALITIES)))

    @property
    def divisors(self) -> tuple[int, int, int]:
        """Give those of the network inside."""
        return self.backbone.divisors

    def check_size(self, size: tuple[int, ...]) -> None:
        """Refuse what the network inside refuses."""
        self.backbone.check_size(size)

    def encode(self, image: Tensor, present: Tensor) -> Features:
        """Encode as the network inside does."""
        return self.backbone.encode(image, present)

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        return self.backbone.encode_levels(image, present)

    def decode(self, features: Features) -> Output:
        filled, penalty = self.align(features)
        output = self.backbone.decode(filled)
        if not self.training:
            return output
        if not self._matters and not torch.compiler.is_compiling():
            self._refuse_idle_levels(features, filled)
        return replace(output, penalties={**output.penalties, "align": self.weight * penalty})

    def align(self, features: Features) -> tuple[Features, Tensor]:
        """Fill absent slots with the anchor; in training also measure how far it is from all."""
        levels, present = list(features.levels), list(features.present)
        penalty = torch.zeros((), device=features.real.device)
        for index, level in enumerate(self.aligned):
            x, kept = levels[level], present[level]
            weights = self.weights(index, x)
            if self.training:
                pulled = features.real if self.pulls_all else kept
                penalty = penalty + self.pull(x, weights, pulled) / len(self.aligned)
            p = self.mix(x, weights, features.real if self.mixes_all and self.training else kept)
            filled = torch.where(over(kept, x), x, p.to(x.dtype).unsqueeze(1))
            if self.scales and not self.training:
                filled = filled * over(weights.to(x.dtype), x)
            levels[level], present[level] = filled, torch.ones_like(kept)
        aligned = replace(
            features,
            levels=tuple(levels),
            present=tuple(present),
            original=features.original or features,
        )
        return aligned, penalty

    @torch.no_grad()
    def _refuse_idle_levels(self, features: Features, filled: Features) -> None:
        """See once that the prediction depends on each level that is filled."""
        if features.real.is_meta or features.present[0].all():
            return

        def decoded(level: int, x: Tensor, present: Tensor) -> Tensor:
            levels, flags = list(filled.levels), list(filled.present)
            levels[level], flags[level] = x, present
            return self.backbone.decode(
                replace(filled, levels=tuple(levels), present=tuple(flags))
            ).logits

        with self.backbone.evaluating():
            logits = self.backbone.decode(filled).logits
            for level in self.aligned:
                x, kept = filled.levels[level], features.present[level]
                is_idle = torch.equal(decoded(level, features.levels[level], kept), logits)
                if is_idle and self.anchor != "standard_normal":
                    # A network that averages is not moved by its own mean, which is what the first
                    # weights give; by other values it is.
                    other = torch.where(over(kept, x), x, 1 - x)
                    is_idle = torch.equal(decoded(level, other, filled.present[level]), logits)
                if is_idle:
                    raise ConfigError(
                        f"{type(self.backbone).__name__} predicts the same whether or not MedMAP "
                        f"fills level {self.fused_levels.index(level)}, so aligning it is in vain; "
                        "align others with `levels`"
                    )
        self._matters = True

    def anchors(self, features: Features) -> dict[int, Tensor]:
        """Mix the present modalities of each aligned level."""
        anchors = {}
        for index, level in enumerate(self.aligned):
            x = features.levels[level]
            anchors[level] = self.mix(x, self.weights(index, x), features.present[level])
        return anchors

    def weights(self, index: int, x: Tensor) -> Tensor:
        """Give the weight of each modality in the anchor of a level, as 1×M."""
        if self.anchor == "adaptive":
            return self.theta[index].float().softmax(dim=0).unsqueeze(0)
        weights = torch.zeros(1, len(MODALITIES), device=x.device)
        if self.anchor == "fixed":
            weights[0, MODALITIES.index(self.fixed_modality)] = 1
        return weights

    def mix(self, x: Tensor, weights: Tensor, kept: Tensor) -> Tensor:
        """Make the anchor of what is kept: B×M×C×D×H×W to B×C×D×H×W, in full precision."""
        if self.anchor == "standard_normal":
            return torch.zeros_like(x[:, 0], dtype=torch.float32)
        shares = torch.where(kept, weights, 0.0)
        # A fixed modality that is absent leaves no weight: then all that is there counts alike.
        shares = torch.where(shares.sum(dim=1, keepdim=True) > 0, shares, kept.float())
        shares = shares / shares.sum(dim=1, keepdim=True)
        # No matrix product, which TF32 would round: a single modality gives exactly itself.
        total = torch.zeros_like(x[:, 0], dtype=torch.float32)
        for m in range(x.shape[1]):
            own = torch.where(over(kept, x)[:, m], x[:, m], 0.0)
            total = total + over(shares, x)[:, m] * own
        return total

    def pull(self, x: Tensor, weights: Tensor, pulled: Tensor) -> Tensor:
        """Measure ½ mean (f - p)² over the modalities that are pulled, then over the batch."""
        p = self.mix(x, weights, pulled).unsqueeze(1)
        if self.detach_anchor:
            p = p.detach()
        if self.anchor == "fixed":
            k = MODALITIES.index(self.fixed_modality)
            pulled = pulled & pulled[:, k : k + 1]
        # What is not pulled takes the value of the anchor itself, at distance zero.
        distance = (torch.where(over(pulled, x), x, p) - p).square().flatten(2).mean(dim=2)  # B M
        return (0.5 * distance.sum(dim=1) / pulled.sum(dim=1).clamp_min(1)).mean()


def _choose(
    backbone: Backbone, levels: Literal["finest", "deepest", "all"] | list[int]
) -> tuple[int, ...]:
    """Turn the option `levels` into indices of `Features.levels`."""
    fused = backbone.fused_levels
    name = type(backbone).__name__
    if not fused:
        raise ConfigError(
            f"MedMAP cannot align {name}: it mixes the modalities in its first layer; "
            "use a network that encodes each modality alone"
        )
    if levels == "finest":
        return fused[:1]
    if levels == "deepest":
        return fused[-1:]
    if levels == "all":
        return fused
    fits = range(-len(fused), len(fused))
    if not levels or isinstance(levels, str) or any(level not in fits for level in levels):
        raise ConfigError(
            f"levels is {levels}; {name} fuses {len(fused)} levels, so give indices from "
            f"0 to {len(fused) - 1}, or finest, deepest, all"
        )
    return tuple(sorted({fused[level] for level in levels}))
