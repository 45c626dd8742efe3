"""LCKD: one encoder for all modalities; those that are there answer for those that are not."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bts_lightning.networks.backbone import Features, over
from bts_lightning.networks.presence import Presence, is_nobody, stack_pyramids
from bts_lightning.networks.standardised import FINE, SharedEncoding

DEEP = FINE  # the level of `Features` that is fused


class LCKD(SharedEncoding):
    """Encode each modality by the same encoder, and average deep features for what is absent.

    Wang et al.: Learnable Cross-modal Knowledge Distillation for Multi-modal Learning with Missing
    Modality, MICCAI 2023, arXiv 2310.01035. Official code: github.com/billhhh/LCKD at 5ba51b5
    (no licence; nothing was copied). MetaKD (MCKD, arXiv 2405.07155; billhhh/MetaKD at e66b45f)
    has the same network. Which modality teaches which in training is up to `distillation.peers`.

    The decoder also reads finer levels of the encoder, those of a zero image where a modality is
    absent. 82% of the work are encoders, which do not see who is present.

    Deviations:
        Left out are 66,048 weights that do nothing (see `standardised.Context`), and of MetaKD
        63,000 more, of an attention that is never called. The last convolution runs after the last
        enlargement, not before; both are linear. A zero image is encoded once for all modalities
        that are absent, officially once for each. Norms begin with small random biases, officially
        with zeros: see `standardised.initialise`.

    Args:
        width: channels of the finest level.
        blocks: bottlenecks of each of the four stages of the encoder.
        whole_axis: which axis the first convolution leaves whole while it halves the others: the
            `last`, across the slices of BraTS, as officially, where these files are read with
            their axes reversed (`first`).
        out_channels: 3 for regions, 4 for labels.

    Example:
        >>> net = LCKD(width=2).eval()
        >>> present = torch.tensor([[True, False, True, True]])
        >>> net(torch.randn(1, 4, 64, 64, 32), present).logits.shape
        torch.Size([1, 3, 64, 64, 32])
    """

    fused_levels = (0, 1, 2, 3, DEEP)

    def __init__(
        self,
        *,
        width: int = 64,
        blocks: Sequence[int] = (3, 4, 6, 3),
        whole_axis: Literal["first", "last"] = "last",
        out_channels: int = 3,
    ) -> None:
        super().__init__(
            width=width, blocks=blocks, whole_axis=whole_axis, out_channels=out_channels
        )
        self.add_decoder(width)

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Encode what is there; zero images belong to `decode`."""
        flags = Presence([present], read=True)

        def modality(m: int) -> tuple[Tensor, ...] | None:
            return (
                None if is_nobody(flags.rows(m)) else self.shared(image[:, m : m + 1])[: DEEP + 1]
            )

        return stack_pyramids(modality)

    def deep(self, features: Features) -> Tensor:
        """Give the features of each modality, or where it is absent the mean of those there."""
        x, present = features.selected(DEEP), features.present[DEEP]
        mean = x.sum(dim=1, keepdim=True) / over(present.sum(dim=1, keepdim=True), x)
        return torch.where(over(present, x), x, mean)
