"""What brings the keys of a node back whose record of what they signed is lost: which ways there are, for whom.

An import takes a file that is as new as what was lost. Without one a key can sign above a slot in which nobody is yet
(``node.resumption``), and a beacon node after its Rejoin (K2); the chain gets to either by the votes of others alone. So
where the others have no quorum neither is a way, and nobody is told to try: that holds of ``beacon-0``, which has every
key of the beacon (P3), and of a shard with one process.
"""

from collections.abc import Collection

from node.config import get_name_flag
from node.network import Network, get_local_validators, parse_node
from shardyard.ids import ShardId, describe_shard


def get_stake_of_others(network: Network, chain: ShardId, keys: Collection[int]) -> int:
    """Return the stake of all validators of ``chain`` but ``keys``."""
    committee = network.genesis.committees[chain]
    return committee.total_stake - sum(committee.stakes[key] for key in keys)


def describe_ways_back(network: Network, node: str) -> str:
    """Return what to try when the record of ``node`` is lost."""
    if not get_local_validators(network, node):
        return f"nothing, for {node} has no keys and follows all the same"
    chain, _ = parse_node(node)
    blocks = (
        ""
        if _have_others_quorum(network, node)
        else f", while there are {describe_shard(chain)} blocks to go on from"
    )
    flag = get_name_flag(network.root.name)
    return (
        f"shardyard validator import {node}{flag} with the newest export of what its keys signed{blocks}; without one: "
        f"{describe_way_without_export(network, node)}"
    )


def describe_way_without_export(network: Network, node: str) -> str:
    """Return what to try when the record of ``node`` is lost and no export is as new."""
    chain, _ = parse_node(node)
    flag = get_name_flag(network.root.name)
    if _have_others_quorum(network, node):
        return f"shardyard validator resume {node}{flag}"
    return (
        f"shardyard up --fresh{flag} (all keys but those of {node} have no quorum: {describe_shard(chain)} does not get to a "
        "slot in which these may sign, so nothing brings them back)"
    )


def _have_others_quorum(network: Network, node: str) -> bool:
    chain, _ = parse_node(node)
    others = get_stake_of_others(network, chain, get_local_validators(network, node))
    return others >= network.genesis.committees[chain].quorum
