"""Runs as jobs of a backend: payloads to its adapter, events from the callback receiver."""
