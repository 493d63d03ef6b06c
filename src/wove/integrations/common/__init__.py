"""Parts that adapters of several backends share."""
