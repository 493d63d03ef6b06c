"""The executor ``http``: one POST for each command."""
