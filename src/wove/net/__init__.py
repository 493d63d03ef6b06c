"""Networks: tools that know nothing of the rest of Wove."""
