"""What ties shards together: the beacon coordinator, crosslink validity, the order of receipts, supply."""
