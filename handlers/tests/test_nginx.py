import fcntl
import os
import signal
import socket
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from calling import nginx_member
from lab import Lab, free_port, wait_until
from web import Edge, Nginx, Visitors, mixing_ms

BLUE, GREEN = {"live": "blue"}, {"live": "green"}
STAYS = {"from_": "online", "to": "online"}
DOWN = {"from_": "online", "to": "offline"}
UP = {"from_": "offline", "to": "online"}


class NginxCase(unittest.TestCase):
    """Two edges in front of what answers blue and green, all of them nginx; the edges' configurations are hand-written."""

    def setUp(self):
        self.lab = Lab(self.id().split(".")[-1])
        self.addCleanup(self.close)
        blue, green = free_port(), free_port()
        colours = "".join(f'server {{ listen 127.0.0.1:{port}; return 200 "{name}\\n"; }}\n'
                          for name, port in (("blue", blue), ("green", green)))
        Nginx(self.lab, "apps", colours).start()
        self.edges = [Edge(self.lab, name, [blue], [green]).start() for name in ("e1", "e2")]
        self.members = [nginx_member(edge) for edge in self.edges]
        self.edge, self.member = self.edges[0], self.members[0]

    def close(self):
        outcome = getattr(self._outcome, "result", None)
        self.lab.keep = bool(outcome and any(test is self for test, _ in outcome.failures + outcome.errors))
        self.lab.close()

    def yes(self, answer):
        self.assertEqual(answer.code, 0, answer)
        return answer.json

    def no(self, answer, text):
        self.assertEqual(answer.code, 1, answer)
        self.assertIn(text, answer.reason)

    def again(self, answer, text):
        self.assertEqual(answer.code, 75, answer)
        self.assertIn(text, answer.reason)

    def take(self, phase, settings=None, was=None, member=None, transition="t7", token=7, **lockstep):
        """One call with settings: to green from blue unless told otherwise."""
        context = {"settings": settings or GREEN, "was": was or BLUE}
        given = {**STAYS, "role": "actor", "transition": transition, **({"token": token} if token else {}), **lockstep}
        return (member or self.member).call(phase, context, **given)

    def template(self, old, new):
        """Edits the template, as its owner would."""
        text = self.read(self.edge.template)
        self.assertIn(old, text)
        self.lab.write("e1.template", text.replace(old, new))

    def read(self, path):
        with open(path, encoding="utf-8") as file:
            return file.read()

    def traces(self):
        """All that a call could have changed: the files, the processes, and what is served."""
        files = {name: self.read(self.lab.path(name)) for name in os.listdir(self.lab.directory)
                 if name.startswith("e1.") and not name.endswith((".log", ".template")) and name != "e1.tmp"}
        return files, self.edge.workers(), self.edge.get()

    def left_over(self):
        return sorted(name for name in os.listdir(self.lab.directory) if name.endswith((".candidate", ".was", ".check", ".new")))


class Status(NginxCase):
    def test_each_state(self):
        found = self.yes(self.member.call("status"))
        self.assertEqual((found["state"], found["facts"]["installed"], found["facts"]["generation"]), ("online", None, "by-hand"))
        self.yes(self.take("commit"))
        found = self.yes(self.member.call("status"))
        self.assertEqual(found["facts"]["generation"], self.edge.generation())
        self.assertEqual(found["facts"]["installed"], self.edge.generation())
        self.assertEqual(found["facts"]["token"], 7)
        pid = self.edge.pid()
        self.edge.end()
        self.assertEqual(self.yes(self.member.call("status"))["state"], "offline")
        # A file that names a process which has gone, or which is another program, names no nginx.
        for other in (pid, os.getpid()):
            self.lab.write("e1.pid", f"{other}\n")
            self.assertEqual(self.yes(self.member.call("status"))["state"], "offline")

    def test_what_cannot_be_told_is_unknown(self):
        self.no(nginx_member(self.edge, NGINX_PID=self.lab.path("none.pid")).call("status"), "names no nginx")
        elsewhere = f"http://127.0.0.1:{free_port()}/lockstep"
        self.no(nginx_member(self.edge, NGINX_STATUS=elsewhere).call("status"), "nothing listens")
        self.no(nginx_member(self.edge, NGINX_STATUS="ftp://x").call("status"), "NGINX_STATUS is")


class Checking(NginxCase):
    def test_check_leaves_no_trace(self):
        before = self.traces()
        self.yes(self.take("check", token=None))
        self.assertEqual(self.traces(), before)
        self.template("proxy_http_version 1.1;", "proxy_http_version;")
        self.no(self.take("check", token=None), 'invalid number of arguments in "proxy_http_version"')
        self.assertEqual(self.traces(), before)

    def test_what_nginx_would_not_take(self):
        self.no(self.take("check", settings={"live": "purple"}), 'host not found in upstream "purple"')
        self.assertIn(self.edge.template, self.take("check", settings={"live": "purple"}).reason)
        self.no(self.take("check", settings={"epoch": 3}), "wants live; the settings of edge are epoch")
        for hostile in ("blue; return 200 x", "blue }", "", "a\nb", "$host", "x" * 129, "{{generation}}", "blü"):
            self.no(self.take("check", settings={"live": hostile}), "the setting live is")
        self.template("{{generation}}", "fixed")
        self.no(self.take("check"), "has no {{generation}}")
        os.remove(self.edge.template)
        self.no(self.take("check"), "there is no")

    def test_a_host_without_a_template_takes_no_settings(self):
        bare = nginx_member(self.edge, NGINX_TEMPLATE="")
        self.no(self.take("check", member=bare), "NGINX_TEMPLATE is not set")
        self.no(self.take("commit", member=bare), "NGINX_TEMPLATE is not set")
        self.yes(self.take("check", settings=BLUE, member=bare))

    def test_nginx_has_to_run_and_to_obey(self):
        self.no(self.take("check", from_="offline", member=nginx_member(self.edge, NGINX_START="")), "NGINX_START is not set")
        self.edge.end()
        self.no(self.take("check"), "nginx does not run")
        self.no(self.take("commit"), "nginx does not run")
        self.assertNotIn("generation", self.read(self.edge.configuration))

    def test_it_does_not_pretend_to_hold(self):
        self.no(self.take("check", role="holder"), "cannot hold clients")
        self.no(self.take("hold", role="holder", hold_ms=1000), "cannot hold clients")
        self.yes(self.take("release", role="holder", decision="abort"))

    def test_values_of_each_type(self):
        self.template("location / {", "location / { add_header X-Flags {{epoch}}-{{strict}};")
        self.yes(self.take("check", settings={"live": "green", "epoch": 42, "strict": True}))
        self.yes(self.take("commit", settings={"live": "green", "epoch": 42, "strict": True}))
        self.assertIn("X-Flags 42-true;", self.read(self.edge.configuration))


class Taking(NginxCase):
    def test_there_and_back(self):
        by_hand = self.read(self.edge.configuration)
        self.yes(self.take("prepare"))
        self.assertEqual((self.edge.get(), self.read(self.edge.configuration)), ("blue", by_hand))
        # The candidate was tested; what the owner writes after that is no part of this transition, there or back.
        self.template("proxy_pass", "no such directive")
        for _ in range(2):
            self.assertEqual(self.yes(self.take("commit"))["state"], "online")
            self.assertEqual(self.edge.get(), "green")
        self.assertIn(self.edge.generation(), self.read(self.edge.configuration).splitlines()[0])
        for _ in range(2):
            self.yes(self.take("undo", settings=BLUE, was=GREEN, token=9))
            self.assertEqual((self.edge.get(), self.read(self.edge.configuration)), ("blue", by_hand))
        self.yes(self.take("prepare", settings=BLUE, was=BLUE, transition="t10", token=10, to="offline"))
        self.assertEqual(self.left_over(), [])

    def test_nobody_reads_half_a_configuration(self):
        by_hand = self.read(self.edge.configuration)
        with open(self.edge.configuration, encoding="utf-8") as opened_before:
            self.yes(self.take("commit"))
            self.assertEqual(opened_before.read(), by_hand, "the file was rewritten and not replaced")
        self.assertNotEqual(self.read(self.edge.configuration), by_hand)

    def test_what_was_prepared_is_forgotten(self):
        self.yes(self.take("prepare"))
        self.assertEqual(self.left_over(), ["e1.conf.t7.candidate", "e1.conf.t7.was"])
        self.lab.write("e1.conf.t5.candidate", "what a killed agent left")
        self.yes(self.take("prepare"))
        self.assertEqual(self.left_over(), ["e1.conf.t7.candidate", "e1.conf.t7.was"])
        for _ in range(2):
            self.yes(self.take("cancel", token=None, decision="abort"))
            self.assertEqual((self.left_over(), self.edge.get()), ([], "blue"))

    def test_a_commit_that_was_not_prepared_is_tested_all_the_same(self):
        by_hand = self.read(self.edge.configuration)
        self.template("proxy_pass", "no such directive")
        self.no(self.take("commit"), "unknown directive")
        self.assertEqual((self.read(self.edge.configuration), self.edge.get(), self.left_over()), (by_hand, "blue", []))
        self.template("no such directive", "proxy_pass")
        self.yes(self.take("commit"))
        self.yes(self.take("undo", settings=BLUE, was=GREEN, token=9))
        self.assertEqual(self.edge.get(), "blue")

    def test_a_signal_proves_nothing(self):
        """nginx -t does not mind a port that somebody else has. The reload does, and nginx goes on as it was."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.template("server {\n", f"server {{\n listen 127.0.0.1:{taken.getsockname()[1]};\n")
            self.yes(self.take("prepare"))
            self.no(self.take("commit", deadline_ms=1500), "nginx answers by-hand")
        self.assertEqual(self.edge.get(), "blue")
        self.yes(self.take("undo", settings=BLUE, was=GREEN, token=9))
        self.assertEqual(self.yes(self.member.call("status"))["facts"]["generation"], "by-hand")

    def test_an_old_worker_that_still_takes_connections_is_seen(self):
        old = sorted(self.edge.workers())
        os.kill(old[0], signal.SIGSTOP)
        try:
            self.no(self.take("commit", deadline_ms=1500), f"still take connections: [{old[0]}]; nginx answers ")
        finally:
            os.kill(old[0], signal.SIGCONT)
        self.yes(self.take("commit"))
        self.assertFalse(set(old) & self.edge.workers())

    def test_a_call_whose_agent_died_in_it_does_nothing(self):
        before = self.traces()
        self.no(self.member.call_with("", "commit", token=7, **STAYS), "no context")
        self.assertEqual(self.member.call_with('{"me":"edge@e1","settings":{"li', "commit", token=7, **STAYS).code, 1)
        self.assertEqual(self.traces(), before)


class Fencing(NginxCase):
    def test_an_old_order_is_refused(self):
        self.yes(self.take("commit", token=9))
        before = self.traces()
        for phase in ("prepare", "commit", "undo"):
            self.no(self.take(phase, settings=BLUE, was=GREEN, token=8), "refused: token 8 is lower than 9")
        self.no(self.take("stop", token=8, **DOWN), "refused: token 8 is lower than 9")
        self.assertEqual(self.traces(), before)
        self.yes(self.take("commit", settings=BLUE, was=GREEN, token=9))
        self.assertEqual(self.edge.get(), "blue")
        self.assertEqual(self.read(self.lab.path("e1.conf.token")), "9\n")

    def test_a_token_that_cannot_be_read_stops_everything(self):
        self.lab.write("e1.conf.token", "many\n")
        self.no(self.take("commit"), "holds no token")
        self.assertEqual(self.edge.get(), "blue")

    def test_the_token_counts_from_before_the_change(self):
        """One that failed half-way has still fenced off what is older."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.template("server {\n", f"server {{\n listen 127.0.0.1:{taken.getsockname()[1]};\n")
            self.assertEqual(self.take("commit", token=9, deadline_ms=1000).code, 1)
        self.no(self.take("commit", settings=BLUE, was=GREEN, token=8), "refused")

    def test_one_at_a_time(self):
        with open(self.lab.path("e1.conf.lock"), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.again(self.take("commit", deadline_ms=500), "another call holds")
            self.assertEqual(self.edge.get(), "blue")
        self.yes(self.take("commit"))


class Lifecycle(NginxCase):
    def test_offline_and_online(self):
        self.yes(self.take("check", settings=BLUE, token=None, **DOWN))
        for _ in range(2):
            self.assertEqual(self.yes(self.take("commit", settings=BLUE, **DOWN))["state"], "offline")
            self.assertEqual((self.edge.pid(), self.yes(self.member.call("status"))["state"]), (None, "offline"))
        # What it comes back with is what is set by then.
        self.yes(self.take("check", was=GREEN, token=None, **UP))
        for token in (8, 9):
            self.yes(self.take("prepare", was=GREEN, token=token, **UP))
            self.assertEqual(self.yes(self.take("commit", was=GREEN, token=token, **UP))["state"], "online")
            self.assertEqual(self.edge.get(), "green")
        self.yes(self.take("undo", was=GREEN, token=10, from_="online", to="offline"))
        self.assertEqual(self.edge.pid(), None)

    def test_one_without_settings(self):
        bare = nginx_member(self.edge, NGINX_TEMPLATE="")
        by_hand = self.read(self.edge.configuration)
        for ways in (DOWN, UP):
            for phase in ("check", "prepare", "commit"):
                self.yes(bare.call(phase, {}, token=3, transition="t3", role="actor", **ways))
        self.assertEqual((self.edge.get(), self.read(self.edge.configuration)), ("blue", by_hand))

    def test_there_is_no_third_state(self):
        self.no(self.take("check", to="standby"), "no state 'standby'")
        self.no(self.take("commit", to="standby"), "no state 'standby'")


class Slow(NginxCase):
    """One request that its upstream has not answered yet."""

    def setUp(self):
        super().setUp()
        upstream = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(upstream.close)
        self.slow = Edge(self.lab, "slow", [upstream.getsockname()[1]], [upstream.getsockname()[1]]).start()
        self.member = nginx_member(self.slow)
        self.got = []
        self.asking = threading.Thread(target=self.ask)
        self.asking.start()
        self.far, _ = upstream.accept()
        self.addCleanup(self.far.close)
        self.far.recv(65536)

    def ask(self):
        try:
            self.got.append(self.slow.get())
        except (OSError, IndexError) as error:
            self.got.append(repr(error))

    def answer(self):
        self.far.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nlate\n")
        self.asking.join(10)

    def test_offline_waits_for_what_has_begun(self):
        self.again(self.take("commit", settings=BLUE, deadline_ms=800, **DOWN), "still serves what had begun")
        with self.assertRaises(ConnectionRefusedError):
            self.slow.get()
        self.assertEqual(self.got, [])
        self.answer()
        self.yes(self.take("commit", settings=BLUE, **DOWN))
        self.assertEqual(self.got, ["late"])

    def test_a_reload_does_not(self):
        self.yes(self.take("commit"))
        self.assertEqual((self.got, self.yes(self.member.call("status"))["facts"]["draining"]), ([], 1))
        self.answer()
        self.assertEqual(self.got, ["late"])

    def test_stop_cuts_it(self):
        began = time.monotonic()
        self.yes(self.take("stop", settings=BLUE, deadline_ms=1500, **DOWN))
        self.assertGreater(time.monotonic() - began, 0.4, "it had no time to end by itself")
        self.asking.join(10)
        self.assertNotEqual(self.got, ["late"])
        self.no(self.take("stop", to="online", from_="offline"), "downwards")


class UnderLoad(NginxCase):
    ROUNDS = 4

    def test_nobody_notices(self):
        visitors = Visitors({edge.name: edge.port for edge in self.edges}).start()
        self.addCleanup(visitors.give_up)
        visitors.wait_for(200)
        mixed = []
        for number in range(self.ROUNDS):
            was, settings = (BLUE, GREEN) if number % 2 == 0 else (GREEN, BLUE)
            seen = len(visitors.answers)
            given = {"settings": settings, "was": was, "transition": f"t{number + 1}", "token": number + 1}
            for member in self.members:
                self.yes(self.take("prepare", member=member, **given))
            for member in self.members:
                self.yes(self.take("commit", member=member, **given))
            # From the answer on, not one visitor who asks is shown the old one.
            done = time.monotonic()
            visitors.wait_for(200)
            late = [answer.text for answer in visitors.answers[seen:] if answer.asked > done and answer.text != settings["live"]]
            self.assertEqual(late, [])
            mixed.append(mixing_ms(visitors.answers[seen:], was["live"], settings["live"]))
        visitors.stop()
        self.assertEqual(visitors.errors, [])
        print(f"\n{self.ROUNDS} reloads of two edges under load: {len(visitors.answers)} answers, 0 errors, {len(visitors.reopened)} "
              f"kept connections opened again, edges one after the other mixed for {max(mixed):.0f} ms", file=sys.stderr)


if __name__ == "__main__":
    unittest.main()
