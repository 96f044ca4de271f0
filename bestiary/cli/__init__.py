"""The command line: verbs over the library. Nothing heavy is imported before a verb needs it."""

from bestiary.cli import look, runs
from bestiary.cli._app import app, main

__all__ = ["app", "look", "main", "runs"]
