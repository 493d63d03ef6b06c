"""The ways out of this process: one contract, one file each."""
