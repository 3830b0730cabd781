"""A Redis primary with its replicas behind two HAProxy, clients that write through both, and a witness: what the scenarios
that move it, or lose it, have in common.

The witness never asks Lockstep: it asks every Redis for its role, HAProxy for its server, and looks up each write that a
client saw acknowledged on the server that is really the primary afterwards.
"""

from cluster import expect
from lab import Haproxy, Redis, RoleSampler, Writers, missing, wait_until

PACKAGES = {"redis-server": "redis-server", "redis-cli": "redis-tools", "haproxy": "haproxy"}  # program: Debian package
WRITERS = 8
ACKS_AROUND = 3000  # before a move and after it, at about 1,000 a second; with less traffic a run proves nothing
SETTLED_S = 5.0  # for one write at the end


class Site:
    """Redis servers, the first of them the primary, two HAProxy, writers through both, and the witness."""

    def __init__(self, lab, names=("r1", "r2", "r3"), edge_settings=""):
        """`edge_settings`: a line for HAProxy's defaults."""
        self.lab = lab
        self.servers = [Redis(lab, name).start() for name in names]
        for replica in self.servers[1:]:
            replica.follow(self.servers[0])
        self.edges = [Haproxy(lab, name, self.servers[0].address, edge_settings).start() for name in ("e1", "e2")]
        self.limits = [edge.limit() for edge in self.edges]
        self.writers = Writers([edge.port for edge in self.edges], WRITERS)
        self.roles = RoleSampler(self.servers)
        self.moves = []  # when each began
        lab.on_close(self.write_errors)

    def start_load(self):
        self.writers.start()
        self.roles.start()
        self.writers.wait_for(ACKS_AROUND)

    def stop_load(self):
        self.writers.wait_for(ACKS_AROUND)
        self.writers.stop()
        self.roles.stop()

    def write_errors(self):
        self.writers.give_up()
        self.roles.give_up()
        text = "".join(f"{when:.3f} {error}\n" for when, error in self.writers.errors)
        self.lab.write("client-errors.log", text)

    def primary(self):
        primaries = [server for server in self.servers if server.is_primary()]
        expect(len(primaries) == 1, f"primaries: {[server.name for server in primaries]}")
        return primaries[0]

    def testimony(self):
        """What was really there, as a dictionary of figures."""
        writers = self.writers
        overlaps = [writers.overlap_ms(*span) for span in zip(self.moves, self.moves[1:] + [float("inf")])]
        return {"primary": self.primary().name, "acknowledged": len(writers.acknowledged),
                "lost": len(missing(writers.acknowledged, self.primary())), "client_errors": len(writers.errors),
                "stall_ms": round(writers.longest_stall_ms()), "two_primaries": self.roles.two_primaries,
                "role_samples": self.roles.samples, "two_acknowledging_ms": round(max(overlaps), 1)}

    def expect_settled_on(self, primary):
        """It alone is the primary, everyone follows it, every edge points at it, and nothing is held any more."""
        expect(self.primary() is primary, f"the primary is {self.primary().name}, not {primary.name}")
        for edge, limit in zip(self.edges, self.limits):
            expect(edge.server_address() == primary.address, f"{edge.name} points at {edge.server_address()}")
            expect(edge.limit() == limit, f"{edge.name} still takes only {edge.limit()} connections")
        for server in self.servers:
            if server is not primary:
                wait_until(lambda: server.info()["master_link_status"] == "up", f"{server.name} is in sync")
        with primary.connection(SETTLED_S) as redis:
            redis.call("SET", "settled", primary.name)
