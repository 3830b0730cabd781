"""Stands between an agent and its server, reads what they say to each other, and can say an old order once more.

Their session is a WebSocket with a JSON object a message. Every byte is passed on as it came; an order that is repeated
goes in between two of the server's own.
"""

import json
import socket
import threading

from lab import cut, wait_until


class Wire:
    """Listens on `url` for one agent after the other, and connects each to the server."""

    def __init__(self, lab, server_url):
        host, port = server_url.removeprefix("http://").split(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.orders, self.reports = [], []  # (message, its bytes), (message)
        self._agent, self._sockets, self._between = None, [], threading.Lock()
        lab.on_close(self.close)
        threading.Thread(target=self._accept, daemon=True).start()

    def order(self, **like):
        """The first order that has these values, and its bytes."""
        found = lambda: [pair for pair in self.orders if like.items() <= pair[0].items()]
        return wait_until(found, f"an order like {like} passes")[0]

    def report(self, **like):
        """The first report that has these values."""
        found = lambda: [report for report in self.reports if like.items() <= report.items()]
        return wait_until(found, f"a report like {like} passes")[0]

    def repeat(self, data):
        with self._between:
            self._agent.sendall(data)

    def close(self):
        for one in [self._listener, *self._sockets]:
            cut(one)
            one.close()

    def _accept(self):
        while True:
            try:
                agent, _ = self._listener.accept()
            except OSError:
                return  # closed
            server = socket.create_connection(self._server)
            self._sockets += [agent, server]
            self._agent = agent
            for source, sink, note in ((server, agent, self._note_order), (agent, server, self._note_report)):
                threading.Thread(target=self._pass, args=(source, sink, note), daemon=True).start()

    def _note_order(self, message, data):
        self.orders.append((message, data))

    def _note_report(self, message, _data):
        self.reports.append(message)

    def _pass(self, source, sink, note):
        try:
            reader = source.makefile("rb")
            while True:  # the HTTP exchange that begins a WebSocket
                line = reader.readline()
                sink.sendall(line)
                if line in (b"\r\n", b""):
                    break
            while True:
                data, is_text, payload = frame(reader)
                if is_text:
                    note(json.loads(payload), data)
                with self._between:
                    send(sink, data)
        except (OSError, EOFError, ValueError):
            pass  # either side has ended it
        end(sink)  # and no more than that: what the other one still says is noted


def send(sink, data):
    try:
        sink.sendall(data)
    except OSError:
        pass  # it has gone


def end(sink):
    """After what is under way to it."""
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it has gone


def frame(reader):
    """One WebSocket frame (RFC 6455, 5.2): all its bytes, whether it is a whole text message, and its payload in clear."""
    head = exactly(reader, 2)
    is_text, length, mask = head[0] == 0x81, head[1] & 0x7F, b""
    if length >= 126:
        more = exactly(reader, 2 if length == 126 else 8)
        head, length = head + more, int.from_bytes(more, "big")
    if head[1] & 0x80:
        mask = exactly(reader, 4)
    payload = exactly(reader, length)
    clear = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)) if mask else payload
    return head + mask + payload, is_text, clear


def exactly(reader, count):
    data = reader.read(count)
    if len(data) < count:
        raise EOFError
    return data
