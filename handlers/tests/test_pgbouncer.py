import os
import signal
import sys
import threading
import time
import unittest
from types import SimpleNamespace

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from calling import Member, pgbouncer_member, shown
from lab import Lab, free_port, wait_until
from pg import MEMORY, Pgbouncer, PgWriters, Postgres, Refused, missing_rows

MOVE = {"role": "holder", "subject": "db"}


def setUpModule():
    """Two servers for all tests. To a pooler b is the new primary as soon as it is said to be; that it is a's copy matters
    under load only, which has servers of its own."""
    lab = Lab("two-servers", MEMORY)
    unittest.addModuleCleanup(lab.close)
    PgbouncerCase.a, PgbouncerCase.b = (Postgres(lab, name, "fsync = off").primary() for name in ("a", "b"))


class PgbouncerCase(unittest.TestCase):
    """One PgBouncer in front of a."""

    def setUp(self):
        self.lab = Lab(self.id().split(".")[-1][:30], MEMORY)
        self.addCleanup(self.close)
        for server in (self.a, self.b):
            server.sql("truncate written")
        self.pooler = Pgbouncer(self.lab, "p1", self.a.port).start()
        self.member = pgbouncer_member(self.pooler)
        self.db = [Member(f"db@{server.name}", "postgresql", server.address, {}) for server in (self.a, self.b)]

    def close(self):
        outcome = getattr(self._outcome, "result", None)
        self.lab.keep = bool(outcome and any(test is self for test, _ in outcome.failures + outcome.errors))
        self.lab.close()

    def context(self, primary="b", **more):
        goals = {member.name: "standby" for member in self.db}
        if primary:
            goals[f"db@{primary}"] = "primary"
        return shown([self.member, *self.db], {self.member.name: "online", **goals}, **more)

    def yes(self, answer):
        self.assertEqual(answer.code, 0, answer)
        return answer.json

    def no(self, answer, text):
        self.assertEqual(answer.code, 1, answer)
        self.assertIn(text, answer.reason)

    def hold(self, hold_ms=5000, **more):
        return self.member.call("hold", self.context(), hold_ms=hold_ms, deadline_ms=5000, **MOVE, **more)

    def release(self, decision="commit", primary="b", **more):
        return self.member.call("release", self.context(primary), decision=decision, deadline_ms=5000, **MOVE, **more)

    def written(self):
        with open(self.pooler.databases, encoding="utf-8") as file:
            return file.read()

    def waiting(self, client):
        """A row that a client asks for in a thread of its own: the thread, and what becomes of it."""
        heard = []

        def ask():
            try:
                heard.append(client.value("insert into written values (1) returning inet_server_port()"))
            except (OSError, Refused) as error:
                heard.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: heard or self.waiters() > 0, "it waits")
        return thread, heard

    def waiters(self):
        return sum(int(pool["cl_waiting"]) for pool in self.pooler.show("pools") if pool["database"] == "app")


class Status(PgbouncerCase):
    def test_each_state(self):
        online = self.yes(self.member.call("status"))
        self.assertEqual(online, {"state": "online", "facts": {"server": self.a.address, "paused": False, "waiting": 0, "held": False}})
        self.yes(self.hold())
        held = self.yes(self.member.call("status"))["facts"]
        self.assertEqual((held["paused"], held["held"]), (True, True))
        os.kill(self.pooler.pid(), signal.SIGSTOP)
        self.no(self.member.call("status"), "unknown")
        self.pooler.kill()
        self.assertEqual(self.yes(self.member.call("status"))["state"], "offline")


class Check(PgbouncerCase):
    def test_yes(self):
        before = self.written()
        self.yes(self.member.call("check", self.context(), **MOVE))
        self.assertFalse(self.pooler.is_paused())
        self.assertEqual(self.written(), before)

    def test_what_a_pause_could_not_do(self):
        self.pooler.ask("pause app")
        self.no(self.member.call("check", self.context(), **MOVE), "paused already")
        session = Pgbouncer(self.lab, "p2", self.a.port, pool_mode="session").start()
        self.no(pgbouncer_member(session).call("check", self.context(), **MOVE), "pooled by session")

    def test_names_files_and_rights(self):
        self.no(pgbouncer_member(self.pooler, PGBOUNCER_DATABASES="other").call("check", self.context(), **MOVE), "no database other")
        self.no(pgbouncer_member(self.pooler, PGBOUNCER_DATABASES="a b").call("check", self.context(), **MOVE), "only letters")
        wrong = pgbouncer_member(self.pooler, PGBOUNCER_FILE=self.pooler.configuration)
        self.no(wrong.call("check", self.context(), **MOVE), "has no line for app")
        nobody = pgbouncer_member(self.pooler, PGBOUNCER_USER="postgres")
        self.no(nobody.call("check", self.context(), **MOVE), "not allowed")
        self.pooler.kill()
        self.no(self.member.call("check", self.context(), **MOVE), "does not answer")


class Hold(PgbouncerCase):
    def test_clients_wait_and_go_on_at_the_new_primary(self):
        with self.pooler.client() as client:
            client.query("select 1")
            self.yes(self.hold())
            thread, heard = self.waiting(client)
            self.assertEqual(heard, [])
            for _ in range(2):
                self.yes(self.release())
            thread.join(10)
            self.assertEqual(heard, [str(self.b.port)])
        self.assertEqual(self.pooler.target(), self.b.address)
        text = self.written()
        self.assertEqual(text, f"[databases]\n; the one that clients use\napp = host=127.0.0.1 port={self.b.port} dbname=postgres\n")
        self.assertFalse(os.path.exists(f"{self.pooler.databases}.hold"))
        self.pooler.kill()
        self.assertEqual(self.pooler.start().target(), self.b.address)

    def test_abort_and_an_end_without_a_decision_change_nothing_else(self):
        for decision in ("abort", ""):
            with self.pooler.client() as client:
                self.yes(self.hold())
                thread, heard = self.waiting(client)
                for _ in range(2):
                    self.yes(self.release(decision))
                thread.join(10)
                self.assertEqual(heard, [str(self.a.port)])
            self.a.sql("truncate written")
            self.assertEqual(self.pooler.target(), self.a.address)

    def test_it_ends_by_itself(self):
        with self.pooler.client() as client:
            began = time.monotonic()
            self.yes(self.hold(hold_ms=1500))
            thread, heard = self.waiting(client)
            thread.join(10)
            self.assertEqual(heard, [str(self.a.port)])
            self.assertGreater(time.monotonic() - began, 1.2)
        wait_until(lambda: not self.yes(self.member.call("status"))["facts"]["held"], "it is said to be over")
        self.yes(self.release())  # the last word still comes
        self.assertEqual(self.pooler.target(), self.b.address)

    def test_the_end_of_one_hold_is_not_the_end_of_the_next(self):
        self.yes(self.hold(hold_ms=1500))
        self.yes(self.release("abort"))
        self.yes(self.hold(hold_ms=30000))
        expired = time.monotonic() + 2
        wait_until(lambda: time.monotonic() > expired, "the first end has come")
        self.assertTrue(self.pooler.is_paused())
        self.yes(self.release("abort"))

    def test_a_transaction_that_does_not_end(self):
        with self.pooler.client() as busy, self.pooler.client() as other:
            busy.query("begin; select 1")
            pid = busy.value("select pg_backend_pid()")
            answer = self.hold(hold_ms=3000)
            self.no(answer, f"1 transactions have not ended in 1.0 s: pid {pid}")
            self.assertLess(answer.seconds, 1.4)
            self.assertEqual(other.value("select 1"), "1")
            busy.query("commit")
        self.assertFalse(self.pooler.is_paused())
        self.assertFalse(os.path.exists(f"{self.pooler.databases}.hold"))

    def test_a_hold_longer_than_clients_may_wait(self):
        pooler = Pgbouncer(self.lab, "p2", self.a.port, more="query_wait_timeout = 3").start()
        member = pgbouncer_member(pooler)
        self.no(member.call("hold", self.context(), hold_ms=3000, deadline_ms=5000, **MOVE), "query_wait_timeout is 3 s")
        self.yes(member.call("hold", self.context(), hold_ms=2500, deadline_ms=5000, **MOVE))

    def test_nobody_to_point_at(self):
        self.yes(self.hold())
        self.no(self.release(primary=None), "nobody in db is primary")
        self.assertFalse(self.pooler.is_paused())

    def test_an_old_order(self):
        self.yes(self.hold(token=9))
        self.yes(self.release(token=9))
        self.no(self.release(primary="a", token=8), "token 8 is lower than 9")
        self.no(self.hold(token=8), "token 8 is lower than 9")
        self.yes(self.release("abort", token=8))
        self.assertEqual(self.pooler.target(), self.b.address)

    def test_pgbouncer_that_was_restarted_holds_nobody(self):
        self.yes(self.hold())
        self.pooler.kill()
        self.yes(self.release("abort"))
        self.pooler.start()
        self.assertFalse(self.pooler.is_paused())


class Notice(PgbouncerCase):
    def notice(self, context, **more):
        return self.member.call("notice", context, role="observer", **more)

    def test_it_follows_a_primary_that_changed_without_a_hold(self):
        self.yes(self.notice(self.context()))
        self.assertEqual(self.pooler.target(), self.a.address, "an intent moved it")
        for _ in range(2):
            self.yes(self.notice(self.context(), decision="commit"))
        with self.pooler.client() as client:
            self.assertEqual(client.value("select inet_server_port()"), str(self.b.port))
        self.yes(self.notice(self.context("a"), decision="commit", token=5))
        self.yes(self.notice(self.context("b"), decision="commit", token=4))
        self.assertEqual(self.pooler.target(), self.a.address, "older than what is in place")
        self.yes(self.notice(self.context("b", gap=True), gap=1))
        self.assertEqual(self.pooler.target(), self.b.address)

    def test_clients_get_through_at_once_after_the_old_one_has_refused(self):
        self.pooler.point_at(self.a, SimpleNamespace(port=free_port()))
        writers = PgWriters([self.pooler.port], count=2, per_second=50).start()
        wait_until(lambda: writers.errors or self.waiters() > 0, "nobody gets through")
        began = time.monotonic()
        self.yes(self.notice(self.context(), decision="commit"))
        writers.wait_for(10, 5)
        writers.stop()
        self.assertLess(time.monotonic() - began, 5)
        self.assertEqual(next(row["value"] for row in self.pooler.show("config") if row["key"] == "server_login_retry"), "15")

    def test_what_is_held_is_left_to_its_release(self):
        self.yes(self.hold())
        self.yes(self.notice(self.context(), decision="commit"))
        self.assertEqual(self.pooler.target(), self.a.address)
        self.yes(self.release("abort"))

    def test_who_is_down_or_not_primary_yet(self):
        context = shown([self.member, *self.db], {"db@a": "standby", "db@b": "primary"}, {"db@a": "primary", "db@b": "standby"})
        self.yes(self.notice(context, decision="commit"))
        self.assertEqual(self.pooler.target(), self.a.address)
        self.pooler.kill()
        self.yes(self.notice(self.context(), decision="commit"))


class Offline(PgbouncerCase):
    def test_there_and_back(self):
        for _ in range(2):
            self.yes(self.member.call("commit", self.context("a"), from_="online", to="offline"))
        self.assertIsNone(self.pooler.pid())
        self.yes(self.member.call("check", self.context(), from_="offline", to="online"))
        for _ in range(2):
            self.yes(self.member.call("commit", self.context(), from_="offline", to="online"))
        self.assertEqual(self.pooler.target(), self.b.address)
        with self.pooler.client() as client:
            self.assertEqual(client.value("select inet_server_port()"), str(self.b.port))

    def test_what_has_begun_ends_first(self):
        with self.pooler.client() as client:
            client.query("begin; insert into written values (1)")
            answer = self.member.call("commit", self.context("a"), from_="online", to="offline", deadline_ms=800)
            self.assertEqual((answer.code, "have not ended" in answer.reason), (75, True), answer)
            client.query("commit")
            self.yes(self.member.call("commit", self.context("a"), from_="online", to="offline"))
        self.assertTrue(self.a.has(1))

    def test_stop_is_bounded(self):
        with self.pooler.client() as client:
            client.query("begin; insert into written values (1)")
            answer = self.member.call("stop", self.context("a"), to="offline", deadline_ms=1500)
            self.yes(answer)
            self.assertLess(answer.seconds, 1.5)
        self.assertIsNone(self.pooler.pid())


class UnderLoad(PgbouncerCase):
    def setUp(self):
        super().setUp()
        self.a = Postgres(self.lab, "a", "fsync = off").primary()
        self.b = Postgres(self.lab, "b", "fsync = off").standby_of(self.a).receives_from(self.a)
        self.pooler = Pgbouncer(self.lab, "p2", self.a.port).start()
        self.member = pgbouncer_member(self.pooler)
        self.db = [Member(f"db@{server.name}", "postgresql", server.address, {}) for server in (self.a, self.b)]

    def test_no_client_sees_an_error(self):
        writers = PgWriters([self.pooler.port], count=4, per_second=300).start()
        writers.wait_for(200)
        self.yes(self.hold())
        self.a.stop()
        self.b.sql("select pg_promote()")
        self.yes(self.release())
        writers.wait_for(200)
        writers.stop()
        self.assertEqual(writers.errors, [])
        self.assertEqual(missing_rows(writers.acknowledged, self.b), [])
        self.assertEqual(writers.overlap_ms(), 0)


if __name__ == "__main__":
    unittest.main()
