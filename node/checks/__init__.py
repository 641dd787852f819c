"""Checks: a verdict in words on one promise of a network, with the figures it rests on.

``liveness``, ``finality``, ``forks`` and ``conservation`` ask every process of a running network and believe none;
``offline`` judges the same from the logs of a stopped one. None of them changes anything.
"""
