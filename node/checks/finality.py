"""``finality``: a light client's view. Every node hands out finality proofs, and genesis' committees alone judge them (A2)."""

from typing import Any, Final

from node.checks.verdict import Verdict, Witnesses, build_verdict
from node.network import Network, parse_node
from shardyard.blocks import FinalityProof, Header
from shardyard.codec import decode
from shardyard.consensus.proofs import verify_proof_with
from shardyard.consensus.votes import Certificate, verify_certificate
from shardyard.errors import InvalidProofError, RemoteProtocolError
from shardyard.genesis import Genesis
from shardyard.hashing import TAG_VOTE, hash_struct
from shardyard.ids import Hash32, ShardId
from shardyard.keys import BlsCrypto
from shardyard.messages import MAX_MESSAGE_BYTES

DEFAULT_BLOCKS: Final = 16


class LightClient:
    """Verifies the finality proofs of one chain; it knows the genesis and nothing else. Certificates count once each."""

    def __init__(self, genesis: Genesis, chain: ShardId) -> None:
        self.verified = 0
        """Certificates whose signatures were verified."""
        self._domain = genesis.get_domain(chain)
        self._committee = genesis.committees[chain]
        self._crypto = BlsCrypto()
        self._known: set[Hash32] = set()

    def verify(self, proof: FinalityProof) -> Header:
        """Return the header that ``proof`` proves; raises ``InvalidProofError``."""
        return verify_proof_with(self._verify_certificate, self._domain, self._committee, proof)

    def _verify_certificate(self, certificate: Certificate) -> None:
        key = hash_struct(TAG_VOTE, certificate)
        if key not in self._known:
            verify_certificate(self._crypto, self._domain, self._committee, certificate)
            self._known.add(key)
            self.verified += 1


def verify_answer(
    client: LightClient, genesis: Genesis, chain: ShardId, answer: dict[str, Any]
) -> list[Header]:
    """Return the headers that a node proves by ``answer``, each the child of the one before.

    Raises ``InvalidProofError`` or ``DecodeError``.
    """
    headers: list[Header] = []
    for height, encoded in enumerate(answer["proofs"], start=int(answer["first"])):
        proof = decode(bytes.fromhex(encoded), FinalityProof, max_bytes=MAX_MESSAGE_BYTES)
        header = client.verify(proof)
        if header.height != height:
            raise InvalidProofError(f"got the proof of height {header.height}, expected {height}")
        parent = headers[-1].hash if headers else None
        if height == 1:
            parent = genesis.get_genesis_block(chain).hash
        if parent is not None and header.parent != parent:
            raise InvalidProofError(f"the block at height {height} is no child of the one before")
        headers.append(header)
    return headers


async def _read_proofs(
    witnesses: Witnesses, node: str, client: LightClient, first: int, last: int
) -> tuple[list[Header], str]:
    """Return the headers that ``node`` proves from ``first`` to ``last``, and why it gave no more, for the end of a sentence.

    An answer is capped by its size, so it is asked again from where the one before ended.
    """
    genesis, (chain, _) = witnesses.network.genesis, parse_node(node)
    headers: list[Header] = []
    start, has_jumped = first, False
    while start <= last:
        answer = await witnesses.ask(node, "proofs", first=start, count=last + 1 - start)
        if answer is None:
            return headers, f": {witnesses.silent[node]}"
        begin = int(answer["first"])
        if begin < start:
            raise InvalidProofError(f"got proofs from height {begin} on, expected none below {start}")
        found = verify_answer(client, genesis, chain, answer)
        if begin > start:  # its history begins there: it came by a snapshot, maybe since it told its height
            if has_jumped:
                break
            has_jumped, headers = True, []
            last = max(last, begin + last - first)
        elif headers and found and found[0].parent != headers[-1].hash:
            raise InvalidProofError(f"the block at height {begin} is no child of the one before")
        elif not found:
            break
        headers += found
        start = found[-1].height + 1 if found else begin
    return headers, ""


async def check_finality(network: Network, blocks: int = DEFAULT_BLOCKS) -> Verdict:
    """Verify the finality proofs of the last ``blocks`` of every chain, from every node that answers."""
    witnesses = Witnesses(network)
    clients = {chain: LightClient(network.genesis, chain) for chain in network.genesis.committees}
    findings: list[str] = []
    rows: list[dict[str, Any]] = []
    for node, heads in (await witnesses.ask_all("finals", first=1, count=1)).items():
        chain, _ = parse_node(node)
        try:
            height = int(heads["height"])
            first = max(1, height - blocks + 1)
            headers, refusal = await _read_proofs(witnesses, node, clients[chain], first, height)
        except (RemoteProtocolError, KeyError, TypeError, ValueError) as error:
            findings.append(f"{node}: {error}")
            continue
        last = headers[-1].height if headers else 0
        if last < height:
            proven = (
                f"its final blocks up to {last} only, of {height}"
                if headers
                else f"none of its {height} final blocks"
            )
            findings.append(f"{node}: it proves {proven}{refusal}")
        begin = headers[0].height if headers else first
        rows.append({"node": node, "proven": len(headers), "first": begin, "last": last})
    for chain in network.genesis.committees:
        if not any(parse_node(row["node"])[0] == chain and row["proven"] for row in rows):
            names = ", ".join(witnesses.list_nodes(chain))
            findings.append(f"no node proves a block of its chain: {names}")
    verified = sum(client.verified for client in clients.values())
    proven = sum(row["proven"] for row in rows)
    words = (
        f"{proven} finality proofs of {len(rows)} nodes verify from the genesis alone, {verified} certificates"
        if not findings
        else f"{len(findings)} nodes or chains prove nothing"
    )
    figures = {"nodes": rows, "certificates": verified, "silent": sorted(witnesses.silent)}
    return build_verdict("finality", words + witnesses.describe_silent(), figures, findings)
