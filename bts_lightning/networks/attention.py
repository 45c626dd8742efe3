"""Transformer parts of the token networks: self-attention and a two-layer perceptron, pre-norm."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Let every token attend to all tokens, or queries of their own to these, in several heads."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, sees: Tensor | None = None, queries: Tensor | None = None
    ) -> Tensor:
        """Answer the queries, B×Q×C, by default the tokens B×N×C themselves.

        `sees`, shaped to broadcast over B×heads×Q×N, is true where a query may look at a token, and
        each must see at least one; or holds numbers that are added to the scores.
        """
        query, key, value = self._parts(tokens, queries)
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=sees, dropout_p=dropout)
        return self._answer(mixed)

    def explained(
        self, tokens: Tensor, sees: Tensor | None = None, queries: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Answer as `forward` does, and tell how each looked at the tokens, B×heads×Q×N."""
        query, key, value = self._parts(tokens, queries)
        scores = (query * query.shape[-1] ** -0.5) @ key.mT
        if sees is not None:
            scores = scores.masked_fill(~sees, -torch.inf)
        weights = self.dropout(scores.softmax(dim=-1))
        return self._answer(weights @ value), weights

    def _parts(self, tokens: Tensor, queries: Tensor | None) -> list[Tensor]:
        """Make queries, keys and values, each B×H×N×C."""
        if queries is None:
            parts = self.qkv(tokens).chunk(3, dim=-1)
        else:
            to_query, to_key, to_value = self.qkv.weight.chunk(3)
            parts = (
                F.linear(queries, to_query),
                F.linear(tokens, to_key),
                F.linear(tokens, to_value),
            )
        return [torch.unflatten(part, -1, (self.heads, -1)).transpose(1, 2) for part in parts]

    def _answer(self, mixed: Tensor) -> Tensor:
        projected: Tensor = self.dropout(self.project(mixed.transpose(1, 2).flatten(2)))
        return projected


def attention_branch(width: int, *, heads: int, dropout: float) -> nn.Sequential:
    """Normalise, attend, and drop once more: TransBTS and what is built on it drop twice here."""
    return nn.Sequential(
        nn.LayerNorm(width),
        SelfAttention(width, heads=heads, dropout=dropout),
        nn.Dropout(dropout),
    )


def perceptron_branch(width: int, *, hidden: int, dropout: float) -> nn.Sequential:
    """Normalise each token and transform it alone, in two layers."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, width),
        nn.Dropout(dropout),
    )


class TransformerLayer(nn.Module):
    """Attend, then transform each token alone; both on normalised tokens, both residual."""

    def __init__(self, width: int, *, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attend = attention_branch(width, heads=heads, dropout=dropout)
        self.transform = perceptron_branch(width, hidden=hidden, dropout=dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attend(tokens)
        transformed: Tensor = tokens + self.transform(tokens)
        return transformed


def to_tokens(x: Tensor) -> Tensor:
    """Read a volume as a row of tokens: B×C×D×H×W to B×N×C."""
    return x.flatten(2).transpose(1, 2)


def to_volume(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """Lay tokens out as a volume again: B×N×C to B×C×D×H×W."""
    return tokens.transpose(1, 2).reshape(*tokens.shape[::2], *size)
