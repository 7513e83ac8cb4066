"""A tiny HTTP server, run as a process of its own, whose answer the path of the request chooses.

/ok 200 · /status/503 that status · /slow/20 after 20 ms · /hang never · /drop closes without an answer ·
/once answers and closes · /garbage answers what is not HTTP
"""

import asyncio
import sys

import httptools
import uvloop


class Answerer(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_url(self, url):
        self.path = url.decode()

    def on_message_complete(self):
        kind, _, value = self.path.strip("/").partition("/")
        if kind == "drop":
            self.transport.abort()
        elif kind == "garbage":
            self.transport.write(b"\x00nonsense\r\n\r\n")
        elif kind == "slow":
            asyncio.get_running_loop().call_later(float(value) / 1e3, self.answer, 200, kind)
        elif kind != "hang":
            self.answer(int(value or 200), kind)

    def answer(self, status, kind):
        close = b"Connection: close\r\n" if kind == "once" else b""
        self.transport.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n%s\r\n{}" % (status, close))
        if kind == "once":
            self.transport.close()


async def main():
    server = await asyncio.get_running_loop().create_server(Answerer, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
