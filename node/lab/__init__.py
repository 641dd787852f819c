"""Attacks on finality and its rules: a bounded model check, forks by force, mutants, fuzzing."""
