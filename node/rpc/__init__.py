"""JSON-RPC of a shard: HTTP and WebSocket on one port.

``server`` (uvicorn in the node's loop) · ``app`` (ASGI) · ``access`` (who may speak) · ``protocol`` (JSON-RPC 2.0) ·
``methods`` (the table) · ``params`` (reading) · ``formats`` (JSON shapes) · ``api`` (blocks and states by argument) ·
``pending`` (the preview) · ``filters``, ``subscriptions``, ``sockets`` (what is told later) · ``eth_chain``, ``eth_state``,
``eth_blocks``, ``eth_logs``, ``shard_methods`` (the methods). Errors are ``node.refusal``'s.
"""
