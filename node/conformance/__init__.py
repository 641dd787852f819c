"""Ethereum's own state tests, run through this project's executor: each vector alone, and inside a block on several threads.

``archive`` finds the test documents in a file or folder, ``tally`` counts verdicts and knows what may be skipped and why,
``__main__`` is the command behind ``scripts/conformance``. What is executed and compared is the native core's.
"""
