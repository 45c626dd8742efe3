"""Train and evaluate the stages of a chain, each beside its teacher once that is there."""

from collections.abc import Sequence

from bts_lightning import runs
from bts_lightning.distillation.chain.plan import ChainPlan, Stage
from bts_lightning.errors import UserError
from bts_lightning.report.screen import Screen
from bts_lightning.runs.jobs import TrainAndEvaluate, is_evaluated


class Chain(TrainAndEvaluate[Stage]):
    """Work through a plan; the first stage that fails ends it, because others build upon it."""

    def __init__(self, plan: ChainPlan, part: str, allow: Sequence[str], console: Screen) -> None:
        super().__init__(plan.stages, part, allow, console)
        self.plan = plan
        done = sum(is_evaluated(stage.run, part) for stage in plan.stages)
        if done:
            console.print(f"{done} of {len(plan.stages)} stages are done already")

    def is_ready(self, stage: Stage) -> bool:
        """Wait for the teacher."""
        return all(is_evaluated(self.plan.stage(name).run, self.part) for name in stage.needs)

    def begin(self, stage: Stage) -> list[str]:
        """Write the configuration that the plan has made, unless something was learnt already."""
        if not runs.checkpoint_files(stage.run):
            runs.save_config(stage.run, stage.config)
        return super().begin(stage)

    def failed(self, why: str) -> None:
        """End the chain; what runs beside it saves its state."""
        raise UserError(f"{why}; the same command goes on")
