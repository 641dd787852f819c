"""The auditor: believes no process, re-executes every chain from its block log, and says which promise was broken where.

``logs`` reads, ``stretches`` compares what several logs have, ``chains`` checks headers and certificates, ``replay`` executes,
``flow`` derives the order of messages anew, ``beacon`` checks crosslinks and supply, ``answered`` looks for what users were
promised, ``audit`` puts them together.
"""
