"""The command line in parts: the table of commands, and how a command's settings are read."""
