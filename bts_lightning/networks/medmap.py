"""MedMAP: align the features of the modalities to an anchor that stands in for absent ones."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES, Modality
from bts_lightning.networks.backbone import Backbone, Features, Output, Weigher, over, weightless

Anchor = Literal["adaptive", "fixed", "standard_normal", "gaussian"]
Pull = Literal["kl", "likelihood", "draft"]


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
        `anchor="gaussian"` is the default of the draft (e406a74), a normal distribution with
        learned mean μ and variance v. The draft does not give their shapes: here each channel has
        its own, and v is the exponential of what is learned.
        `gaussian_pull="kl"` ["draft"]: the draft takes ½ [(f - μ)²/v + v]. It calls v a
        log-variance; with + log v that is `likelihood`, which falls without end where features and
        variance shrink together. `kl` is the divergence of N(f, 1) from N(μ, v),
        ½ [((f - μ)² + 1)/v - 1 + log v], 0 at best; with v = 1 the pull of the other anchors.
        Each sample has its own `present`; officially the first row of a batch decides for all.

    Args:
        backbone: the network around which to align.
        levels: `finest`, `deepest`, `all`, or indices into the levels that the network fuses.
        anchor: `adaptive`, a mix with learned weights; `fixed`, one modality; `standard_normal`,
            zero, as the features of a standard normal distribution have on average; `gaussian`,
            learned, see above.
        fixed_modality: the anchor when it is `fixed`. Where it is absent, what is there is
            averaged instead, and nothing is pulled.
        loss_anchor: pull `all` modalities that the case has, or only those the sample keeps.
        substitute_from: make p of what the sample keeps, or in training of `all` the case has.
        scale_by_weight: see above.
        detach_anchor: let the pull move the modalities alone, not the anchor.
        gaussian_pull: see above.
        weight: factor of the penalty `align`, which is the mean over the aligned levels.
        watch_only: leave the network and its losses as they are, and only measure what an
            alignment would pull, with equal weights: see `Output.watched`.

    In training `elbo/kl` is watched: the divergence of N(f, 1) from the anchor's normal
    distribution, added up over channels and places of the aligned levels, averaged over
    modalities, in nats a voxel of the image.

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
        anchor: Anchor = "adaptive",
        fixed_modality: Modality = "t1c",
        loss_anchor: Literal["all", "available"] = "all",
        substitute_from: Literal["available", "all"] = "available",
        scale_by_weight: Literal["none", "official"] = "none",
        detach_anchor: bool = False,
        gaussian_pull: Pull = "kl",
        weight: float = 1.0,
        watch_only: bool = False,
    ) -> None:
        super().__init__(backbone.out_channels)
        if scale_by_weight == "official" and anchor != "adaptive":
            raise ConfigError(
                f"scale_by_weight=official needs learned weights, and anchor={anchor} has none; "
                "use anchor=adaptive or scale_by_weight=none"
            )
        if detach_anchor and anchor == "gaussian":
            raise ConfigError(
                "detach_anchor=true keeps anchor=gaussian from learning anything; use "
                "detach_anchor=false or anchor=standard_normal"
            )
        self.aligned = _choose(backbone, levels)
        self.backbone = backbone
        self.anchor = anchor
        self.fixed_modality = fixed_modality
        self.pulls_all = loss_anchor == "all"
        self.mixes_all = substitute_from == "all"
        self.scales = scale_by_weight == "official"
        self.detach_anchor = detach_anchor
        self.gaussian_pull = gaussian_pull
        self.weight = weight
        self.watch_only = watch_only
        self.divisor = backbone.divisor
        self.leaks = backbone.leaks
        self.fused_levels = backbone.fused_levels
        wants_dropped = not watch_only and (self.pulls_all or self.mixes_all)
        self.learns_from_dropped = wants_dropped or backbone.learns_from_dropped
        self._matters = watch_only  # not known before a batch misses something
        self.anchor_weighers = tuple(Weigher("anchor", level) for level in self.aligned)
        if anchor == "adaptive":
            zeros = torch.zeros(len(self.aligned), len(MODALITIES))
            self.theta = nn.Parameter(zeros, requires_grad=not watch_only)
        if anchor == "gaussian":
            widths = _widths(backbone, self.aligned)
            self.means, self.log_variances = (
                nn.ParameterList(
                    nn.Parameter(torch.zeros(width), requires_grad=not watch_only)
                    for width in widths
                )
                for _ in range(2)
            )

    @property
    def divisors(self) -> tuple[int, int, int]:
        """Give those of the network inside."""
        return self.backbone.divisors

    def check_size(self, size: tuple[int, ...]) -> None:
        """Refuse what the network inside refuses."""
        self.backbone.check_size(size)

    def encode(self, image: Tensor, present: Tensor, place: Tensor | None = None) -> Features:
        """Encode as the network inside does."""
        return self.backbone.encode(image, present, place)

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        return self.backbone.encode_levels(image, present)

    def decode(self, features: Features) -> Output:
        filled, penalty = (features, None) if self.watch_only else self.align(features)
        output = self.backbone.decode(filled)
        if not self.training:
            return output
        if not self._matters and not torch.compiler.is_compiling():
            self._refuse_idle_levels(features, filled)
        penalties = {} if penalty is None else {"align": self.weight * penalty}
        return replace(
            output,
            penalties={**output.penalties, **penalties},
            watched={**output.watched, "elbo/kl": self.divergence(features, output)},
        )

    @torch.no_grad()
    def divergence(self, features: Features, output: Output) -> Tensor:
        """Give the divergence from the anchor in nats a voxel of what is predicted."""
        voxels = output.logits[0, 0].numel()
        total = torch.zeros((), device=features.real.device)
        for index, level in enumerate(self.aligned):
            x = features.levels[level]
            pulled = features.real if self.pulls_all else features.present[level]
            total = total + self.pull(index, x, pulled, "kl") * (x[0, 0].numel() / voxels)
        return total

    def weighers(self) -> tuple[Weigher, ...]:
        """Tell the anchor's weights too, where modalities have some."""
        has_weights = not self.watch_only and self.anchor in ("adaptive", "fixed")
        own = self.anchor_weighers if has_weights else ()
        return (*own, *self.backbone.weighers())

    def align(self, features: Features) -> tuple[Features, Tensor]:
        """Fill absent slots with the anchor; in training also measure how far it is from all."""
        levels, present = list(features.levels), list(features.present)
        penalty = torch.zeros((), device=features.real.device)
        for index, level in enumerate(self.aligned):
            x, kept = levels[level], present[level]
            if self.training:
                pulled = features.real if self.pulls_all else kept
                penalty = penalty + self.pull(index, x, pulled) / len(self.aligned)
            p = self.mix(index, x, features.real if self.mixes_all and self.training else kept)
            if listener := self.anchor_weighers[index].listener:
                listener(self.shares(index, x, kept))
            filled = torch.where(over(kept, x), x, p.to(x.dtype).unsqueeze(1))
            if self.scales and not self.training:
                filled = filled * over(self.weights(index, x).to(x.dtype), x)
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
                if is_idle:
                    # A network that averages is not moved by its own mean, which is what the first
                    # weights give, and norms take away what is the same everywhere, as a normal
                    # distribution's mean is; by other values both are moved.
                    ramp = torch.linspace(0, 1, x[0, 0, 0].numel(), device=x.device, dtype=x.dtype)
                    other = torch.where(over(kept, x), x, ramp.view(x.shape[3:]) - x)
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
        return {
            level: self.mix(index, features.levels[level], features.present[level])
            for index, level in enumerate(() if self.watch_only else self.aligned)
        }

    def weights(self, index: int, x: Tensor) -> Tensor:
        """Give the weight of each modality in the anchor of a level, as 1×M."""
        if self.anchor == "adaptive":
            return self.theta[index].float().softmax(dim=0).unsqueeze(0)
        weights = torch.zeros(1, len(MODALITIES), device=x.device)
        if self.anchor == "fixed":
            weights[0, MODALITIES.index(self.fixed_modality)] = 1
        return weights

    def shares(self, index: int, x: Tensor, kept: Tensor) -> Tensor:
        """Give the weights of what is kept, B×M, which add up to 1."""
        shares = torch.where(kept, self.weights(index, x), 0.0)
        # A fixed modality that is absent leaves no weight: then all that is there counts alike.
        shares = torch.where(shares.sum(dim=1, keepdim=True) > 0, shares, kept.float())
        return shares / shares.sum(dim=1, keepdim=True)

    def mix(self, index: int, x: Tensor, kept: Tensor) -> Tensor:
        """Make the anchor of what is kept: B×M×C×D×H×W to B×C×D×H×W, in full precision."""
        if self.anchor == "standard_normal":
            return torch.zeros_like(x[:, 0], dtype=torch.float32)
        if self.anchor == "gaussian":
            mean = self.means[index].float().view(1, -1, 1, 1, 1)
            return mean.expand(x[:, 0].shape)
        shares = self.shares(index, x, kept)
        # No matrix product, which TF32 would round: a single modality gives exactly itself.
        total = torch.zeros_like(x[:, 0], dtype=torch.float32)
        for m in range(x.shape[1]):
            own = torch.where(over(kept, x)[:, m], x[:, m], 0.0)
            total = total + over(shares, x)[:, m] * own
        return total

    def pull(self, index: int, x: Tensor, pulled: Tensor, form: Pull | None = None) -> Tensor:
        """Measure ½ mean (f - p)² over the modalities that are pulled, then over the batch.

        `form` is that of a learned variance, by default `gaussian_pull`.
        """
        p = self.mix(index, x, pulled).unsqueeze(1)
        if self.detach_anchor:
            p = p.detach()
        if self.anchor == "fixed":
            k = MODALITIES.index(self.fixed_modality)
            pulled = pulled & pulled[:, k : k + 1]
        # What is not pulled takes the value of the anchor itself, at distance zero.
        squares = (torch.where(over(pulled, x), x, p) - p).square()
        if self.anchor == "gaussian":
            spread = self.spread(index, squares, form or self.gaussian_pull)
            squares = torch.where(over(pulled, x), spread, 0.0)
        distance = squares.flatten(2).mean(dim=2)  # B M
        return (0.5 * distance.sum(dim=1) / pulled.sum(dim=1).clamp_min(1)).mean()

    def spread(self, index: int, squares: Tensor, form: Pull) -> Tensor:
        """Measure squared distances from the mean, B×M×C×D×H×W, by the learned variance."""
        log = self.log_variances[index].float().view(1, 1, -1, 1, 1, 1)
        variance = log.exp()
        if form == "kl":
            return (squares + 1) / variance - 1 + log
        return squares / variance + (log if form == "likelihood" else variance)


@torch.no_grad()
def _widths(backbone: Backbone, levels: Sequence[int]) -> list[int]:
    """Count the channels of some levels, by a pass of a copy that holds no numbers."""
    net, image, present = weightless(backbone)
    features = net.eval().encode(image, present)
    return [features.levels[level].shape[2] for level in levels]


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
