"""The disk: the block log that is the only truth, the signer's record, the mempool's journal, and who may open them.

``frames`` is the checksummed form all three share, ``log`` a chain's block log, ``journal`` the transactions that were
answered and are not final, ``data_dir`` the stamped and locked directory they live in; ``file_locks`` are the locks of keys and
networks. Everything else on disk is a cache.
"""
