"""Passes TCP connections on: `python relay.py LISTEN_HOST LISTEN_PORT HOST PORT`, until it is killed.

For a server that listens on loopback alone and is to be reached from another network namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys


async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    target.close()


async def serve(listen_host: str, listen_port: str, host: str, port: str) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()  # a server that is down refuses; a relay can only hang up
            return
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    server = await asyncio.start_server(relay, listen_host, int(listen_port))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
