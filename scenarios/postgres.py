"""A PostgreSQL primary with its standby behind two PgBouncer, clients that write through both, and a witness: what the
scenarios that move it, or lose it, have in common.

The witness never asks Lockstep: it asks each PostgreSQL whether it takes writes, each PgBouncer where it points, and looks up
every row that a client saw acknowledged on the server that is really the primary afterwards.
"""

import os
import statistics

from cluster import Cluster, expect
from lab import RoleSampler, wait_until
from pg import BIN, USER, Pgbouncer, PgWriters, Postgres, missing_rows
from program import configure

PACKAGES = {os.path.join(BIN, "postgres"): "postgresql-15", "pgbouncer": "pgbouncer"}  # program: Debian package
WRITERS, PER_SECOND = 8, 400
ACKS_AROUND = 300  # before a move and after it; with less traffic a run proves nothing
BEFORE_S = 0.1  # so that a stall which begins with the move has a beginning


class Site:
    """A primary and its standby, two PgBouncer, clients that write through both, and the witness."""

    def __init__(self, lab, primary_settings="", pooler_settings=""):
        """Each a text of lines for their configuration."""
        self.lab = lab
        os.chmod(lab.directory, 0o777)  # handlers that a case halts write there, as PostgreSQL's user
        self.servers = [Postgres(lab, "pg-a", primary_settings).primary()]
        self.servers.append(Postgres(lab, "pg-b").standby_of(self.servers[0]).receives_from(self.servers[0]))
        self.poolers = [Pgbouncer(lab, name, self.servers[0].port, more=pooler_settings).start() for name in ("p1", "p2")]
        self.writers = PgWriters([pooler.port for pooler in self.poolers], WRITERS, PER_SECOND)
        self.roles = RoleSampler(self.servers)
        self.moves = []  # when each began
        lab.on_close(self.write_errors)

    def start_load(self):
        self.writers.start()
        self.roles.start()
        self.writers.wait_for(ACKS_AROUND)

    def stop_load(self, seconds=20):
        self.writers.wait_for(ACKS_AROUND, seconds)
        self.writers.stop()
        self.roles.stop()

    def write_errors(self):
        self.writers.give_up()
        self.roles.give_up()
        self.lab.write("client-errors.log", "".join(f"{when:.3f} {error}\n" for when, error in self.writers.errors))

    def primary(self):
        primaries = [server for server in self.servers if server.is_primary()]
        expect(len(primaries) == 1, f"primaries: {[server.name for server in primaries]}")
        return primaries[0]

    def standby(self):
        primary = self.primary()
        return next(server for server in self.servers if server is not primary)

    def spans(self):
        """Each move, from the last rows before it, until the next."""
        begins = [began - BEFORE_S for began in self.moves]
        return list(zip(begins, begins[1:] + [float("inf")]))

    def testimony(self):
        """What was really there, as a dictionary of figures."""
        stalls = [self.writers.longest_stall_ms(*span) for span in self.spans()]
        overlaps = [self.writers.overlap_ms(*span) for span in self.spans()]
        return {"primary": self.primary().name, "acknowledged": len(self.writers.acknowledged),
                "lost": len(missing_rows(self.writers.acknowledged, self.primary())), "client_errors": len(self.writers.errors),
                "median_ms": round(statistics.median(stalls)), "stall_ms": round(max(stalls)), "two_primaries": self.roles.two_primaries,
                "role_samples": self.roles.samples, "two_acknowledging_ms": round(max(overlaps), 1)}

    def expect_settled_on(self, primary):
        """It alone takes writes, the other one receives from it, both poolers point at it, and nothing is held any more."""
        expect(self.primary() is primary, f"the primary is {self.primary().name}, not {primary.name}")
        for pooler in self.poolers:
            expect(pooler.target() == primary.address, f"{pooler.name} points at {pooler.target()}")
            expect(not pooler.is_paused(), f"{pooler.name} is still paused")
        wait_until(lambda: primary.sql("select 1 from pg_stat_replication where state = 'streaming'"), "the standby receives", 20)


def managed(site, binary, handlers, here, spec=None):
    """The cluster that moves a site: an agent for each PostgreSQL and each PgBouncer, and one for the application. Its
    whole configuration is in the directory `here`; `spec` is another path than its cluster.toml.
    """
    cluster = Cluster(site.lab, binary)
    user = f'user = "{USER}"' if USER else ""
    for server in site.servers:
        handler = cluster.halting(server.name, os.path.join(handlers, "postgresql"))
        configure(site.lab, server.name, os.path.join(here, "agent-db.toml"), handler=handler, user=user, data=server.data,
                  configuration=server.configuration, home=server.home, port=server.port)
        cluster.start_agent(server.name, "role=db", server.address)
    for pooler in site.poolers:
        handler = cluster.halting(pooler.name, os.path.join(handlers, "pgbouncer"))
        configure(site.lab, pooler.name, os.path.join(here, "agent-pool.toml"), handler=handler, user=user, home=pooler.home,
                  port=pooler.port, databases=pooler.databases)
        cluster.start_agent(pooler.name, "role=pool", pooler.address)
    configure(site.lab, "app", os.path.join(here, "agent-app.toml"))
    cluster.start_agent("app", "role=app", "127.0.0.1")
    cluster.command("apply", "-f", spec or os.path.join(here, "cluster.toml"), check=True)
    actuals = {"db@pg-a": "primary", "db@pg-b": "standby", "pool@p1": "online", "pool@p2": "online", "app@app": "offline"}
    cluster.wait_for_actuals(actuals)
    cluster.command("run", "app=online", check=True)
    return cluster


def expect_agreement(cluster, site):
    """Goals, what agents reported, and what PostgreSQL itself says are the same, and nobody is in doubt."""
    def disagreements(members):
        reals = {server: "primary" if server.is_primary() else "standby" for server in site.servers}
        return [f"{server.name} is really {real}" for server, real in reals.items()
                if members[f"db@{server.name}"]["actual"] != real]

    cluster.expect_agreement(disagreements)
