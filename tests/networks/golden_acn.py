"""How the golden file of ACN maps onto ours: both paths, and every term of their co-training."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from bts_lightning.distillation.cotraining import CoTrainingTask, entropy_map
from bts_lightning.distillation.paths import (
    FULL,
    MISSING,
    disagreement,
    frozen,
    judgement,
    run,
)
from bts_lightning.losses import SeparateLabelLoss
from bts_lightning.networks.acn import ACN
from bts_lightning.networks.official.table import read_table
from tests.golden.fill_rule import make_input, make_label
from tests.networks.conformity import (
    Row,
    deviation,
    import_filled,
    mask_name,
    read,
    relative,
    statistics,
)

LIMIT = 1e-6
# Map i of ours is map MAPS[i] of the official order ED, NCR/NET, ET, background.
MAPS = [3, 1, 0, 2]


class Paths:
    """Run both paths once; a mask is a row of the file."""

    def masks(self, path: Path) -> int:
        return len(read(path)["masks"])

    def check(self, path: Path, index: int) -> list[Row]:
        golden = read(path)
        size = 32
        task = self.task()
        counts = [sum(p.numel() for p in part.parameters()) for part in (task.peer, task.net)]
        image, label = torch.from_numpy(make_input(size)), torch.from_numpy(make_label(size))
        with torch.no_grad():
            full, full_depth = run(task.peer, image, torch.ones(1, 4, dtype=torch.bool))
            missing, depth = run(task.net, image, torch.from_numpy(golden["masks"][1:]))
            logits = (full, missing)[index]
            found = self.terms(task, full, full_depth, missing, depth, label)
            inner = self.inner(task, full, full_depth, missing, depth)
        official = logits[0][torch.tensor(MAPS).argsort()]
        taken = official[:, ::3, ::3, ::3].numpy()
        assert mask_name(path, index) == ("t1+t1c+t2+flair", "t1c")[index]
        rows = [
            Row("parameters", abs(counts[index] - (4_704_228, 4_702_932)[index]), 0),
            Row("logits", relative(taken, golden["out"][index]), LIMIT),
            Row("statistics", deviation(statistics(official), golden["out_stats"][index]), LIMIT),
        ]
        for name, stats in zip(golden["aux_names"], golden["aux_stats"], strict=True):
            key = str(name).split()[0]
            if inner[key].numel() == 1:  # no spread to measure by
                rows.append(Row(key, abs(float(inner[key]) / stats[0] - 1), 5 * LIMIT))
            else:
                rows.append(Row(key, deviation(statistics(inner[key]), stats), 5 * LIMIT))
        for name, expected in zip(golden["loss_names"], golden["loss_values"][0], strict=True):
            error = abs(float(found[str(name)]) - expected) / max(1, abs(expected))
            # The judges sum over 32,768 weights: the recorded value of `d_knowledge_mono` itself
            # lies 1.3e-6 from double precision, and a machine's own order of sums adds 2e-6.
            limit = 5 * LIMIT if str(name).startswith(("adv", "d_")) else LIMIT
            rows.append(Row(f"loss {name}", error, limit))
        return rows

    def task(self) -> CoTrainingTask:
        """Build the paths with dropout off and fill everything by the rule."""
        task = CoTrainingTask(
            ACN(reads="t1c"),
            peer=ACN(),
            loss=SeparateLabelLoss(),
            optimizer=torch.optim.Adam,
            discriminator_optimizer=torch.optim.Adam,
        ).eval()
        import_filled(task, read_table("acn"))
        return task

    def inner(
        self, task: CoTrainingTask, full: Tensor, full_depth: Tensor, missing: Tensor, depth: Tensor
    ) -> dict[str, Tensor]:
        official = torch.tensor(MAPS).argsort()
        maps = {"full": entropy_map(full.sigmoid()), "mono": entropy_map(missing.sigmoid())}
        return {
            "entropy_full": maps["full"][:, official],
            "entropy_mono": maps["mono"][:, official],
            "d_entropy_mono": task.judges_entropy(maps["mono"]),
            "d_knowledge_mono": task.judges_knowledge(depth),
            "df_full": full_depth,
            "df_mono": depth,
            "vid_mean_mono": task.information.guess(depth),
        }

    def terms(
        self,
        task: CoTrainingTask,
        full: Tensor,
        full_depth: Tensor,
        missing: Tensor,
        depth: Tensor,
        label: Tensor,
    ) -> dict[str, Tensor | float]:
        """Give the recorded terms, before weights and halves."""
        loss = task.loss
        maps = [entropy_map(x.sigmoid()) for x in (full, missing)]
        apart = disagreement(full.sigmoid(), missing.sigmoid())
        ramp = 10 * math.exp(-5 / 4)
        whole, part = loss(full, label), loss(missing, label)
        judges: dict[str, tuple[nn.Module, Tensor, Tensor]] = {
            "entropy": (task.judges_entropy, maps[0], maps[1]),
            "knowledge": (task.judges_knowledge, full_depth, depth),
        }
        found: dict[str, Tensor | float] = {
            "dice_full": whole,
            "dice_mono": part,
            "consistency_mse": apart,
            "ramp_epoch10": ramp,
            "loss_co_epoch10": 0.2 * whole + 0.8 * part + ramp * apart,
            "mi_released": task.information(depth, depth),
            "mi_intended": task.information(depth, full_depth),
        }
        for name, (judge, of_full, of_missing) in judges.items():
            found[f"adv_{name}"] = judgement(frozen(judge, of_missing), FULL)
            found[f"d_{name}_full"] = judgement(judge(of_full), FULL)
            found[f"d_{name}_mono"] = judgement(judge(of_missing), MISSING)
        return found


GOLDEN = {"ACN": Paths()}
