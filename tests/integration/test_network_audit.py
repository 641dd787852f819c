"""The auditor on logs of real processes: it holds what is true, and finds what was planted.

One network runs for a few seconds under load; every test damages a copy of its files in another way.
"""

import os
import random

import msgspec
import pytest

from node.audit import audit as auditing
from node.audit import replay
from node.audit.answered import Answered
from node.audit.audit import audit_network
from node.audit.findings import Promise
from node.bench.devnet import Devnet
from node.checks.offline import check_conservation_logs, check_no_forks_logs
from node.config import Options
from node.executor import StateRecord
from node.load.run import LoadRun, RunOptions
from node.load.workload import Knobs
from node.storage.frames import FRAME_BYTES, HEADER_BYTES, Frame, scan
from node.storage.log import LogEntry
from shardyard.blocks import ShardBody
from shardyard.codec import decode, encode
from shardyard.consensus.votes import VoteKind
from shardyard.crosslinks import BeaconBody, compute_crosslinks_root
from shardyard.effects import (
    BeaconRecord,
    BlockRecord,
    CertificateRecord,
    ExecutionRecord,
    FinalRecord,
    SubmissionRecord,
)
from tests.integration.log_surgery import (
    append_forged_block,
    certify,
    copy_network,
    decode_entry,
    get_final,
    get_log_file,
    read_entries,
    rewrite,
    write_entries,
)

pytestmark = pytest.mark.network
BLOCK_TIME_MS = 250
CHANGED_BYTES = 8


async def run_network(home):
    options = Options(name="audited", shards=2, validators=4, block_time_ms=BLOCK_TIME_MS)
    async with Devnet(home, options) as devnet:
        knobs = Knobs(shards=2, tps=60, cross_ratio=0.4, accounts=4, seed=11)
        load = LoadRun(devnet.urls, knobs, RunOptions(duration_s=3, warm_up_s=0, drain_s=30))
        result = await load.run()
    return devnet.network, result, load.list_answered()


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A stopped network, the result of its load, and what was answered."""
    import asyncio

    network, result, answered = asyncio.run(run_network(tmp_path_factory.mktemp("home")))
    return network, result, msgspec.convert(answered, list[Answered])


@pytest.fixture
def damaged(ran, tmp_path):
    """A copy to damage."""
    return copy_network(ran[0], tmp_path)


def find_broken(network, answered=None):
    report = audit_network(network, answered)
    return {row.promise: row.findings for row in report.rows if row.broken}


def test_true_network_holds_every_promise(ran):
    network, result, answered = ran
    report = audit_network(network, answered)
    assert {row.promise: row.findings for row in report.rows if row.broken} == {}
    assert all(row.examined for row in report.rows)
    assert report.held
    assert report.in_flight == 0
    assert result.settled == result.sent == report.answered.included - 8
    assert report.answered.delivered == report.messages_delivered > 0


def test_audit_leaves_the_files_as_they_were(ran):
    network = ran[0]
    before = {path: path.stat().st_mtime_ns for path in network.root.rglob("*.log")}
    audit_network(network)
    assert {path: path.stat().st_mtime_ns for path in network.root.rglob("*.log")} == before


@pytest.mark.parametrize("node", ["beacon-0", "shard-0-0"])
def test_flipped_byte_is_found(damaged, node):
    path = get_log_file(damaged, node)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert Promise.LOGS in find_broken(damaged)


def test_unfinished_end_is_no_finding(damaged):
    path = get_log_file(damaged, "shard-1-0")
    with path.open("ab") as file:
        file.write(path.read_bytes()[HEADER_BYTES : HEADER_BYTES + FRAME_BYTES + 5])
    report = audit_network(damaged)
    assert report.held
    assert [chain.unfinished_bytes > 0 for chain in report.chains] == [False, False, True]


def test_log_of_another_network_is_found(damaged):
    path = get_log_file(damaged, "shard-0-0")
    data = bytearray(path.read_bytes())
    data[20] ^= 1  # within the owner's hash in the header
    path.write_bytes(bytes(data))
    assert Promise.LOGS in find_broken(damaged)


def test_missing_log_is_found(damaged):
    get_log_file(damaged, "shard-0-0").unlink()
    assert Promise.LOGS in find_broken(damaged)


def cut_end(network, node):
    """Take the second half of a log's records away."""
    path = get_log_file(network, node)
    with path.open("rb") as file:
        ends = [item.end for item in scan(file.fileno(), 0) if isinstance(item, Frame)]
    os.truncate(path, ends[len(ends) // 2])


def test_lost_end_of_a_shard_is_found_by_its_crosslinks(damaged):
    cut_end(damaged, "shard-0-0")
    assert "are not in the shard's log" in str(find_broken(damaged)[Promise.CHAINS])
    for verdict in (check_conservation_logs(damaged), check_no_forks_logs(damaged)):
        assert not verdict.held
    assert check_conservation_logs(damaged).words.startswith("the logs do not prove the sum")


def test_lost_end_of_the_beacon_is_found_by_the_blocks_that_refer_to_it(damaged):
    cut_end(damaged, "beacon-0")
    report = audit_network(damaged)
    findings = next(row.findings for row in report.rows if row.promise is Promise.CHAINS)
    for finding, chain in zip(findings, report.chains[1:], strict=True):
        assert finding.startswith(f"{chain.chain} block {chain.executed + 1}: refers to beacon block")
        assert finding.endswith(f"the blocks from here up to {chain.height} were not checked")


def test_shards_ahead_of_the_first_reading_of_the_beacon_are_no_finding(ran, damaged, monkeypatch):
    """A running network grows while it is read: the second reading has what the first had not."""
    network, _, answered = ran
    cut_end(damaged, "beacon-0")
    readings = []
    read = auditing.read_log

    def read_growing(network, node, findings, opened):
        is_first = node == "beacon-0" and not readings
        log = read(damaged if is_first else network, node, findings, opened)
        if node == "beacon-0":
            readings.append(log.height)
        return log

    monkeypatch.setattr(auditing, "read_log", read_growing)
    report = audit_network(network, answered)
    assert {row.promise: row.findings for row in report.rows if row.broken} == {}
    assert len(readings) == 2
    assert all(chain.executed < chain.height for chain in report.chains[1:])
    assert report.answered.delivered + report.answered.in_flight == report.answered.messages
    assert report.answered.in_flight


def test_checks_of_true_logs_hold_and_compare_shards_with_what_the_beacon_accepted(ran):
    network = ran[0]
    assert check_conservation_logs(network).held
    verdict = check_no_forks_logs(network)
    assert verdict.held
    beacon, *shards = verdict.figures["chains"]
    assert beacon["compared"] == max(beacon["heights"].values())  # the shards followed it
    assert all(row["compared"] for row in shards)


def test_lost_block_is_found(damaged):
    final, _ = get_final(damaged, "shard-0-0", 3)

    def drop(record):
        return None if isinstance(record, BlockRecord) and record.block.hash == final.hash else record

    assert rewrite(damaged, "shard-0-0", drop) == 1
    assert "not in the log" in str(find_broken(damaged)[Promise.CHAINS])


def test_transaction_taken_out_of_a_body_is_found(damaged):
    def shorten(record):
        if not isinstance(record, BlockRecord) or not record.block.body:
            return record
        body = decode(record.block.body, ShardBody, max_bytes=1 << 24)
        if not body.ends:
            return record
        start = body.ends[-2] if len(body.ends) > 1 else 0
        shorter = encode(ShardBody(raw=body.raw[:start], ends=body.ends[:-1]))
        return BlockRecord(msgspec.structs.replace(record.block, body=shorter))

    assert rewrite(damaged, "shard-0-0", shorten)
    broken = find_broken(damaged)
    assert Promise.CHAINS in broken


def test_state_that_a_node_would_recover_from_must_be_true(damaged):
    def enrich(record):
        if isinstance(record, StateRecord) and record.height == 4:
            return msgspec.structs.replace(record, diff=record.diff[:-1] + bytes([record.diff[-1] ^ 1]))
        return record

    assert rewrite(damaged, "shard-1-0", enrich)
    assert "state diff" in str(find_broken(damaged)[Promise.EXECUTION])


def test_outcomes_that_differ_are_found(damaged):
    def forget(record):
        if isinstance(record, StateRecord) and record.outcomes != b"\x90":
            return msgspec.structs.replace(record, outcomes=b"\x90")
        return record

    assert rewrite(damaged, "shard-1-0", forget)
    assert "outcomes" in str(find_broken(damaged)[Promise.EXECUTION])


@pytest.mark.parametrize("is_lost", [False, True])
def test_access_list_that_a_node_would_serve_must_be_the_headers(damaged, is_lost):
    final, _ = get_final(damaged, "shard-1-0", 4)

    def change(record):
        if not isinstance(record, LogEntry) or record.label[-32:] != final.hash:
            return record
        return None if is_lost else msgspec.structs.replace(record, payload=record.payload[:-1])

    assert rewrite(damaged, "shard-1-0", change) == 1
    (finding,) = find_broken(damaged)[Promise.EXECUTION]
    assert "shard-1-0 block 4" in str(finding)
    assert ("lacks its access list" if is_lost else "access list in the log has hash") in str(finding)


def test_outbox_that_differs_is_found(damaged):
    def forget(record):
        return (
            ExecutionRecord(record.block_hash, ())
            if isinstance(record, ExecutionRecord) and record.outbox
            else record
        )

    assert rewrite(damaged, "shard-0-0", forget)
    assert "outbox in the log" in str(find_broken(damaged)[Promise.EXECUTION])


def test_message_that_vanished_from_a_recovered_inbox_is_found(damaged):
    def forget(record):
        if isinstance(record, BeaconRecord) and any(record.bundles):
            return msgspec.structs.replace(record, bundles=tuple(bundle[:-1] for bundle in record.bundles))
        return record

    assert rewrite(damaged, "shard-0-0", forget)
    assert "inbox in the log" in str(find_broken(damaged)[Promise.ORDER])


def test_no_changed_byte_makes_the_auditor_fail(damaged):
    """Checksums are right again after every change, so decoders and rules see it."""
    rng, found = random.Random(4), 0
    for _ in range(CHANGED_BYTES):
        node = rng.choice(["beacon-0", "shard-0-0", "shard-1-0"])
        true = read_entries(damaged, node)
        entries = list(true)
        index = rng.randrange(len(entries))
        payload = bytearray(entries[index].payload)
        payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
        entries[index] = msgspec.structs.replace(entries[index], payload=bytes(payload))
        write_entries(damaged, node, entries)
        found += bool(find_broken(damaged))
        write_entries(damaged, node, true)
    assert found >= CHANGED_BYTES - 2  # the rest stood in what never became final


def test_proof_of_a_beacon_block_that_proves_nothing_is_found(damaged):
    def thin_out(record):
        if isinstance(record, BeaconRecord) and record.block.header.height == 4:
            few = msgspec.structs.replace(record.proof.finalization, bitmap=b"\x03")
            return msgspec.structs.replace(
                record, proof=msgspec.structs.replace(record.proof, finalization=few)
            )
        return record

    assert rewrite(damaged, "shard-1-0", thin_out) == 1
    assert "stake" in str(find_broken(damaged)[Promise.FINALITY])


def test_reference_without_its_proof_is_found(damaged):
    final, _ = get_final(damaged, "shard-1-0", 5)

    def strip(record):
        if isinstance(record, BlockRecord) and record.block.hash == final.hash:
            return BlockRecord(msgspec.structs.replace(record.block, beacon_proof=b"\x93"))
        return record

    assert rewrite(damaged, "shard-1-0", strip) == 1
    assert Promise.CHAINS in find_broken(damaged)


def test_certificate_without_quorum_is_found(damaged):
    def thin_out(record):
        if isinstance(record, FinalRecord) and record.height == 5:
            few = msgspec.structs.replace(record.proof.finalization, bitmap=b"\x03")
            return msgspec.structs.replace(
                record, proof=msgspec.structs.replace(record.proof, finalization=few)
            )
        return record

    assert rewrite(damaged, "shard-0-0", thin_out) == 1
    assert "stake" in str(find_broken(damaged)[Promise.FINALITY])


def test_signature_of_other_votes_is_found(damaged):
    def swap(record):
        if isinstance(record, FinalRecord) and record.height == 5:
            other = msgspec.structs.replace(
                record.proof.finalization, signature=record.proof.notarization.signature
            )
            return msgspec.structs.replace(
                record, proof=msgspec.structs.replace(record.proof, finalization=other)
            )
        return record

    assert rewrite(damaged, "beacon-0", swap) == 1
    assert "does not verify" in str(find_broken(damaged)[Promise.FINALITY])


def test_two_certificates_for_one_slot_are_found(damaged):
    block, proof = get_final(damaged, "shard-0-0", 3)
    lie = certify(damaged, "shard-0-0", VoteKind.NOTAR, block.header.slot, bytes(31) + b"\x01")
    done = []

    def add(record):
        if isinstance(record, CertificateRecord) and not done:
            done.append(record)
            return CertificateRecord(lie)
        return record

    assert proof is not None
    assert rewrite(damaged, "shard-0-0", add) == 1
    assert "conflict" in str(find_broken(damaged)[Promise.FINALITY])


def test_bodies_that_the_beacon_lost_are_found(damaged):
    dropped = []

    def drop(record):
        if isinstance(record, SubmissionRecord) and any(record.submission.outboxes) and not dropped:
            dropped.append(record)
            return None
        return record

    assert rewrite(damaged, "beacon-0", drop) == 1
    assert "lacks the bodies" in str(find_broken(damaged)[Promise.CROSSLINKS])


def test_shard_that_followed_another_beacon_is_found(damaged):
    def swap(record):
        if isinstance(record, BeaconRecord) and record.block.header.height == 4:
            header = msgspec.structs.replace(
                record.block.header, timestamp_ms=record.block.header.timestamp_ms + 1
            )
            return msgspec.structs.replace(record, block=msgspec.structs.replace(record.block, header=header))
        return record

    assert rewrite(damaged, "shard-0-0", swap) == 1
    assert "another beacon chain" in str(find_broken(damaged)[Promise.CHAINS])


# What a committee that lies with one voice signs: every certificate is right, only execution and order tell.


def test_state_root_that_a_whole_committee_signed_is_found(damaged):
    append_forged_block(damaged, "shard-0-0", {"state_root": bytes(32)}, encode(ShardBody(b"", ())))
    broken = find_broken(damaged)
    assert "not what execution gives" in str(broken[Promise.EXECUTION])
    assert Promise.FINALITY not in broken


def test_height_that_a_whole_committee_misstates_is_found(damaged):
    last, _ = get_final(damaged, "shard-0-0")
    forged = append_forged_block(damaged, "shard-0-0", height=1 << 40)

    def correct(record):
        is_forged = isinstance(record, FinalRecord) and record.block_hash == forged.hash
        return msgspec.structs.replace(record, height=last.header.height + 1) if is_forged else record

    assert rewrite(damaged, "shard-0-0", correct) == 1
    assert f"got height {1 << 40}" in str(find_broken(damaged)[Promise.CHAINS])


def test_delivery_that_was_not_due_is_found(damaged):
    parent, _ = get_final(damaged, "shard-0-0")
    position = parent.header.shard_content.inbox_position + 1
    content = {"delivery_count": 1, "inbox_position": position, "transaction_count": 0}
    append_forged_block(damaged, "shard-0-0", content, encode(ShardBody(b"", ())))
    assert "took 1 messages, 0 were due" in str(find_broken(damaged)[Promise.ORDER])


def test_burning_less_than_was_burnt_is_found(damaged):
    content = {"burnt": bytes(32), "delivery_count": 0, "transaction_count": 0}
    append_forged_block(damaged, "shard-1-0", content, encode(ShardBody(b"", ())))
    broken = find_broken(damaged)
    assert Promise.EXECUTION in broken


def read_last_crosslinks(network):
    """Return the crosslinks of the last final beacon block that has one for each shard."""
    records = [decode_entry(entry) for entry in read_entries(network, "beacon-0")]
    finals = {record.block_hash for record in records if isinstance(record, FinalRecord)}
    blocks = [
        record.block for record in records if isinstance(record, BlockRecord) and record.block.hash in finals
    ]
    block = next(block for block in reversed(blocks) if block.header.beacon_content.crosslink_count == 2)
    return decode(block.body, BeaconBody, max_bytes=1 << 24).crosslinks


def forge_beacon_block(network, crosslinks):
    content = {"crosslinks_root": compute_crosslinks_root(crosslinks), "crosslink_count": len(crosslinks)}
    return append_forged_block(network, "beacon-0", content, encode(BeaconBody(tuple(crosslinks))))


def test_crosslinks_out_of_visit_order_are_found(damaged):
    last, _ = get_final(damaged, "beacon-0")
    start = (last.header.height + 1) % 2
    crosslinks = sorted(
        read_last_crosslinks(damaged), key=lambda crosslink: crosslink.shard, reverse=start == 0
    )
    forge_beacon_block(damaged, crosslinks)
    assert "visit order" in str(find_broken(damaged)[Promise.ORDER])


def test_crosslink_carried_twice_is_found(damaged):
    forge_beacon_block(damaged, read_last_crosslinks(damaged)[:1])
    assert "begins at" in str(find_broken(damaged)[Promise.CROSSLINKS])


def test_beacon_state_that_a_whole_committee_signed_is_found(damaged):
    append_forged_block(
        damaged,
        "beacon-0",
        {"crosslinks_root": bytes(32), "crosslink_count": 0, "state_root": bytes(32)},
        encode(BeaconBody(())),
    )
    assert "state root" in str(find_broken(damaged)[Promise.CROSSLINKS])


def test_wei_out_of_nothing_break_supply(damaged, monkeypatch):
    """An executor that mints: its states hold a wei more than messages and burning leave."""
    true = replay.ShardReplay.get_supply
    monkeypatch.setattr(replay.ShardReplay, "get_supply", lambda self: true(self) + (self.shard == 1))
    assert "wei" in str(find_broken(damaged)[Promise.SUPPLY])


def test_answered_transaction_that_is_nowhere_is_found(ran):
    network, _, answered = ran
    lost = Answered(shard=0, hash="0x" + "ab" * 32, sender="0x" + "cd" * 20, nonce=0)
    broken = find_broken(network, [*answered, lost])
    assert list(broken) == [Promise.ANSWERED]
    assert "no final block" in str(broken)


def test_replaced_transaction_is_accounted_for(ran):
    network, _, answered = ran
    used = next(item for item in answered if item.sender)
    replaced = msgspec.structs.replace(used, hash="0x" + "ab" * 32, message="")
    report = audit_network(network, [replaced])
    assert report.held
    assert report.answered.replaced == 1


def test_message_that_never_arrived_is_found(ran):
    network, _, answered = ran
    crossing = next(item for item in answered if item.message)
    lost = msgspec.structs.replace(crossing, message="0x" + "ab" * 32)
    assert "delivered 0 times" in str(find_broken(network, [lost])[Promise.ANSWERED])
