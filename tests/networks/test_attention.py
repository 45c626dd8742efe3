"""What is particular to the transformers' parts."""

import torch

from bts_lightning.networks.attention import TransformerLayer


def test_the_attention_branch_is_dropped_twice_and_the_perceptron_once() -> None:
    # As in TransBTS: after the projection, and once more after the branch: 1 - 0.9².
    torch.manual_seed(0)
    layer = TransformerLayer(32, heads=4, hidden=64, dropout=0.1).train()
    tokens = torch.randn(1, 2000, 32)
    for branch, share in ((layer.attend, 0.19), (layer.transform, 0.1)):
        assert abs((branch(tokens) == 0).double().mean() - share) < 0.01
