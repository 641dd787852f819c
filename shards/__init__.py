"""One shard's chain: mempool, execution policy, inbox and outbox, replica."""
