"""A report on a store as one HTML file: figures, tables, and the command that repeats each run."""

from bestiary.report.command import command
from bestiary.report.page import Report, report

__all__ = ["Report", "command", "report"]
