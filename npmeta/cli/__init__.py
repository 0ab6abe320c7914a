"""The command line: runs and what is in them, pictures, commands."""
