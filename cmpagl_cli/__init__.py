"""The command line: parse, call one core function, show what it returns."""
