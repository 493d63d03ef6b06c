"""Parts that the executors for worker services share."""
