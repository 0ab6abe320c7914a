"""The version of the package; under every room, since files and the command line say it."""

__version__ = "0.1.0"
