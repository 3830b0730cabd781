"""A real Lockstep cluster for a scenario: one server and its agents, which can be killed and started again.

It also reads their journals after the end: what each process wrote down for itself must tell one story.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import urllib.request

from lab import wait_until

MEMBERS_S = 30  # until every member is what it was started as
OUTCOME_S = 60
ENDED = ("X", "Z")  # states of a process: the latter, until its parent has waited for it


class Unexpected(Exception):
    """What happened is not what the scenario promises."""


def expect(condition, what):
    if not condition:
        raise Unexpected(what)


class Cluster:
    """One server, the agents that were started, and the command line."""

    def __init__(self, lab, binary):
        self.lab, self.binary = lab, binary
        self._agents = {}  # name -> (process, label, address, server)
        self._halt = lab.path("halt")
        self.url, self._server = None, None
        lab.on_close(self._end_guards)
        self.start_server("127.0.0.1:0")

    # --- processes

    def start_server(self, listen=None):
        """Again after a kill: on the same port, where its agents look for it."""
        listen = listen or self.url.removeprefix("http://")
        argv = [self.binary, "server", "--data", self.lab.path("server"), "--listen", listen]
        self._server, line = self._start("server", argv, r"^listening on (http://\S+)")
        self.url = line

    def kill_server(self):
        self._server.kill()
        self._server.wait()

    def start_agent(self, name, label, address, server=None):
        """Again after a kill: with the same data, and so the same identity. `server`: another way to it than `url`."""
        argv = [self.binary, "agent", "--server", server or self.url, "--name", name, "--address", address, "--label", label,
                "--data", self.lab.path(f"agent-{name}"), "--config", self.lab.path(f"{name}.toml")]
        process, _ = self._start(f"agent-{name}", argv, rf"^joined as {name}\b")
        self._agents[name] = (process, label, address, server)

    def kill_agent(self, name):
        process = self._agents[name][0]
        process.kill()
        process.wait()

    def restart_agent(self, name):
        self.start_agent(name, *self._agents[name][1:])

    def signal_agent(self, name, which):
        self._agents[name][0].send_signal(which)

    def agent_pid(self, name):
        return self._agents[name][0].pid

    def guard_pid(self, name):
        """Of the agent's guard; None when there is none. It is nobody's child once the agent is dead."""
        try:
            with open(self.lab.path(f"agent-{name}", "guard.lock"), encoding="ascii") as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/cmdline", encoding="utf-8") as argv:  # empty once it has ended
                return pid if f"agent-{name}" in argv.read() else None
        except (OSError, ValueError):
            return None

    def kill_guard(self, name):
        pid = self.guard_pid(name)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    def kill_host(self, name):
        """The agent, its guard, and all that descends from them, at once: each stands still until all are known, so that none
        leaves another one behind. What the software is made of belongs to whoever knows it.
        """
        found, fresh = set(), {pid for pid in (self.agent_pid(name), self.guard_pid(name)) if pid is not None}
        while fresh:
            for pid in fresh:
                signal_if_there(pid, signal.SIGSTOP)
            found |= fresh
            fresh = {pid for pid, parent in parents().items() if parent in found} - found
        for pid in found:
            signal_if_there(pid, signal.SIGKILL)
        self._agents[name][0].wait()
        wait_until(lambda: not found & set(parents()), f"everything of {name} has ended")

    def started_for(self, member):
        """The processes that were started for a member, handlers and software, whoever their parent is."""
        wanted, directory = {f"LOCKSTEP_MEMBER={member}".encode()}, self.lab.directory.encode()
        return [pid for pid in parents() if wanted <= (found := environment(pid)) and directory in b" ".join(found)]

    def wait_guarded(self, member):
        """Until the server has written down that this member's guard stands: from then on its lease's end is evidence."""
        group, host = member.split("@")

        def is_guarded():
            changes = [record["change"] for record in self._records("server") if record["record"] == "host" and record["host"] == host]
            told = [change["states"] for change in changes if change["change"] == "guarded" and change["group"] == group]
            return told and told[-1]

        wait_until(is_guarded, f"{member} is guarded")

    def _end_guards(self):
        for name in self._agents:
            self.kill_guard(name)

    def _start(self, name, argv, pattern):
        """Returns when a new line of the process matches: the process, and the line or its first group."""
        before = len(self._lines(name, pattern))
        process = self.lab.start(name, argv)
        lines = wait_until(lambda: self._lines(name, pattern)[before:], f"{name} prints {pattern}")
        return process, lines[-1]

    def wait_logged(self, name, pattern):
        """Until a line of that log matches."""
        wait_until(lambda: self._lines(name, pattern), f"{name} logs {pattern}")

    def _lines(self, name, pattern):
        if not os.path.exists(self.lab.path(f"{name}.log")):
            return []
        with open(self.lab.path(f"{name}.log"), encoding="utf-8", errors="replace") as log:
            return re.findall(pattern, log.read(), re.MULTILINE)

    # --- a handler that stops at a given moment

    def halting(self, name, handler):
        """The same handler, which can be stopped right before or right after the effect of one of its phases."""
        return self.lab.write(f"halting-{name}", f"""\
#!/bin/sh
halt() {{
    [ -e '{self._halt}' ] && read -r at < '{self._halt}' || return
    [ "$at" = "$1" ] || return
    : > '{self._halt}ed'
    while [ -e '{self._halt}' ]; do sleep 0.002; done
}}
halt "{name} $1 before"
'{handler}' "$@"
code=$?
halt "{name} $1 after"
exit $code
""", 0o755)

    def halt_at(self, name, phase, point):
        """The next time that this member's handler gets there, it stops until `go_on`."""
        self.lab.write("halt.new", f"{name} {phase} {point}\n")
        os.rename(self.lab.path("halt.new"), self._halt)

    def wait_halted(self):
        with open(self._halt, encoding="utf-8") as moment:
            what = moment.read().strip()
        wait_until(lambda: os.path.exists(f"{self._halt}ed"), f"the handler gets to `{what}`", every_s=0.001)

    def go_on(self):
        """Any handler that is stopped, or nothing when it has gone on already."""
        for path in (f"{self._halt}ed", self._halt):
            if os.path.exists(path):
                os.remove(path)

    # --- asking it

    def command(self, *words, check=False):
        done = subprocess.run([self.binary, "--addr", self.url, *words], capture_output=True, text=True, timeout=120,
                              stdin=subprocess.DEVNULL, check=False)
        with open(self.lab.path("command.log"), "a", encoding="utf-8") as log:
            log.write(f"$ lockstep {' '.join(words)}\n{done.stdout}{done.stderr}exit {done.returncode}\n")
        if check:
            expect(done.returncode == 0, f"lockstep {' '.join(words)}: exit {done.returncode}: {done.stderr.strip()}")
        return done

    def run(self, *words):
        """`lockstep run`, to its end: exit code and the transition."""
        done = self.command("run", *words, "-o", "json")
        try:
            return done.returncode, json.loads(done.stdout)
        except ValueError:
            raise Unexpected(f"lockstep run: exit {done.returncode}, no JSON: {done.stderr.strip()}") from None

    def request(self, *words):
        """`lockstep run --no-wait`: the transition's id."""
        return json.loads(self.command("run", *words, "--no-wait", "-o", "json", check=True).stdout)["id"]

    def ended(self, transition_id):
        """The transition, once it has an outcome."""
        path = f"/v1/transitions/{transition_id}"
        wait_until(lambda: self.get(path)["outcome"], f"{transition_id} has an outcome", OUTCOME_S, 0.02)
        return self.get(path)

    def get(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as response:
                return json.load(response)
        except http.client.HTTPException as error:
            raise ConnectionError(f"the server went away: {error!r}") from None

    def members(self):
        return {f"{row['group']}@{row['host']}": row for row in self.get("/v1/members")["items"]}

    def wait_for_actuals(self, expected):
        actuals = lambda: {name: row["actual"] for name, row in self.members().items()}
        wait_until(lambda: actuals() == expected, f"members are {expected}", MEMBERS_S, 0.05)

    def expect_agreement(self, disagreements=lambda members: []):
        """Goals and reports are the same, nobody is in doubt, and `disagreements` finds nothing in these members."""
        def found():
            members = self.members()
            own = [f"{name}: goal {row['goal']}, actual {row['actual']}, mark {row['mark']}"
                   for name, row in members.items() if row["goal"] != row["actual"] or row["mark"]]
            return own + disagreements(members)

        try:
            wait_until(lambda: not found(), "agreement", 20, 0.05)
        except TimeoutError:
            raise Unexpected(f"no agreement: {found()}") from None

    # --- what they wrote down

    def expect_one_story(self, outcomes):
        """`outcomes`: {transition id: outcome}, as the API told it. The server's journal has each decision and outcome
        once and no other; no agent has a vote left open, and none began a step of what was aborted."""
        records = self._records("server")
        for transition_id, outcome in outcomes.items():
            number = int(transition_id.removeprefix("t"))
            of = [record for record in records if record.get("transition") == number]
            decisions = [record["decision"] for record in of if record["record"] == "decision"]
            expect(decisions == ["abort" if outcome == "aborted" else "commit"], f"{transition_id}: decisions {decisions}")
            told = [record["outcome"] for record in of if record["record"] == "outcome"]
            expect(told == [outcome], f"{transition_id}: outcomes {told}, not {outcome}")
            for agent in self._agents:
                wait_until(lambda: self._is_closed(agent, number), f"{agent} has closed {transition_id}")
                began = any(record["record"] == "started" for record in self._records(f"agent-{agent}")
                            if record.get("transition") == number)
                expect(not (began and outcome == "aborted"), f"{agent} began a step of {transition_id}, which was aborted")

    def started(self, agent, order):
        """The steps of the order's transition that this agent has written down as begun."""
        return [record for record in self._records(f"agent-{agent}")
                if record["record"] == "started" and record["transition"] == order["transition"]]

    def tokens(self, agent):
        """The tokens that this agent has written down as seen."""
        return [record["token"] for record in self._records(f"agent-{agent}") if record["record"] == "token"]

    def _is_closed(self, agent, number):
        kinds = [record["record"] for record in self._records(f"agent-{agent}") if record.get("transition") == number]
        return not kinds or "closed" in kinds

    def _records(self, name):
        """The JSON objects in a journal, which stand there in plain text between their lengths and checksums."""
        with open(self.lab.path(name, "log"), "rb") as file:
            text = file.read().decode("latin-1")
        decoder, records = json.JSONDecoder(), []
        for found in re.finditer(r'\{"(?:at":\d+,")?record":', text):
            try:
                records.append(decoder.raw_decode(text, found.start())[0])
            except ValueError:
                pass  # its end is not written yet
        return records


def parents():
    """Every process that runs, and its parent. One that has ended, and that nobody has waited for, runs no more."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        state, parent = state_of(int(name))
        if state not in ENDED:
            found[int(name)] = parent
    return found


def stands_still(pid):
    return state_of(pid)[0] == "T"


def state_of(pid):
    """As the kernel calls it; and the parent."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, parent = file.read().rpartition(") ")[2].split()[:2]
        return state, int(parent)
    except OSError:
        return "X", None  # it has ended


def environment(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return set(file.read().split(b"\0"))
    except OSError:
        return set()  # another user's, or it has ended


def signal_if_there(pid, which):
    try:
        os.kill(pid, which)
    except ProcessLookupError:
        pass
