"""The command line: parse arguments, call a command, print its result."""
