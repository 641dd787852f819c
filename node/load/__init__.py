"""The load generator: signs first, sends on time whatever the answers, and follows every transaction to its end.

``keys`` signs, ``client`` speaks JSON-RPC, ``workload`` decides what is sent, ``sender`` sends it, ``tracker`` follows it,
``result`` adds it up, ``run`` puts them together.
"""
