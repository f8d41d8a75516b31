"""gRPC over HTTP/2 for asyncio and uvloop: server, client, and what goes with them. See docs/rpc.md."""
