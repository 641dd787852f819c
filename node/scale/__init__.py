"""A network of up to 256 shards in virtual time: the real machines, each process a server whose operations take time."""
