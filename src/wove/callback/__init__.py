"""The way back for backend adapters: workers post what becomes of runs to the `receiver` of this process."""
