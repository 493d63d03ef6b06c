"""A report on Python's standard library, and a first look at Wove: begin with ``__main__.py``."""
