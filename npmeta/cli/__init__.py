"""The command line: options, the registry of algorithms, configurations, runs, pictures, commands."""
