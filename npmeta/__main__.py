"""``python -m npmeta``."""

from npmeta.cli import command

command()
