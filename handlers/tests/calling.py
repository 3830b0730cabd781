"""Calls a handler as an agent does: fixed argv, cleared environment, the context as JSON on stdin."""

import json
import os
import subprocess
import time

import pg
from lab import HANDLERS


class Answer:
    def __init__(self, code, stdout, stderr, seconds):
        self.code, self.seconds = code, seconds
        self.json = json.loads(stdout) if stdout.strip() else {}
        self.reason = stderr.strip().splitlines()[-1] if stderr.strip() else ""

    def __repr__(self):
        return f"exit {self.code}, {self.json}, {self.reason!r}"


class Member:
    """One member and the handler that its host's agent.toml names for it."""

    def __init__(self, name, handler, address, settings, as_user=None):
        self.name, self.address, self._as_user = name, address, as_user or {}
        self._argv = [os.path.join(HANDLERS, handler)]
        self._settings = settings

    def call(self, phase, context=None, **lockstep):
        """`lockstep` gives LOCKSTEP_* by their lower-case names, `from_` for LOCKSTEP_FROM."""
        return self.call_with(json.dumps({"me": self.name, "phase": phase, **(context or {})}), phase, **lockstep)

    def call_with(self, text, phase, **lockstep):
        """With anything on stdin."""
        group, host = self.name.split("@")
        env = {"LOCKSTEP_MEMBER": self.name, "LOCKSTEP_GROUP": group, "LOCKSTEP_HOST": host, **self._settings}
        env.update({f"LOCKSTEP_{key.strip('_').upper()}": str(value) for key, value in lockstep.items()})
        began = time.monotonic()
        done = subprocess.run([*self._argv, phase], input=text, env=env, capture_output=True, text=True, timeout=60,
                              check=False, **self._as_user)
        return Answer(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def redis_member(server, **settings):
    return Member(f"cache@{server.name}", "redis", server.address, {"REDIS_PORT": str(server.port), **settings})


def haproxy_member(proxy, **settings):
    settings = {"HAPROXY_SOCKET": proxy.socket, "HAPROXY_FRONTEND": "redis", "HAPROXY_BACKEND": "cache",
                "HAPROXY_SERVER": "primary", **settings}
    return Member(f"edge@{proxy.name}", "haproxy", f"127.0.0.1:{proxy.port}", settings)


def nginx_member(edge, **settings):
    argv = json.dumps(edge.start_argv())
    return Member(f"edge@{edge.name}", "nginx", f"127.0.0.1:{edge.port}", {"NGINX_START": argv, **edge.settings(), **settings})


def postgresql_member(server, **settings):
    settings = {"PGDATA": server.data, "PG_CONFIG": server.configuration, "PG_HOST": server.home, "PG_PORT": str(server.port),
                **settings}
    return Member(f"db@{server.name}", "postgresql", server.address, settings, pg.AS_USER)


def pgbouncer_member(pooler, **settings):
    settings = {"PGBOUNCER_HOST": pooler.home, "PGBOUNCER_PORT": str(pooler.port), "PGBOUNCER_FILE": pooler.databases,
                "PGBOUNCER_DATABASES": "app", "PGBOUNCER_START": json.dumps(pooler.start_argv()), **settings}
    return Member(f"pool@{pooler.name}", "pgbouncer", pooler.address, settings, pg.AS_USER)


def shown(members, goals, actuals=None, out=None, **more):
    """The context: what the agent knows of the members, by name."""
    actuals = actuals or goals
    rows = [{"member": member.name, "address": member.address, "from": actuals.get(member.name),
             "goal": goals.get(member.name), "actual": actuals.get(member.name)} for member in members]
    return {"members": rows, "out": out or {}, **more}
