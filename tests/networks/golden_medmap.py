"""How the golden file of MedMAP maps onto ours: losses, gradients and substituted features."""

from pathlib import Path

import numpy as np
import torch

from bts_lightning.networks.backbone import Features
from bts_lightning.networks.medmap import MedMAP
from bts_lightning.networks.rfnet import RFNet
from tests.networks.conformity import Row, read, relative

LIMIT = 1e-6


class AlignmentCheck:
    """Run our alignment alone on the stored features, with the official choices."""

    def masks(self, path: Path) -> int:
        return len(read(path)["masks"])

    def check(self, path: Path, index: int) -> list[Row]:
        golden = read(path)
        net = MedMAP(RFNet(width=4), substitute_from="all", scale_by_weight="official")
        with torch.no_grad():
            net.theta.copy_(torch.from_numpy(golden["theta"]))
        x = torch.from_numpy(golden["features"]).unsqueeze(0).requires_grad_()
        present = torch.from_numpy(golden["masks"][index]).unsqueeze(0)
        features = Features(levels=(x,), present=(present,), real=torch.ones_like(present))
        trained, penalty = net.train().align(features)
        penalty.backward()
        tested, nothing = net.eval().align(features)
        assert x.grad is not None
        assert net.theta.grad is not None
        found = {
            "align_loss_train": penalty.detach().numpy(),
            "align_loss_test": nothing.numpy(),
            "train_features": trained.levels[0][0].detach().numpy(),
            "test_features": tested.levels[0][0].detach().numpy(),
            "grad_theta": net.theta.grad[0].numpy(),
            "grad_feature_norm": x.grad[0].flatten(1).norm(dim=1).numpy(),
        }
        rows = [Row("parameters", abs(net.theta.numel() - 4), 0)]
        rows.append(Row("complete", float(not trained.present[0].all()), 0))
        for key, ours in found.items():
            expected = golden[key][index]
            error = relative(ours, expected) if np.any(expected) else float(np.abs(ours).max())
            rows.append(Row(key, error, LIMIT))
        return rows


GOLDEN = {"MedMAP": AlignmentCheck()}
