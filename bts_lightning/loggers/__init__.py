"""Loggers that go on after a resume and never need an account."""

from bts_lightning.loggers.account import check_server, has_credentials
from bts_lightning.loggers.board import Wandb, report_failure
from bts_lightning.loggers.curves import Csv, read_metrics

__all__ = ["Csv", "Wandb", "check_server", "has_credentials", "read_metrics", "report_failure"]
