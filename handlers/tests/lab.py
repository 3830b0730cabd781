"""Real Redis servers, real HAProxy and real writers, on free loopback ports in one directory that is removed afterwards.

Used by the handlers' tests and by the scenarios. Processes are ended by the object that started them; their logs stay
when the directory is kept.
"""

import atexit
import bisect
import itertools
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time



def within_reach(directory):
    """The directory, or a copy of it where other users may go: handlers run as PostgreSQL's user, and a clone may lie in
    root's home.
    """
    place = directory
    while place != "/":
        if not os.stat(place).st_mode & 0o001:
            copy = tempfile.mkdtemp(prefix="lockstep-handlers-")
            atexit.register(shutil.rmtree, copy, ignore_errors=True)
            os.chmod(copy, 0o755)
            return shutil.copytree(directory, os.path.join(copy, "handlers"))
        place = os.path.dirname(place)
    return directory


HANDLERS = within_reach(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if HANDLERS not in sys.path:
    sys.path.insert(0, HANDLERS)
from pgwire import Refused  # noqa: E402
from resp import Connection, ReplyError  # noqa: E402

START_S = 10.0  # the longest that a process may take to become ready


def wait_until(condition, what, seconds=START_S, every_s=0.01):
    """Returns the first true value of `condition()`; a server that is not there yet counts as false."""
    ends = time.monotonic() + seconds
    while True:
        try:
            value = condition()
        except (OSError, ReplyError, Refused):
            value = None
        if value:
            return value
        if time.monotonic() > ends:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(every_s)


def free_port():
    """A port that was free a moment ago; ports handed out before are not given twice."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in free_port.given:
            free_port.given.add(port)
            return port


free_port.given = set()


class Lab:
    """The directory, and every process in it."""

    def __init__(self, name, under=None):
        self.directory = tempfile.mkdtemp(prefix=f"lockstep-{name}-", dir=under)
        self.keep = False
        self._running = []
        self._closing = []

    def start(self, name, argv, env=None):
        """Starts a process with its output in NAME.log. It is killed when the lab is closed."""
        log = open(os.path.join(self.directory, f"{name}.log"), "ab")
        process = subprocess.Popen(argv, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        log.close()
        self._running.append(process)
        return process

    def on_close(self, action):
        self._closing.append(action)

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def write(self, name, text, mode=0o644):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(self.path(name), mode)
        return self.path(name)

    def close(self):
        for action in reversed(self._closing):
            action()
        for process in reversed(self._running):
            if process.poll() is None:
                process.kill()
        for process in self._running:  # all of them die at the same time
            process.wait()
        if self.keep:
            print(f"logs kept in {self.directory}", file=sys.stderr)
        else:
            shutil.rmtree(self.directory, ignore_errors=True)


class Redis:
    """One redis-server with its own configuration file, which it may rewrite."""

    def __init__(self, lab, name, *settings):
        self.lab, self.name, self.port = lab, name, free_port()
        self.address = f"127.0.0.1:{self.port}"
        lines = [f"port {self.port}", "bind 127.0.0.1", 'save ""', "appendonly no", f"dir {lab.directory}",
                 f"dbfilename {name}.rdb", "repl-diskless-sync-delay 0", "repl-backlog-size 16mb", *settings]
        self.configuration = lab.write(f"{name}.conf", "\n".join(lines) + "\n")
        self.process = None

    def start(self):
        self.process = self.lab.start(self.name, ["redis-server", self.configuration])
        wait_until(lambda: self.call("PING") == "PONG", f"{self.name} answers")
        return self

    def follow(self, other):
        self.call("REPLICAOF", "127.0.0.1", other if isinstance(other, int) else other.port)
        wait_until(lambda: self.info().get("master_link_status") == "up", f"{self.name} is in sync")
        return self

    def connection(self, timeout_s=5.0):
        return Connection(("127.0.0.1", self.port), timeout_s)

    def call(self, *words):
        with self.connection() as redis:
            return redis.call(*words)

    def info(self):
        with self.connection() as redis:
            return redis.info()

    def is_primary(self):
        with self.connection() as redis:
            return self.says_primary(redis)

    def says_primary(self, connection):
        return connection.call("ROLE")[0] == "master"

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        """One that its handler has started, too."""
        try:
            self.call("SHUTDOWN", "NOSAVE")
        except (OSError, ReplyError):
            pass  # it is down; or how success looks


class Haproxy:
    """One HAProxy in TCP mode: frontend `redis`, backend `cache` with the one server `primary`."""

    CONFIGURATION = """\
global
    stats socket {socket} mode 600 level admin
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    {more}
frontend redis
    bind 127.0.0.1:{port}
    default_backend cache
backend cache
    server primary {target}
"""

    def __init__(self, lab, name, target, more=""):
        """`more`: a line for its defaults."""
        self.lab, self.name, self.port = lab, name, free_port()
        self.socket = lab.path(f"{name}.sock")
        text = self.CONFIGURATION.format(socket=self.socket, port=self.port, target=target, more=more)
        self.configuration = lab.write(f"{name}.cfg", text)
        self.process = None

    def start(self):
        self.process = self.lab.start(self.name, ["haproxy", "-db", "-f", self.configuration])
        wait_until(lambda: "Uptime" in self.ask("show info"), f"{self.name} answers")
        return self

    def ask(self, command):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(self.socket)
            connection.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def limit(self):
        """How many connections the process takes at once."""
        return int(self.ask("show info").split("\nMaxconn: ")[1].split()[0])

    def server_address(self):
        row = self.ask("show servers state cache").splitlines()[2].split()
        return f"{row[4]}:{row[18]}"


class Relay:
    """Passes bytes between a port of its own and a target until it is stalled: a network that goes quiet, not down."""

    def __init__(self, lab, target_port, delay_s=0.0):
        self._delay_s = delay_s  # how late every piece arrives: what is under way when a role changes can get lost
        self._open = threading.Event()
        self._open.set()
        self._target_port = target_port
        self._sockets = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        lab.on_close(self.close)
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def stall(self):
        self._open.clear()

    def go_on(self):
        self._open.set()

    def close(self):
        self._open.set()
        cut(self._listener)
        self._accepting.join()
        for one in [self._listener, *self._sockets]:
            cut(one)
            one.close()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            self._sockets.append(near)
            try:
                far = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                cut(near)
                continue
            self._sockets.append(far)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source, sink):
        try:
            while True:
                data = source.recv(16384)
                time.sleep(self._delay_s)
                self._open.wait()
                if not data:
                    break
                sink.sendall(data)
        except OSError:
            pass
        cut(source)
        cut(sink)


def cut(one):
    """Wakes the thread that reads it, which a close alone does not."""
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was never connected, or is already


class Writers:
    """Clients that write unique keys through edges and note which server acknowledged each, and when.

    Each repeats a write until it is acknowledged, on a new connection after every error, as an application would.
    """

    def __init__(self, edge_ports, count=8, per_second=1000):
        self.edge_ports = edge_ports
        self._numbers = itertools.count(1)
        self._stop = threading.Event()
        self._every_s = count / per_second
        self.acknowledged = []  # (when, number, port of the server that acknowledged)
        self.errors = []  # (when, text)
        self._threads = [threading.Thread(target=self._write, args=(edge_ports[i % len(edge_ports)],), daemon=True)
                         for i in range(count)]

    def start(self):
        for thread in self._threads:
            thread.start()
        return self

    def give_up(self):
        """Without waiting for it: what they talk to may be gone."""
        self._stop.set()

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
            if thread.is_alive():
                raise TimeoutError("a writer is stuck")

    def wait_for(self, more, seconds=20):
        """Until so many more writes have been acknowledged."""
        goal = len(self.acknowledged) + more
        wait_until(lambda: len(self.acknowledged) >= goal, f"{more} more acknowledged writes", seconds)

    def longest_stall_ms(self, since=0.0, until=float("inf")):
        times = sorted(when for when, _, _ in self.acknowledged)
        times = times[bisect.bisect_left(times, since):bisect.bisect_right(times, until)]
        return max((after - before for before, after in zip(times, times[1:])), default=0) * 1000

    def overlap_ms(self, since=0.0, until=float("inf")):
        """For how long two servers acknowledged writes side by side, by the clients' own account, around one move."""
        spans = {}
        for when, _, port in self.acknowledged:
            if since <= when < until:
                first, last = spans.get(port, (when, when))
                spans[port] = (min(first, when), max(last, when))
        ordered = sorted(spans.values())
        return max((max(0.0, before[1] - after[0]) for before, after in zip(ordered, ordered[1:])), default=0.0) * 1000

    def connect(self, edge_port):
        connection = Connection(("127.0.0.1", edge_port), 15)
        connection.server_port = int(connection.info()["tcp_port"])  # in TCP mode a connection has one server
        return connection

    def write(self, connection, number):
        """Returns the port of the server that has acknowledged it."""
        connection.call("SET", f"k:{number}", f"{number}:" + "x" * 64)
        return connection.server_port

    def _write(self, edge_port):
        connection, due = None, time.monotonic()
        while not self._stop.is_set():
            number = next(self._numbers)
            due = max(due + self._every_s, time.monotonic() - self._every_s)  # no burst to make up for a stall
            time.sleep(max(due - time.monotonic(), 0))
            while True:
                try:
                    if connection is None:
                        connection = self.connect(edge_port)
                    server_port = self.write(connection, number)
                    self.acknowledged.append((time.monotonic(), number, server_port))
                    break
                except (OSError, ReplyError, Refused) as error:
                    self.errors.append((time.monotonic(), f"{type(error).__name__}: {error}"))
                    if connection is not None:
                        connection.close()
                        connection = None
                    if self._stop.is_set():
                        break
                    time.sleep(0.005)
        if connection is not None:
            connection.close()


class RoleSampler:
    """Asks every server for its own role, again and again, and notes when more than one said primary."""

    def __init__(self, servers, every_s=0.005):
        self.samples, self.two_primaries = 0, 0
        self._servers, self._every_s, self._stop = servers, every_s, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def start(self):
        self._thread.start()
        return self

    def give_up(self):
        self._stop.set()

    def stop(self):
        self._stop.set()
        self._thread.join(10)

    def _sample(self):
        connections = {}
        while not self._stop.is_set():
            primaries = 0
            for server in self._servers:
                try:
                    if server.name not in connections:
                        connections[server.name] = server.connection(1.0)
                    primaries += server.says_primary(connections[server.name])
                except (OSError, ReplyError, Refused):
                    gone = connections.pop(server.name, None)  # a demotion closes us like any other client
                    if gone:
                        gone.close()
            self.samples += 1
            self.two_primaries += primaries > 1
            time.sleep(self._every_s)
        for connection in connections.values():
            connection.close()


class Ending:
    """When a process ended, as the kernel says."""

    def __init__(self, pid):
        self._descriptor, self.at = os.pidfd_open(pid), None
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self):
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.poll()
        self.at = time.monotonic()
        os.close(self._descriptor)


def missing(acknowledged, primary):
    """Which acknowledged writes the server does not have."""
    lost, batch = [], 500
    numbers = [number for _, number, _ in acknowledged]
    with primary.connection() as redis:
        for start in range(0, len(numbers), batch):
            part = numbers[start:start + batch]
            values = redis.call("MGET", *(f"k:{number}" for number in part))
            lost += [number for number, value in zip(part, values) if value is None]
    return lost
