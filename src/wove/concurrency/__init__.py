"""Threads, loops, forks and limits: tools that know nothing of the rest of Wove."""
