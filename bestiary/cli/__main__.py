"""`python -m bestiary.cli` is `bestiary`."""

from bestiary.cli import main

main()
