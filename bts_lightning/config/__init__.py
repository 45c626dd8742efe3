"""Experiments: load and merge them, check every node, build what they name."""

from bts_lightning.config.build import SUPPLIED, build, check, check_names, load

__all__ = ["SUPPLIED", "build", "check", "check_names", "load"]
