"""One engine under a microscope: the test plays every other validator and answers the host's part itself."""

from node.sim.mock_crypto import sign_mock
from shardyard.blocks import Block, Justification
from shardyard.consensus.engine import BlockFinal, NoBlockSource, RequestBuild, RequestValidation
from shardyard.consensus.proposer import build_header
from shardyard.consensus.signer import SignerState
from shardyard.consensus.simplex import SimplexEngine
from shardyard.consensus.votes import Vote, VoteKind, build_certificate
from shardyard.effects import Broadcast, Notice, Persist, Sign
from shardyard.ids import ZERO_HASH
from shardyard.messages import Certificates, Proposal, Votes
from tests.unit.consensus.harness import CONTENT, CRYPTO, GENESIS, build_committee, build_config, sign_vote

PEER = "peer"


class Solo:
    """An engine with local keys; what it puts out is sorted into lists."""

    def __init__(self, stakes=(1, 1, 1, 1), local=(0,), validate=True, **changes):
        self.committee = build_committee(stakes)
        self.config = build_config(self.committee, local, **changes)
        self.validate = validate
        self.now_ms = 1_000_000
        self.signer = SignerState()
        self.log = []
        self.boot()

    def boot(self):
        self.outputs = []
        self.engine = SimplexEngine(self.config, CRYPTO, NoBlockSource())
        self.recovered = [final for record in self.log if (final := self.engine.recover(record)) is not None]
        self.feed(self.engine.start(self.now_ms))

    def feed(self, outputs):
        for output in outputs:
            self.outputs.append(output)
            if isinstance(output, Persist):
                self.log.extend(output.records)
            elif isinstance(output, Sign):
                self.feed(self.engine.on_signed(self.sign(output.requests), self.now_ms))
            elif isinstance(output, RequestValidation) and self.validate:
                self.feed(self.engine.on_validated(output.block.hash, True, "", self.now_ms))

    def sign(self, requests):
        votes = []
        for request in requests:
            if self.signer.check(request):
                self.signer.record(request)
                key = self.committee.validators[request.validator].public_key
                votes.append(
                    Vote(
                        request.kind,
                        request.slot,
                        request.block_hash,
                        request.validator,
                        sign_mock(key, request.message),
                    )
                )
        return tuple(votes)

    def hear(self, message, sender=PEER):
        self.feed(self.engine.on_message(sender, message, self.now_ms))

    def fire(self, name):
        self.feed(self.engine.on_timer(name, self.now_ms))

    def time_out(self):
        """Let the current slot's timer run out for good."""
        name = f"engine.slot.{self.engine.slot}"
        self.fire(name)
        self.fire(name)

    def vote(self, kind, slot, block_hash=ZERO_HASH, validator=1):
        return sign_vote(self.committee, kind, slot, block_hash, validator)

    def certify(self, kind, slot, block_hash=ZERO_HASH, validators=(1, 2, 3)):
        votes = [self.vote(kind, slot, block_hash, validator) for validator in validators]
        return build_certificate(CRYPTO, self.committee, votes)

    def build_block(self, slot, parent=GENESIS, skips=(), body=b"", notarization=None, timestamp_ms=None):
        """Return a signed proposal of the slot's leader."""
        if notarization is None and parent is not GENESIS:
            notarization = self.certify(VoteKind.NOTAR, parent.header.slot, parent.hash)
        justification = Justification(
            notarization=notarization, skips=tuple(self.certify(VoteKind.SKIP, skip) for skip in skips)
        )
        header = build_header(
            self.config,
            slot,
            parent,
            GENESIS.header.kind,
            timestamp_ms or parent.header.timestamp_ms + 1000,
            CONTENT,
            body,
            justification,
        )
        return self.sign_block(header, justification, body)

    def sign_block(self, header, justification, body=b""):
        leader = self.committee.get_leader(header.slot)
        signature = sign_vote(self.committee, VoteKind.PROPOSE, header.slot, header.hash, leader).signature
        return Block(
            header=header, justification=justification, body=body, signature=signature, beacon_proof=b""
        )

    def propose(self, *args, **kwargs):
        block = self.build_block(*args, **kwargs)
        self.hear(Proposal(block))
        return block

    def certify_and_hear(self, kind, slot, block_hash=ZERO_HASH, validators=(1, 2, 3)):
        certificate = self.certify(kind, slot, block_hash, validators)
        self.hear(Certificates((certificate,)))
        return certificate

    def votes_sent(self, kind):
        return [
            vote
            for output in self.outputs
            if isinstance(output, Broadcast) and isinstance(output.message, Votes)
            for vote in output.message.votes
            if vote.kind is kind
        ]

    def messages(self, kind):
        return [
            output.message
            for output in self.outputs
            if isinstance(output, Broadcast) and isinstance(output.message, kind)
        ]

    def of(self, kind):
        return [output for output in self.outputs if isinstance(output, kind)]

    def notices(self, kind):
        return [notice for notice in self.of(Notice) if notice.kind == kind]

    @property
    def finals(self):
        return [output.block for output in self.of(BlockFinal)]

    def builds(self):
        return self.of(RequestBuild)
