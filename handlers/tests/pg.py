"""Real PostgreSQL servers that replicate, real PgBouncer and clients that write through them, beside lab.py.

As root, everything of PostgreSQL runs as the user `postgres`, which Debian's packages make. Servers are laid out as Debian
does it: the configuration outside of the data directory.
"""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time

from lab import Writers, free_port, wait_until  # first: it puts the handlers' directory on the path
from pgwire import Connection, Refused

BIN = "/usr/lib/postgresql/15/bin"  # where Debian has what belongs to one version
USER = "postgres" if os.geteuid() == 0 else None
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # for a Lab in which no disk is to be waited for
AS_USER = {"user": USER, "group": USER, "extra_groups": []} if USER else {}

CONFIGURATION = """\
data_directory = '{data}'
hba_file = '{hba}'
port = {port}
listen_addresses = '127.0.0.1'
unix_socket_directories = '{sockets}'
cluster_name = '{name}'
shared_buffers = 16MB
max_connections = 60
wal_level = replica
wal_keep_size = 256MB
wal_log_hints = on
log_line_prefix = '%m [%p] '
log_min_messages = warning
dynamic_shared_memory_type = mmap
"""

HBA = """\
local all         all                      trust
host  all         secret   127.0.0.1/32    scram-sha-256
host  all         old      127.0.0.1/32    md5
host  all         all      127.0.0.1/32    trust
host  replication all      127.0.0.1/32    trust
"""

# What docs/handlers say that the peers' user needs, and no more.
ROLES = """
create role replicator login replication;
grant pg_monitor, pg_checkpoint to replicator;
grant execute on function pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), pg_read_binary_file(text),
    pg_read_binary_file(text, bigint, bigint, boolean) to replicator;
create table written (number bigint primary key, at timestamptz not null default clock_timestamp());
"""


def open_to_others(directory):
    """The lab's own directory, on the way to what is PostgreSQL's."""
    os.chmod(directory, os.stat(directory).st_mode | 0o055)


def belongs(*paths):
    """To PostgreSQL's user."""
    for path in paths:
        os.chmod(path, 0o700 if os.path.isdir(path) else 0o600)
        if USER:
            shutil.chown(path, USER, USER)


class Postgres:
    """One server, which may be started and stopped by its handler too: it is known by its pid file."""

    def __init__(self, lab, name, *settings):
        self.lab, self.name, self.port = lab, name, free_port()
        self.address = f"127.0.0.1:{self.port}"
        open_to_others(lab.directory)
        self.home = lab.path(f"pg-{name}")  # of which everything is PostgreSQL's
        os.mkdir(self.home)
        self.data, self.log = os.path.join(self.home, "data"), os.path.join(self.home, "data.log")
        self.configuration = os.path.join(self.home, "postgresql.conf")
        hba = os.path.join(self.home, "pg_hba.conf")
        text = CONFIGURATION.format(data=self.data, hba=hba, port=self.port, sockets=self.home, name=name)
        for path, content in ((self.configuration, text + "\n".join(settings) + "\n"), (hba, HBA)):
            with open(path, "w", encoding="utf-8") as file:
                file.write(content)
        belongs(self.home, self.configuration, hba)
        lab.on_close(self.end)

    def primary(self):
        """A new database."""
        self._fill()
        return self.start()

    def standby_of(self, other):
        """Of one that was a new database too, and has all that it has written since."""
        self._fill()
        self.follow(other.port)
        return self.start()

    def _fill(self):
        subprocess.run(["cp", "-a", "--reflink=auto", template(), self.data], check=True)

    def follow(self, port):
        """While it is down."""
        with open(os.path.join(self.data, "postgresql.auto.conf"), "a", encoding="utf-8") as file:
            file.write(f"primary_conninfo = '{self.conninfo(port)}'\n")
        path = os.path.join(self.data, "standby.signal")
        open(path, "w", encoding="ascii").close()
        belongs(path)

    def conninfo(self, port):
        """As the handler writes it, so that it finds nothing to change."""
        return f"host=127.0.0.1 port={port} user=replicator application_name={self.name}"

    def start(self):
        self.run("pg_ctl", "start", "-w", "-s", "-D", self.data, "-l", self.log, "-o", f"-c config_file={self.configuration}")
        return self

    def stop(self, mode="fast"):
        self.run("pg_ctl", "stop", "-w", "-s", "-D", self.data, "-m", mode)

    def run(self, program, *words):
        path = os.path.join(self.home, f"{program}.log")  # not a pipe: what pg_ctl starts would hold that open
        with open(path, "w", encoding="utf-8") as log:
            done = subprocess.run([os.path.join(BIN, program), *words], cwd=self.home, stdin=subprocess.DEVNULL, stdout=log,
                                  stderr=log, timeout=60, check=False, **AS_USER)
        if done.returncode:
            with open(path, encoding="utf-8") as log:
                raise OSError(f"{self.name}: {program}: {log.read()}")

    def pid(self):
        """Of its postmaster; None when it does not run."""
        try:
            with open(os.path.join(self.data, "postmaster.pid"), encoding="utf-8") as file:
                pid = int(file.readline())
            return pid if os.path.samefile(f"/proc/{pid}/cwd", self.data) else None
        except (OSError, ValueError):
            return None

    def processes(self):
        """Of all of it, the postmaster first."""
        pid = self.pid()
        if pid is None:
            return []
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [pid, *map(int, file.read().split())]

    def kill(self):
        """All of it at once, as a power cut does."""
        pids = self.processes()
        if not pids:
            return
        for each in pids:
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                pass
        # Until nothing is left of them: while their parent has not waited for one, a new server takes it for alive.
        wait_until(lambda: not any(os.path.exists(f"/proc/{each}") for each in pids), f"{self.name} has ended")
        with open(os.path.join(self.data, "postmaster.pid"), encoding="utf-8") as file:
            shared_memory = file.read().splitlines()[6].split()[1]
        subprocess.run(["ipcrm", "-m", shared_memory], check=False, stderr=subprocess.DEVNULL)

    def end(self):
        """At once, too, but it cleans up after itself."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGQUIT)
            wait_until(lambda: self.pid() is None, f"{self.name} has ended")

    # --- asking it

    def connection(self, timeout_s=5.0, user="postgres"):
        return Connection(("127.0.0.1", self.port), user, "postgres", timeout_s=timeout_s, application_name="witness")

    def sql(self, text, timeout_s=10.0):
        with self.connection(timeout_s) as server:
            return server.query(text)

    def value(self, text):
        return self.sql(text)[0][0]

    def says_primary(self, connection):
        """Not in recovery is what takes writes."""
        return connection.value("select pg_is_in_recovery()") == "f"

    def is_primary(self):
        try:
            with self.connection() as server:
                return self.says_primary(server)
        except (OSError, Refused):
            return False

    def sender(self):
        """Which port it receives from, while it does."""
        rows = self.sql("select sender_port from pg_stat_wal_receiver where status = 'streaming'")
        return int(rows[0][0]) if rows else None

    def receives_from(self, other):
        wait_until(lambda: self.sender() == other.port, f"{self.name} receives from {other.name}", 20)
        return self

    def has(self, number):
        return self.value(f"select count(*) from written where number = {number}") == "1"


def template():
    """The directory of a new database, made once for all: what takes longest is done once."""
    if template.made is None:
        home = tempfile.mkdtemp(prefix="lockstep-template-", dir=MEMORY)
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        belongs(home)
        made, socket = os.path.join(home, "data"), os.path.join(home, ".s.PGSQL.5432")
        for argv in (["initdb", "-D", made, "-U", "postgres", "-A", "trust", "--no-sync", "--wal-segsize=1", "--locale=C", "-E", "UTF8"],
                     ["pg_ctl", "start", "-w", "-D", made, "-l", os.path.join(home, "log"), "-o", f"-F -h '' -k {home} -p 5432 -c max_connections=60"]):
            subprocess.run([os.path.join(BIN, argv[0]), *argv[1:]], cwd=home, check=True, stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, **AS_USER)
        with Connection(socket, "postgres", "postgres") as server:
            server.query(ROLES)
        subprocess.run([os.path.join(BIN, "pg_ctl"), "stop", "-w", "-s", "-D", made], cwd=home, check=True, timeout=60, **AS_USER)
        template.made = made
    return template.made


template.made = None


class Pgbouncer:
    """One PgBouncer with the database `app`, in a file of its own that the configuration includes."""

    CONFIGURATION = """\
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir = {home}
auth_type = trust
auth_file = {home}/users
admin_users = witness
pool_mode = {pool_mode}
default_pool_size = 20
max_client_conn = 200
logfile = {home}/pgbouncer.log
pidfile = {home}/pgbouncer.pid
{more}
%include {home}/databases.ini
"""

    def __init__(self, lab, name, target_port, pool_mode="transaction", more=""):
        self.lab, self.name, self.port = lab, name, free_port()
        self.address = f"127.0.0.1:{self.port}"
        open_to_others(lab.directory)
        self.home = lab.path(f"pool-{name}")
        os.mkdir(self.home)
        self.databases = os.path.join(self.home, "databases.ini")
        self.configuration = os.path.join(self.home, "pgbouncer.ini")
        files = {self.configuration: self.CONFIGURATION.format(port=self.port, home=self.home, pool_mode=pool_mode, more=more),
                 self.databases: f"[databases]\n; the one that clients use\napp = host=127.0.0.1 port={target_port} dbname=postgres\n",
                 os.path.join(self.home, "users"): '"postgres" ""\n"witness" ""\n'}
        for path, text in files.items():
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        belongs(self.home, *files)
        lab.on_close(self.end)

    def start_argv(self):
        return ["pgbouncer", "-q", "-d", self.configuration]

    def start(self):
        subprocess.run(self.start_argv(), check=True, timeout=20, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, **AS_USER)
        wait_until(lambda: self.show("version"), f"{self.name} answers")
        return self

    def pid(self):
        try:
            with open(os.path.join(self.home, "pgbouncer.pid"), encoding="ascii") as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/cmdline", encoding="utf-8") as argv:  # empty when nobody has waited for it yet
                return pid if "pgbouncer" in argv.read() else None
        except (OSError, ValueError):
            return None

    def kill(self):
        pid = self.end()
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), f"{self.name} has ended")

    def end(self):
        pid = self.pid()
        if pid:
            os.kill(pid, signal.SIGKILL)
        return pid

    def ask(self, command):
        with Connection(("127.0.0.1", self.port), "witness", "pgbouncer", timeout_s=5) as console:
            return [dict(zip(console.titles, row)) for row in console.query(command)]

    def show(self, what):
        return self.ask(f"show {what}")

    def row(self):
        return next(row for row in self.show("databases") if row["name"] == "app")

    def target(self):
        row = self.row()
        return f"{row['host']}:{row['port']}"

    def point_at(self, old, new):
        """As a person would."""
        with open(self.databases, encoding="utf-8") as file:
            text = file.read()
        with open(self.databases, "w", encoding="utf-8") as file:
            file.write(text.replace(f"port={old.port}", f"port={new.port}"))
        self.ask("reload")

    def is_paused(self):
        return self.row()["paused"] == "1"

    def client(self, timeout_s=15.0):
        return Connection(("127.0.0.1", self.port), "postgres", "app", timeout_s=timeout_s, application_name="app")


class PgWriters(Writers):
    """The application: each row is a commit of its own, and is noted when it was acknowledged, and by which server."""

    def connect(self, edge_port):
        connection = Connection(("127.0.0.1", edge_port), "postgres", self.database, timeout_s=30, application_name="app")
        connection.edge_port = edge_port
        return connection

    def __init__(self, edge_ports, count=8, per_second=400, database="app"):
        super().__init__(edge_ports, count, per_second)
        self.database = database
        self._through = {port: [] for port in edge_ports}  # when each pooler's clients had a row acknowledged

    def longest_wait_ms(self, edge_port, since):
        """As `longest_stall_ms`, of those who come through one pooler."""
        times = [when for when in sorted(self._through[edge_port]) if when >= since]
        return max((after - before for before, after in zip(times, times[1:])), default=0.0) * 1000

    def write(self, connection, number):
        # The same number again after an error: it may be there already, unacknowledged.
        port = int(connection.value(f"insert into written (number) values ({number}) on conflict (number) do update "
                                    "set at = clock_timestamp() returning inet_server_port()"))
        self._through[connection.edge_port].append(time.monotonic())
        return port


def missing_rows(acknowledged, primary):
    """Which acknowledged rows the server does not have."""
    there = {int(row[0]) for row in primary.sql("select number from written", 60)}
    return [number for _, number, _ in acknowledged if number not in there]
