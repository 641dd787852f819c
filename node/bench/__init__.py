"""Benches: each starts a network of its own, measures one promise, prints one line, and with ``--check`` fails when it is missed.

``devnet`` runs networks of real processes for whoever needs one; ``recovery`` watches finality come back after a kill; one
module per bench.
"""
