"""What tests of distillation are made of."""

import torch
from torch import Tensor

from bts_lightning.distillation.answer import Answer
from bts_lightning.networks.backbone import Backbone, Features, Output
from bts_lightning.networks.unet import UNet

COMPLETE = torch.ones(2, 4, dtype=torch.bool)


def answer(
    logits: Tensor | None = None, embedding: Tensor | None = None, net: Backbone | None = None
) -> Answer:
    """Make an answer of what a test is about."""
    nothing = torch.zeros(1, 1, 1, 1, 1)
    output = Output(
        nothing if logits is None else logits,
        embedding=embedding,
        features=Features((), (), COMPLETE),
    )
    return Answer(net or UNet(**UNet.small()), output)


def random_label(*shape: int) -> Tensor:
    return torch.randint(4, shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
