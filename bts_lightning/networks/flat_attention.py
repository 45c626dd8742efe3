"""Attention within flat windows, by a table of how far apart two voxels lie (Swin, unshifted)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.networks.attention import SelfAttention, perceptron_branch

# Voxels along each side of a window.
SIDE = 7


class FlatAttention(nn.Module):
    """Look around in squares of one slice each, and tell how much there is to see in a column.

    Slices are those across the last axis. Squares that reach beyond the border are filled with
    zeros, which are attended to.
    """

    places: Tensor

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attend = SelfAttention(width, heads=heads, dropout=0.0)
        self.table = nn.Parameter(torch.empty((2 * SIDE - 1) ** 2, heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.transform = perceptron_branch(width, hidden=4 * width, dropout=0.0)
        self.register_buffer("places", differences(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Read B×C×D×H×W, write B×D×H: the mean of what was made over channels and slices."""
        x = x.permute(0, 4, 2, 3, 1)  # B W D H C
        x = x + self.within_squares(self.norm(x))
        norm, widen, activate, _, narrow, _ = self.transform
        # Of what the last layer would give each voxel only the mean over channels is read.
        assert isinstance(narrow, nn.Linear)
        weight, bias = (
            narrow.weight.mean(dim=0, keepdim=True),
            narrow.bias.mean(dim=0, keepdim=True),
        )
        more = F.linear(activate(widen(norm(x))), weight, bias).squeeze(-1)
        return (x.mean(dim=-1) + more).mean(dim=1)  # B D H

    def within_squares(self, x: Tensor) -> Tensor:
        b, w, d, h, c = x.shape
        x = F.pad(x, (0, 0, 0, -h % SIDE, 0, -d % SIDE))
        rows, columns = x.shape[2] // SIDE, x.shape[3] // SIDE
        x = x.reshape(b * w, rows, SIDE, columns, SIDE, c).transpose(2, 3)
        tokens = x.reshape(-1, SIDE**2, c)  # squares, voxels, C
        near = self.table[self.places].permute(2, 0, 1).unsqueeze(0)  # 1 heads Q N
        x = self.attend(tokens, near.to(tokens.dtype))
        x = x.reshape(b * w, rows, columns, SIDE, SIDE, c).transpose(2, 3)
        return x.reshape(b, w, rows * SIDE, columns * SIDE, c)[:, :, :d, :h]


def differences() -> Tensor:
    """Give for each pair of voxels in a square the row of the table that says how far apart."""
    side = torch.arange(SIDE)
    at = torch.cartesian_prod(side, side)  # voxels, 2
    apart = at.unsqueeze(1) - at.unsqueeze(0) + SIDE - 1
    return apart[..., 0] * (2 * SIDE - 1) + apart[..., 1]
