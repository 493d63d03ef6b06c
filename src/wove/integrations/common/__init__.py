"""Modules that the adapters of several backends share."""
