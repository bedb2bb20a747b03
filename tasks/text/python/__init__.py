"""The documentation on this machine, out of Python source, by parsing and never by importing."""
