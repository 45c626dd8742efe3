"""Learn from a teacher that sees everything: the task, its terms and the frozen teacher."""

from bts_lightning.distillation.task import DistillationTask
from bts_lightning.distillation.teacher import Teacher
from bts_lightning.distillation.terms import AnchorTerm, LogitTerm, PrototypeTerm, Term

__all__ = ["AnchorTerm", "DistillationTask", "LogitTerm", "PrototypeTerm", "Teacher", "Term"]
