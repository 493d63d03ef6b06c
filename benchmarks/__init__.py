"""What a weave costs, beside what an expert would write by hand. Run with ``python -m benchmarks``."""
