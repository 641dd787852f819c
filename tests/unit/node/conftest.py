"""What tests of the RPC and the index share: a running shard without consensus."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.node.rpc_chain import RpcChain, open_chain


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[RpcChain]:
    """Shard 1 of four at genesis, its backend running."""
    async with open_chain(tmp_path) as found:
        yield found
