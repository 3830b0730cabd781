"""A PostgreSQL client over one socket (protocol 3.0, simple queries): just enough for a handler and for a witness.

PgBouncer's console speaks the same protocol. Values come back as text, or None for null.
"""

import os
import socket
import struct

PROTOCOL, TLS_REQUEST = 196608, 80877103


class Refused(Exception):
    """The server answered with an error. `code` is its SQLSTATE, `is_fatal` when it has closed the connection."""

    def __init__(self, body):
        fields = dict((part[:1].decode(), part[1:].decode("utf-8", "replace")) for part in body.split(b"\0") if part)
        self.code = fields.get("C", "")
        self.is_fatal = fields.get("V", fields.get("S")) in ("FATAL", "PANIC")
        super().__init__(fields.get("M", "no message"))


class Connection:
    """One connection; every read has the same time-out. Raises OSError when the server is not there or not answering."""

    def __init__(self, address, user, database, password=None, timeout_s=2.0, tls="disable", tls_root=None, **parameters):
        """`address` is (host, port), or the path of a unix socket. `tls` is libpq's sslmode."""
        self._user, self._password = user, password
        self.titles = []  # of the columns that the last query gave
        self._socket = connected(address, timeout_s)
        try:
            if tls not in ("disable", "allow") and not isinstance(address, str):
                self._encrypt(address[0], tls, tls_root)
            self._reader = self._socket.makefile("rb")
            words = [part for pair in {"user": user, "database": database, **parameters}.items() for part in pair]
            text = b"".join(word.encode() + b"\0" for word in words) + b"\0"
            self._socket.sendall(struct.pack("!ii", len(text) + 8, PROTOCOL) + text)
            self._log_in()
        except BaseException:
            self._socket.close()
            raise

    def query(self, sql):
        """The rows of the last statement in it."""
        self._send(b"Q", sql.encode() + b"\0")
        return self._until_ready()

    def row(self, sql):
        return self.query(sql)[0]

    def value(self, sql):
        return self.row(sql)[0]

    def set_timeout(self, seconds):
        self._socket.settimeout(seconds)

    def close(self):
        try:
            self._send(b"X", b"")
        except OSError:
            pass  # it has gone before us
        self._reader.close()
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _until_ready(self):
        rows, error = [], None
        while True:
            kind, body = self._message()
            if kind == b"T":
                rows, self.titles = [], titles(body)
            elif kind == b"D":
                rows.append(values(body))
            elif kind == b"E":
                error = Refused(body)
                if error.is_fatal:
                    raise error
            elif kind == b"Z":
                if error:
                    raise error
                return rows

    def _send(self, kind, body):
        self._socket.sendall(kind + struct.pack("!i", len(body) + 4) + body)

    def _message(self):
        head = self._exactly(5)
        return head[:1], self._exactly(struct.unpack("!i", head[1:])[0] - 4)

    def _exactly(self, count):
        data = self._reader.read(count)
        if len(data) != count:
            raise ConnectionError("PostgreSQL closed the connection")
        return data

    # --- who we are

    def _encrypt(self, host, mode, root):
        self._socket.sendall(struct.pack("!ii", 8, TLS_REQUEST))
        if self._socket.recv(1) == b"S":
            import ssl  # here: loading it costs as much as a phase without it
            context = ssl.create_default_context(cafile=root and os.path.expanduser(root))
            context.check_hostname = mode == "verify-full"
            if mode not in ("verify-ca", "verify-full"):
                context.verify_mode = ssl.CERT_NONE
            self._socket = context.wrap_socket(self._socket, server_hostname=host)
        elif mode != "prefer":
            raise ConnectionError(f"{host} offers no TLS, and sslmode is {mode}")

    def _log_in(self):
        scram = None
        while True:
            kind, body = self._message()
            if kind == b"E":
                raise Refused(body)
            if kind != b"R":
                break  # parameters; what follows them is "ready"
            how = struct.unpack("!i", body[:4])[0]
            if how in (3, 5, 10) and self._password is None:
                raise ConnectionError(f"PostgreSQL asks for a password of {self._user}, and none is configured")
            if how == 3:
                self._send(b"p", self._password.encode() + b"\0")
            elif how == 5:
                self._send(b"p", md5(self._user, self._password, body[4:8]) + b"\0")
            elif how == 10:
                scram = Scram(self._password)
                self._send(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(scram.first)) + scram.first)
            elif how == 11 and scram:
                self._send(b"p", scram.final(body[4:]))
            elif how == 12 and scram:
                scram.verify(body[4:])
            elif how != 0:
                raise ConnectionError(f"PostgreSQL asks for an authentication that is not known here ({how})")
        self._until_ready()


class Scram:
    """RFC 5802 and 7677 without channel binding, as the client."""

    def __init__(self, password):
        import base64
        self._password, self._nonce, self._server = password, base64.b64encode(os.urandom(18)), None
        self.first = b"n,,n=,r=" + self._nonce

    def final(self, challenge):
        import base64
        import hashlib
        import hmac
        fields = dict(part.split(b"=", 1) for part in challenge.split(b","))
        if not fields[b"r"].startswith(self._nonce):
            raise ConnectionError("PostgreSQL answered somebody else's SCRAM")
        salted = hashlib.pbkdf2_hmac("sha256", self._password.encode(), base64.b64decode(fields[b"s"]), int(fields[b"i"]))
        client = hmac.digest(salted, b"Client Key", "sha256")
        bare = b"c=biws,r=" + fields[b"r"]
        signed = b",".join([self.first[3:], challenge, bare])
        proof = hmac.digest(hashlib.sha256(client).digest(), signed, "sha256")
        self._server = base64.b64encode(hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256"))
        return bare + b",p=" + base64.b64encode(bytes(a ^ b for a, b in zip(client, proof)))

    def verify(self, answer):
        if answer != b"v=" + self._server:
            raise ConnectionError("this server does not know the password that it asks for")


def md5(user, password, salt):
    import hashlib
    inner = hashlib.md5((password + user).encode()).hexdigest().encode()
    return b"md5" + hashlib.md5(inner + salt).hexdigest().encode()


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


def values(body):
    """The fields of one row."""
    found, at = [], 2
    for _ in range(struct.unpack("!h", body[:2])[0]):
        length = struct.unpack("!i", body[at:at + 4])[0]
        at += 4
        found.append(None if length < 0 else body[at:at + length].decode("utf-8", "replace"))
        at += max(length, 0)
    return found


def titles(body):
    """The names of the columns that a row has."""
    found, at = [], 2
    for _ in range(struct.unpack("!h", body[:2])[0]):
        end = body.index(b"\0", at)
        found.append(body[at:end].decode("utf-8", "replace"))
        at = end + 19  # what else is told of each
    return found


def quoted(text):
    """As a string constant; standard_conforming_strings is on, unless somebody has turned the clock back to 9.0."""
    return "'" + text.replace("'", "''") + "'"


def conninfo(text):
    """libpq's `key=value` words; a value with spaces is in single quotes, with \\ before a quote."""
    import re
    found, at = {}, 0
    pattern = re.compile(r"\s*(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|(\S*))")
    while text[at:].strip():
        match = pattern.match(text, at)
        if not match:
            raise ValueError(f"{text[at:]!r} is no word of a connection string, such as user=replicator")
        value = match[2] if match[2] is not None else match[3]
        found[match[1]] = re.sub(r"\\(.)", r"\1", value)
        at = match.end()
    return found


def password_in(path, host, port, database, user):
    """From a password file as libpq reads it (`host:port:database:user:password`); None when no line fits."""
    import re
    with open(path, encoding="utf-8") as file:
        for line in file:
            parts = [re.sub(r"\\(.)", r"\1", part) for part in re.findall(r"((?:[^:\\]|\\.)*)(?::|$)", line.rstrip("\n"))[:5]]
            wanted = (host, str(port), database, user)
            if not line.startswith("#") and len(parts) == 5 and all(p in ("*", w) for p, w in zip(parts, wanted)):
                return parts[4]
    return None
