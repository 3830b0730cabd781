"""What every ready handler shares: read the call, run the phase, answer.

A handler is called with the phase as its last argument, `LOCKSTEP_*` in an otherwise cleared environment, and the
context as JSON on stdin. Exit 0 is yes or done, 75 is again, anything else is no or failed with the last line of
stderr as the reason. This module never decides anything about the software that a handler moves.
"""

import json
import os
import socket
import sys
import time

AGAIN = 75  # EX_TEMPFAIL
DEADLINE_MS_DEFAULT = 5000  # the agent's own default time-out for a phase
REPLY_MARGIN_MS = 200  # kept back from every deadline, so that our reason arrives before the agent's time-out does


class No(Exception):
    """A vote no, or a failure that a retry alone will not mend. Its text is the reason an operator reads."""


class Again(Exception):
    """Not yet: ask once more before the deadline."""


class Call:
    """One call by the agent."""

    def __init__(self, phase, env, context):
        self.phase = phase
        self.env = env
        self.context = context
        self.me = env.get("LOCKSTEP_MEMBER") or context.get("me") or ""
        self.group = env.get("LOCKSTEP_GROUP") or group_of(self.me)
        self.role = env.get("LOCKSTEP_ROLE", "")
        self.from_state = env.get("LOCKSTEP_FROM", "")
        self.to_state = env.get("LOCKSTEP_TO", "")
        self.decision = env.get("LOCKSTEP_DECISION") or context.get("decision") or ""
        self.subject = env.get("LOCKSTEP_SUBJECT", "").replace(",", " ").split()
        self.members = context.get("members") or []
        self.out = context.get("out") or {}
        self.settings = context.get("settings") or {}  # the group's, as they should be
        self.was = context.get("was") or {}  # and as they were: another value is a change that this step takes
        self.deadline_ms = number(env, "LOCKSTEP_DEADLINE_MS", DEADLINE_MS_DEFAULT)
        self.hold_ms = number(env, "LOCKSTEP_HOLD_MS", self.deadline_ms)
        self._ends = time.monotonic() + max(self.deadline_ms - REPLY_MARGIN_MS, 0) / 1000

    def setting(self, name, default=None):
        """A value from the handler's `env` in agent.toml; empty counts as absent."""
        value = self.env.get(name) or default
        if value is None:
            raise No(f"{name} is not set: add it to the handler's env in agent.toml")
        return value

    def time_left_s(self):
        return self._ends - time.monotonic()

    def poll(self, every_ms=5):
        """Yields until the deadline, at least once: `for _ in call.poll(): if done: return`."""
        yield
        while self.time_left_s() > 0:
            time.sleep(every_ms / 1000)
            yield

    def serving(self, state, groups):
        """The one member of `groups`, other than the caller's own, that is to be `state`; None if nobody.

        Goals are the plan's before the decision and the cluster's after it; actual states only follow, so a member that
        has just been demoted may still be shown with its old one. Actual counts only where there is no goal.
        """
        others = self._others(groups)
        found = [m for m in others if m.get("goal") == state]
        return one_of(found or [m for m in others if m.get("goal") is None and m.get("actual") == state], state)

    def leaving(self, state, groups):
        """The one member of `groups`, other than the caller's own, that was `state` before this transition."""
        return one_of([m for m in self._others(groups) if m.get("from", m.get("actual")) == state], state)

    def _others(self, groups):
        return [m for m in self.members if group_of(m.get("member", "")) in groups and m.get("member") != self.me]


def one_of(members, state):
    if len(members) > 1:
        raise No(f"{' and '.join(member['member'] for member in members)} are both {state}")
    return members[0] if members else None


def group_of(member):
    return member.split("@", 1)[0]


def number(env, name, default):
    try:
        return int(env.get(name) or default)
    except ValueError:
        raise No(f"{name} is {env[name]!r}, not a whole number") from None


def split_address(address, default_port=None):
    """`host`, `host:port`, `[v6]:port` or a bare v6 address -> (host, port)."""
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else ""
    elif address.count(":") == 1:
        host, port = address.split(":")
    else:
        host, port = address, ""
    if not host or (port and not port.isdigit()):
        raise No(f"{address!r} is neither host nor host:port")
    return host, int(port) if port else default_port


def member_address(member, default_port=None):
    if not member.get("address"):
        raise No(f"no address is known for {member['member']}: start its agent with --address")
    return split_address(member["address"], default_port)


def resolve(host):
    """The IP addresses of a host name, or of an address; empty when it is not known."""
    try:
        return [info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []


def command(call, name, what):
    """The argv that starts or stops the software, from NAME_START or NAME_STOP in the handler's `env`."""
    try:
        argv = json.loads(call.env.get(name) or "null")
    except ValueError:
        raise No(f"{name} is not JSON; it must be an argv such as [\"systemctl\", \"start\", \"...\"]") from None
    if argv is None:
        raise No(f"cannot go from {call.from_state} to {call.to_state}: {name} is not set, so nothing here may "
                 f"{'start' if name.endswith('_START') else 'stop'} {what}")
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
        raise No(f"{name} must be a JSON list of words")
    return argv


def run(call, name, what):
    """Runs that argv to its end."""
    ended = execute(call, command(call, name, what))
    if ended.code:
        raise No(f"{name} ended with {ended.code}: {ended.last_line}")


class Ended:
    """How a program ended, and what it wrote to its standard error."""

    def __init__(self, code, text):
        self.code, self.lines = code, text.strip().splitlines()
        self.last_line = self.lines[-1] if self.lines else ""


def execute(call, argv):
    """A program with the deadline of the call."""
    import subprocess  # here: a fifth of a start, which clients wait for in other phases
    import tempfile
    path = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"  # where servers are
    env = {**os.environ, "PATH": path}
    with tempfile.TemporaryFile() as errors:  # not a pipe: a server that it starts would hold that open for ever
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                              timeout=max(call.time_left_s(), 0.1), check=False)
        errors.seek(0)
        return Ended(done.returncode, errors.read().decode("utf-8", "replace"))


def leave_behind(action, keep=None):
    """Runs `action` in a process of its own, which outlives this call, its time-out and the agent. Of our files it has the
    descriptor `keep` and no other.
    """
    if os.fork():
        os.wait()
        return
    try:
        os.setsid()  # the agent's time-out kills our process group
        if os.fork() == 0:
            os.chdir("/")
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):  # the agent waits for the end of our output
                os.dup2(null, descriptor)
            kept = 2 if keep is None else keep
            os.closerange(3, kept)
            os.closerange(kept + 1, 256)
            action()
    finally:
        os._exit(0)


def main(phases):
    """Runs `phases[phase](call)` and ends the process with the answer."""
    try:
        phase = sys.argv[-1] if len(sys.argv) > 1 else ""
        if phase not in phases:
            raise No(f"this handler has no phase {phase!r}, only {', '.join(sorted(phases))}")
        answer = phases[phase](Call(phase, os.environ, json.loads(context_text(phase))))
        if answer:
            print(json.dumps(answer))
        sys.stdout.flush()
    except Again as reason:
        leave(AGAIN, str(reason))
    except No as reason:
        leave(1, str(reason))
    except Exception as error:  # the agent shows one line, so a trace would hide the reason
        leave(1, f"{type(error).__name__}: {error}")
    sys.exit(0)


def context_text(phase):
    """An agent that is killed as it starts us leaves an empty or cut context, and does not know of us when it starts
    again: then nothing may be done. A person at a terminal gives none either, and may ask for the status.
    """
    text = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    if not text and phase != "status":
        raise No("there is no context on stdin: the agent ended before it had given one")
    return text or "{}"


def leave(code, reason):
    print(" ".join(reason.split()) or "no reason given", file=sys.stderr)
    sys.exit(code)
