"""What a shard node remembers for its readers: blocks, transactions, logs and messages of the final chain.

A cache in LMDB that can be rebuilt from the block log and is never needed for recovery. ``records`` says what is kept,
``store`` where, ``bloom`` and ``logs`` find logs, ``messages`` follows cross-shard messages, ``rebuild`` reads it all from a
block log again.
"""
