"""A store as one page: figures, tables and the commands that redo each run, in a file that needs nothing else."""

from bestiary.report.command import command
from bestiary.report.page import Report, report

__all__ = ["Report", "command", "report"]
