import pytest
import torch

from tests.networks import double


@pytest.mark.parametrize(
    ("stride", "padding", "groups", "kernel"),
    [(1, 1, 1, 3), (2, 1, 1, 3), (1, 0, 2, 1), (2, 3, 2, 7)],
)
def test_slabs_convolve_as_the_whole_does(
    stride: int, padding: int, groups: int, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = torch.nn.Conv3d(4, 6, kernel, stride=stride, padding=padding, groups=groups).double()
    x = torch.randn(2, 4, 9, 8, 10, dtype=torch.float64)
    whole = net(x)
    monkeypatch.setattr(double, "MOST_BYTES", 2**16)
    with double.LeanDouble():
        torch.testing.assert_close(net(x), whole)
