"""ShaSpec: what modalities share and what each has to itself; the shared part stands in."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Features, Output, over
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.presence import (
    Presence,
    full_precision,
    is_nobody,
    lacking,
    nothing_of,
    stack_pyramids,
    without_autocast,
)
from bts_lightning.networks.standardised import (
    FINE,
    WIDENING,
    Encoder,
    SharedEncoding,
    StandardisedConv,
    describe,
    filled,
)

# Levels of `Features`: four of the shared encoder for the decoder, its deep features, these joined
# with the specific ones; and in training what describes each modality.
SHARED, JOINED, DESCRIBED = FINE, FINE + 1, FINE + 2
# Who stands in for absent modalities: the first of these that is there.
STAND_INS = ("flair", "t1", "t1c", "t2")


class ShaSpec(SharedEncoding):
    """Encode each modality twice, by an encoder that all share and by one of its own.

    Wang et al.: Multi-modal Learning with Missing Modality via Shared-Specific Feature Modelling,
    CVPR 2023. Official code: github.com/billhhh/ShaSpec at 081fe7a (no licence; nothing was
    copied).

    The shared features of the first modality that is there stand in for an absent one; in training
    those of any, drawn anew for each sample. The decoder also reads finer levels of the shared
    encoder, those of a zero image where a modality is absent. Nine tenths of the work are encoders,
    which do not see who is present.

    Deviations:
        Left out are 330,240 weights that do nothing: see `standardised.Context`. The last
        convolution runs after the last enlargement, not before; both are linear. A zero image is
        encoded once for all modalities that are absent, officially once for each. Norms begin with
        small random biases, officially with zeros: see `standardised.initialise`.

    Args:
        width: channels of the finest level.
        blocks: bottlenecks of each of the four stages of an encoder.
        whole_axis: which axis the first convolution leaves whole while it halves the others: the
            `last`, across the slices of BraTS, as officially, where these files are read with
            their axes reversed (`first`).
        shared_weight: of the distance between the shared features of modalities.
        domain_weight: of the cross entropy of telling the modality by its specific features.
        out_channels: 3 for regions, 4 for labels.

    Example:
        >>> net = ShaSpec(width=2).eval()
        >>> present = torch.tensor([[True, False, True, True]])
        >>> net(torch.randn(1, 4, 64, 64, 32), present).logits.shape
        torch.Size([1, 3, 64, 64, 32])
    """

    fused_levels = (0, 1, 2, 3, JOINED)
    order: Tensor

    def __init__(
        self,
        *,
        width: int = 64,
        blocks: Sequence[int] = (3, 4, 6, 3),
        whole_axis: Literal["first", "last"] = "last",
        shared_weight: float = 0.1,
        domain_weight: float = 0.02,
        out_channels: int = 3,
    ) -> None:
        super().__init__(
            width=width, blocks=blocks, whole_axis=whole_axis, out_channels=out_channels
        )
        self.shared_weight = shared_weight
        self.domain_weight = domain_weight
        deep = WIDENING * width
        self.specific = Modules(Encoder(width, blocks, self.stride) for _ in MODALITIES)
        self.join = StandardisedConv(2 * deep, deep, 3)
        self.classify = nn.Linear(deep, len(MODALITIES))
        self.add_decoder(width)
        order = [float(STAND_INS.index(name)) for name in MODALITIES]
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Encode what is there; zero images belong to `decode`."""
        flags = Presence([present], read=True)

        def modality(m: int) -> list[Tensor] | None:
            if is_nobody(flags.rows(m)):
                return None
            x = image[:, m : m + 1]
            *fine, shared, _ = self.shared(x)
            *_, specific, description = self.specific[m](x)
            joined = shared + self.join(torch.cat([shared, specific], dim=1))
            return [*fine, shared, joined, *([description] if self.training else [])]

        return stack_pyramids(modality)

    def fuse(self, features: Features, blank: Sequence[Tensor] | None) -> Output:
        output = super().fuse(features, blank)
        if not self.training:
            return output
        shared = filled(features, SHARED, blank)
        apart = (shared - shared.roll(1, dims=1)).abs().mean(dim=(0, 2, 3, 4, 5)).sum()
        penalties = {
            "shared": self.shared_weight * apart,
            "domain": self.domain_weight * self.confusion(features),
        }
        return replace(output, penalties=penalties)

    def deep(self, features: Features) -> Tensor:
        """Give shared and specific features, or for an absent modality those of its stand-in."""
        present = features.present[SHARED]
        ranks = self.order.expand(present.shape)
        if self.training:
            ranks = torch.rand(present.shape, device=present.device)
        first = torch.where(present, ranks, torch.inf).argmin(dim=1)  # B
        rows = torch.arange(present.shape[0], device=present.device)
        # Indexing copies what is chosen and reads nothing else, so nothing absent passes.
        stand_in = features.levels[SHARED][rows, first].unsqueeze(1)  # B 1 C D H W
        x = features.levels[JOINED]
        return torch.where(over(features.present[JOINED], x), x, stand_in)

    def confusion(self, features: Features) -> Tensor:
        """Measure how badly specific features tell their modality; zero images count too."""
        logits = self.classify(self.described(features))  # B M classes
        with without_autocast(logits):
            truth = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
            return F.cross_entropy(full_precision(logits).flatten(0, 1), truth.flatten())

    def described(self, features: Features) -> Tensor:
        """Give what describes each modality, B×M×C, that of a zero image where it is absent."""
        x, present = features.levels[DESCRIBED], features.present[DESCRIBED]
        each = []
        lacks = lacking([present])
        for m, encoder in enumerate(self.specific):
            own = x[:, m]
            if lacks[m]:
                blank = describe(encoder.trunk(self.zeros(features))[-1])
                # Nothing reads what else this encoder could make of a zero image.
                blank = blank + nothing_of(encoder.context)
                own = torch.where(over(present[:, m], own), own, blank)
            each.append(own.flatten(1))
        return torch.stack(each, dim=1)
