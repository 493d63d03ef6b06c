"""The pool of worker processes on this machine, one JSON frame a line."""
