"""The finality engine that shards and beacon both run: votes, certificates, proofs, Simplex, instant finality."""
