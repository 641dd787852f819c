"""The shell: the only room with asyncio, files, sockets and processes. It performs what the machines decide."""
