"""What adapters of several backends share."""
