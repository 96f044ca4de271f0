"""The command line: verbs over the library. Nothing heavy is imported before a verb needs it."""

from bestiary.cli import card, data, draw, explain, look, report, runs, search, text
from bestiary.cli._app import app, main

__all__ = ["app", "card", "data", "draw", "explain", "look", "main", "report", "runs", "search", "text"]
