"""What every executor must do, whatever is behind it."""
