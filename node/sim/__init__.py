"""The deterministic simulator: the same machines as in real processes, run from a seed in virtual time."""
