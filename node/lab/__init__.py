"""The laboratory of finality: a bounded model check, forks by force, mutants, fuzzing."""
