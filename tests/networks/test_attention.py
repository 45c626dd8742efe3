"""What is particular to the transformers' parts."""

import torch
from torch import nn

from bts_lightning.networks.attention import SelfAttention, TransformerLayer


def test_the_attention_branch_is_dropped_twice_and_the_perceptron_once() -> None:
    # As in TransBTS: after the projection, and once more after the branch: 1 - 0.9².
    torch.manual_seed(0)
    layer = TransformerLayer(32, heads=4, hidden=64, dropout=0.1).train()
    tokens = torch.randn(1, 2000, 32)
    for branch, share in ((layer.attend, 0.19), (layer.transform, 0.1)):
        assert abs((branch(tokens) == 0).double().mean() - share) < 0.01


def attention() -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(6, heads=2, dropout=0.0)


def test_the_tokens_are_their_own_queries_by_default() -> None:
    net, tokens = attention(), torch.randn(2, 5, 6)
    torch.testing.assert_close(net(tokens, queries=tokens), net(tokens))
    some = tokens[:, 1:3]
    torch.testing.assert_close(net(tokens, queries=some), net(tokens)[:, 1:3])


def test_a_query_that_sees_one_token_answers_with_its_value() -> None:
    net, tokens = attention(), torch.randn(1, 3, 6)
    net.project = nn.Linear(6, 6, bias=False)
    nn.init.eye_(net.project.weight)
    values = net.qkv(tokens).chunk(3, dim=-1)[2]
    sees = torch.eye(3, dtype=torch.bool)[[2, 0, 1]]
    torch.testing.assert_close(net(tokens, sees=sees), values[:, [2, 0, 1]])


def test_an_explained_answer_is_the_answer() -> None:
    net, tokens = attention(), torch.randn(2, 5, 6)
    sees = torch.ones(5, 5, dtype=torch.bool).tril()
    answer, weights = net.explained(tokens, sees)
    torch.testing.assert_close(answer, net(tokens, sees))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 5))
    assert weights[:, :, ~sees].eq(0).all()
