"""The executor ``websocket``: one connection for all runs."""
