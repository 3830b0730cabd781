"""A RESP2 client over one socket: just enough of Redis's protocol for a handler and for a witness."""

import socket


class ReplyError(Exception):
    """Redis answered with an error, such as READONLY."""


class Connection:
    """One connection; every call has the same time-out. Raises OSError when Redis is not there or not answering."""

    def __init__(self, address, timeout_s=2.0, username=None, password=None):
        """`address` is (host, port), or the path of a unix socket."""
        self._socket = connected(address, timeout_s)
        self._reader = self._socket.makefile("rb")
        if password:
            try:
                self.call("AUTH", *([username] if username else []), password)
            except (OSError, ReplyError):
                self.close()
                raise

    def call(self, *words):
        return self.calls([words])[0]

    def calls(self, commands):
        """Sends all commands in one piece and returns their replies; the first error reply is raised after all were read."""
        self._socket.sendall(b"".join(encode(words) for words in commands))
        replies = [self._reply() for _ in commands]
        for reply in replies:
            for part in reply if isinstance(reply, list) else [reply]:
                if isinstance(part, ReplyError):
                    raise part
        return replies

    def info(self):
        pairs = (line.split(":", 1) for line in self.call("INFO").splitlines() if ":" in line)
        return {key: value for key, value in pairs}

    def close(self):
        self._reader.close()
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _reply(self):
        line = self._reader.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2].decode("utf-8", "replace")
        if kind == b"+":
            return rest
        if kind == b"-":
            return ReplyError(rest)
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == "-1" else self._bulk(int(rest))
        if kind == b"*":
            return None if rest == "-1" else [self._reply() for _ in range(int(rest))]
        raise ConnectionError(f"not a Redis reply: {line[:40]!r}")

    def _bulk(self, length):
        data = self._reader.read(length + 2)
        if len(data) != length + 2:
            raise ConnectionError("Redis closed the connection")
        return data[:-2].decode("utf-8", "replace")


def connected(address, timeout_s):
    if not isinstance(address, str):
        made = socket.create_connection(address, timeout_s)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(timeout_s)
        made.connect(address)
    except OSError:
        made.close()
        raise
    return made


def encode(words):
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
