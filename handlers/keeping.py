"""What a handler keeps in files of its own: whole or not at all, one call at a time, and the highest token it acted on."""

import fcntl
import os

from lockstep_handler import Again, No, number


def read(path):
    """Its text; None when there is no such file, or no longer."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):  # the latter in /proc
        return None


def install(path, text):
    """Wholly or not at all, also over a power cut."""
    def put(new):
        os.rename(new, path)
        sync_directory(path)

    with_file(f"{path}.{os.getpid()}.new", text, put)


def sync_directory(path):
    """So that what was renamed to this path, or removed from it, stays so over a power cut."""
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def with_file(path, text, action):
    """The file is gone afterwards, unless the action has renamed it."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        action(path)
    finally:
        if os.path.exists(path):
            os.remove(path)


class Tokens:
    """The highest token under which something was put in place, in `BASE.token`."""

    def __init__(self, call, base):
        self._call, self._file = call, f"{base}.token"

    def known(self):
        text = read(self._file)
        if text is None:
            return 0
        if not text.strip().isdigit():
            raise No(f"{self._file} holds no token: what is in place cannot be told from an old order")
        return int(text)

    def is_old(self):
        """Whether this call was ordered before what is in place. One without a token is nobody's order, and so is not."""
        return bool(self._call.env.get("LOCKSTEP_TOKEN")) and self._ordered() < self.known()

    def refuse_old(self):
        if self.is_old():
            raise No(f"refused: token {self._ordered()} is lower than {self.known()}, which is in {self._file}; this is an "
                     f"old order, or one of a cluster that was set up anew: then remove that file")

    def remember(self):
        if self._ordered() > self.known():
            install(self._file, f"{self._ordered()}\n")

    def _ordered(self):
        return number(self._call.env, "LOCKSTEP_TOKEN", 0)


class Lock:
    """One call at a time may look at the token and act on it: the agent sees to that, an order from elsewhere does not."""

    def __init__(self, call, base):
        self._call, self._path, self._file = call, f"{base}.lock", None

    def __enter__(self):
        self._file = open(self._path, "w", encoding="ascii")
        for _ in self._call.poll():
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
        self._file.close()
        raise Again(f"another call holds {self._path}")

    def __exit__(self, *_):
        self._file.close()
