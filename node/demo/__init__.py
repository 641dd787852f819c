"""The main job on one screen: a network, load, contracts across shards, kills, an offline audit, a verdict."""
