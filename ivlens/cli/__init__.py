"""The command line, `ivlens --help`: one file per command group, listed in `main.COMMANDS` and imported when called."""
