"""Errors of the inner rooms, in two kinds that never share a type.

``RemoteProtocolError`` and its children mean that a peer sent something wrong: the edge counts it and drops the bytes.
``LocalProtocolError`` means that this process was about to break a rule: it is a programmer error and stops the machine.
Every message says what was got and what was expected.
"""


class ShardyardError(Exception):
    """Root of every error the project raises on purpose."""


class RemoteProtocolError(ShardyardError):
    """A peer's bytes break a rule; they are counted and dropped, never a crash."""


class DecodeError(RemoteProtocolError):
    """Bytes are not the canonical encoding of what they claim to be."""


class TooLargeError(DecodeError):
    """Bytes exceed the cap of their kind; refused before allocation."""


class InvalidCertificateError(RemoteProtocolError):
    """A certificate lacks its quorum, its signature or its shape."""


class InvalidBlockError(RemoteProtocolError):
    """A block breaks a validity rule."""


class InvalidAccessListError(RemoteProtocolError):
    """An access list is not the one that the header beside it commits to (B6)."""


class InvalidCrosslinkError(RemoteProtocolError):
    """A crosslink breaks a rule of X4 or X11."""


class InvalidProofError(RemoteProtocolError):
    """A proof of finality or of a message does not verify."""


class UnsolicitedError(RemoteProtocolError):
    """An answer that nobody asked for (L9)."""


class LocalProtocolError(ShardyardError):
    """This process was about to break a rule of its own."""


class ConfigError(ShardyardError):
    """A preset, a network file or a flag is wrong; the text says what to try."""


class SupplyError(ShardyardError):
    """Value would be created or lost (X2, X11)."""
