"""What the executors for worker services share."""
