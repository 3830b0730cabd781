import os
import shutil
import signal
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from calling import Member, postgresql_member, shown
from lab import Lab, Relay, wait_until
from pg import BIN, MEMORY, Connection, PgWriters, Postgres, Refused, belongs, missing_rows
from pgwire import conninfo, password_in

DOWN = {"from_": "primary", "to": "standby"}  # of check and prepare; the commit's first step is
OFF = {"from_": "primary", "to": "offline"}
UP = {"from_": "standby", "to": "primary"}
REJOIN = {"from_": "offline", "to": "standby"}


class PostgresCase(unittest.TestCase):
    """a is the primary, b receives from it; `THIRD` adds c, which does too."""

    SETTINGS = {}
    THIRD = False

    def setUp(self):
        self.lab = Lab(self.id().split(".")[-1][:30], MEMORY)
        self.addCleanup(self.close)
        # Without fsync: what is killed here are processes.
        self.a = Postgres(self.lab, "a", "fsync = off").primary()
        self.b = Postgres(self.lab, "b", "fsync = off").standby_of(self.a).receives_from(self.a)
        self.servers = [self.a, self.b]
        if self.THIRD:
            self.c = Postgres(self.lab, "c", "fsync = off").standby_of(self.a).receives_from(self.a)
            self.servers.append(self.c)
        self.members = [postgresql_member(server, **self.SETTINGS) for server in self.servers]
        self.ma, self.mb = self.members[:2]

    def close(self):
        outcome = getattr(self._outcome, "result", None)
        self.lab.keep = bool(outcome and any(test is self for test, _ in outcome.failures + outcome.errors))
        self.lab.close()

    def context(self, primary="a", out=None, actual=None, **more):
        names = {member.name: "standby" for member in self.members}
        return shown(self.members, {**names, f"db@{primary}": "primary"},
                     {**names, f"db@{actual or primary}": "primary"}, out, **more)

    def moving(self, out=None):
        """To b: goals are new, actual states still the old ones."""
        return self.context("b", out, actual="a")

    def yes(self, answer):
        self.assertEqual(answer.code, 0, answer)
        return answer.json

    def no(self, answer, text):
        self.assertEqual(answer.code, 1, answer)
        self.assertIn(text, answer.reason)

    def again(self, answer, text):
        self.assertEqual(answer.code, 75, answer)
        self.assertIn(text, answer.reason)

    def prepare_both(self):
        stop = self.yes(self.ma.call("prepare", self.moving(), hold_ms=5000, deadline_ms=5000, **DOWN))["out"]
        out = {"db@a": stop}
        self.yes(self.mb.call("prepare", self.moving(out), hold_ms=5000, deadline_ms=5000, **UP))
        return out

    def switch(self, out=None, rejoin=True):
        out = out or self.prepare_both()
        self.yes(self.ma.call("commit", self.moving(out), deadline_ms=20000, **OFF))
        self.yes(self.mb.call("commit", self.moving(out), deadline_ms=20000, **UP))
        if rejoin:
            self.yes(self.ma.call("commit", self.moving(out), deadline_ms=20000, **REJOIN))
        return out

    def failover(self, before=lambda: None):
        """a is lost with a row that nobody else has; b takes its place and goes on."""
        self.b.stop()
        self.a.sql("insert into written values (666)")
        self.a.kill()
        self.b.start()
        before()
        nobody = shown(self.members, {"db@a": "offline", "db@b": "primary"}, {"db@a": "primary", "db@b": "standby"})
        self.yes(self.mb.call("commit", nobody, deadline_ms=20000, **UP))
        self.b.sql("insert into written values (2)")


class Status(PostgresCase):
    def test_each_state(self):
        self.a.sql("insert into written values (1)")
        primary = self.yes(self.ma.call("status"))
        self.assertEqual((primary["state"], primary["pids"]), ("primary", [self.a.pid()]))
        self.assertEqual((primary["facts"]["timeline"], primary["facts"]["standbys"]), (1, 1))
        wait_until(lambda: self.yes(self.mb.call("status"))["facts"]["lag"] == 0, "b has caught up")
        standby = self.yes(self.mb.call("status"))
        self.assertEqual((standby["state"], standby["facts"]["receiver"]), ("standby", "streaming"))
        self.assertEqual(standby["facts"]["primary"], self.a.address)
        self.b.stop()
        self.assertEqual(self.yes(self.mb.call("status"))["state"], "offline")
        self.a.kill()  # leaves its pid file behind
        self.assertEqual(self.yes(self.ma.call("status"))["state"], "offline")

    def test_a_server_that_does_not_answer_is_unknown(self):
        os.kill(self.b.pid(), signal.SIGSTOP)  # connected, and silent
        self.no(self.mb.call("status"), "unknown")

    def test_the_freshest_standby_has_the_highest_score(self):
        score = lambda member: self.yes(member.call("status"))["score"]
        self.switch()
        wait_until(lambda: score(self.ma) == score(self.mb), "both have the same")
        self.a.stop()
        self.a.start()
        was = score(self.ma)
        self.b.sql("insert into written values (1)")
        wait_until(lambda: score(self.ma) > was, "a has received it")
        self.assertGreater(score(self.ma), 2 << 52, "a later timeline counts for more than any position")


class Check(PostgresCase):
    SETTINGS = {"PG_MAX_LAG_BYTES": "50000", "PG_TRANSACTION_MAX_MS": "300"}

    def test_yes_from_both(self):
        self.yes(self.ma.call("check", self.moving(), **DOWN))
        self.yes(self.mb.call("check", self.moving(), **UP))
        self.yes(self.mb.call("check", self.moving(), from_="standby", to="offline"))
        self.yes(self.mb.call("check", self.moving(), role="voter"))

    def test_the_wrong_roles(self):
        self.no(self.mb.call("check", self.moving(), **DOWN), "not the primary")
        self.no(self.ma.call("check", self.moving(), **UP), "primary already")
        self.b.stop()
        self.no(self.mb.call("check", self.moving(), **UP), "does not answer")

    def test_a_long_transaction(self):
        with self.a.connection() as client:
            client.query("begin; select 1")
            pid = client.value("select pg_backend_pid()")
            wait_until(lambda: self.ma.call("check", self.moving(), **DOWN).code == 1, "it is old enough")
            self.no(self.ma.call("check", self.moving(), **DOWN), f"a transaction of pid {pid} (witness, idle in transaction) is ")
            client.query("commit")
        self.yes(self.ma.call("check", self.moving(), **DOWN))

    def test_lag_and_a_receiver_that_is_gone(self):
        relay = Relay(self.lab, self.a.port)
        self.b.sql(f"alter system set primary_conninfo = '{self.b.conninfo(relay.port)}'")
        self.b.sql("select pg_reload_conf()")
        wait_until(lambda: self.b.sender() == relay.port, "b receives through the relay")
        self.yes(self.mb.call("check", self.moving(), **UP))
        relay.stall()
        self.a.sql("insert into written select generate_series(1, 5000)")
        answer = self.mb.call("check", self.moving(), **UP)
        self.assertRegex(answer.reason, r"^lag \d{6} bytes, not received yet, at most 50000$")
        relay.close()
        wait_until(lambda: self.b.sender() is None, "it is seen to be gone")
        self.no(self.mb.call("check", self.moving(), **UP), "receives nothing")

    def test_replay_that_is_paused_late_or_in_conflict(self):
        self.b.sql("select pg_wal_replay_pause()")
        self.no(self.mb.call("check", self.moving(), **UP), "paused")
        self.b.sql("select pg_wal_replay_resume()")
        self.b.sql("alter system set recovery_min_apply_delay = '1h'")
        self.b.sql("select pg_reload_conf()")
        wait_until(lambda: self.b.value("show recovery_min_apply_delay") == "1h", "it is in force")
        self.no(self.mb.call("check", self.moving(), **UP), "late on purpose")
        self.b.sql("alter system reset recovery_min_apply_delay")
        self.b.sql("select pg_reload_conf()")
        wait_until(lambda: self.b.value("show recovery_min_apply_delay") == "0", "it is no longer")
        self.a.sql("insert into written values (1)")
        wait_until(lambda: self.b.has(1), "b has it")
        with self.b.connection() as query:
            query.query("begin isolation level repeatable read; select * from written")
            pid = query.value("select pg_backend_pid()")
            self.a.sql("truncate written")
            wait_until(lambda: "replay waits" in self.mb.call("check", self.moving(), **UP).reason, "replay waits")
            self.no(self.mb.call("check", self.moving(), **UP), f"perhaps of pid {pid}")

    def test_a_slot_that_the_successor_lacks(self):
        self.a.sql("alter system set primary_slot_name = 'a_follows'")
        self.a.sql("select pg_reload_conf()")
        wait_until(lambda: self.a.value("show primary_slot_name") == "a_follows", "it is in force")
        self.no(self.ma.call("check", self.moving(), **DOWN), "db@b has no such slot")
        self.b.sql("select pg_create_physical_replication_slot('a_follows')")
        self.yes(self.ma.call("check", self.moving(), **DOWN))

    def test_a_successor_with_more_room(self):
        self.b.stop()
        with open(self.b.configuration, "a", encoding="utf-8") as file:
            file.write("max_connections = 61\n")
        self.b.start()
        self.no(self.ma.call("check", self.moving(), **DOWN), "max_connections is 60 here and 61 on db@b")

    def test_what_would_be_written_at_shutdown_is_written_before(self):
        before = self.a.value("select redo_lsn from pg_control_checkpoint()")
        member = postgresql_member(self.a, PG_CHECKPOINT_BYTES="100000")
        self.a.sql("insert into written select generate_series(1, 5000)")
        self.yes(self.ma.call("check", self.moving(), **DOWN))
        self.assertEqual(self.a.value("select redo_lsn from pg_control_checkpoint()"), before)
        self.yes(member.call("check", self.moving(), **DOWN))
        self.assertNotEqual(self.a.value("select redo_lsn from pg_control_checkpoint()"), before)

    def test_without_a_primary_there_is_nobody_to_compare_with(self):
        self.a.kill()
        goals = {member.name: "standby" for member in self.members}
        self.yes(self.mb.call("check", shown(self.members, goals), **UP))

    def test_start(self):
        self.b.stop()
        self.yes(self.mb.call("check", self.context(), **REJOIN))
        empty = Member("db@b", "postgresql", self.b.address, {"PGDATA": self.lab.path("nothing"), "PG_BIN": BIN})
        self.no(empty.call("check", self.context(), **REJOIN), "PG_BASEBACKUP is not yes")


class Prepare(PostgresCase):
    def test_the_entering_one_has_all_that_the_leaving_one_stands_at(self):
        self.a.sql("set synchronous_commit = off; insert into written values (1)")
        out = self.prepare_both()["db@a"]
        self.assertEqual((out["timeline"], out["system"]), (1, self.a.value("select system_identifier from pg_control_system()")))
        self.assertTrue(self.b.has(1), "acknowledged without a flush, and not handed on")

    def test_it_waits_for_who_writes(self):
        with self.a.connection() as client:
            client.query("begin; insert into written values (1)")
            member = postgresql_member(self.a, PG_QUIET_MS="200")
            self.no(member.call("prepare", self.moving(), hold_ms=5000, **DOWN), "(witness) still writes")
            self.yes(postgresql_member(self.a, PG_QUIET_MS="0").call("prepare", self.moving(), hold_ms=5000, **DOWN))
            answers = []
            thread = threading.Thread(target=lambda: answers.append(self.ma.call("prepare", self.moving(), hold_ms=5000, **DOWN)))
            thread.start()
            wait_until(lambda: self.a.value("select count(*) from pg_stat_activity where application_name = 'lockstep'") == "1",
                       "it is there")
            self.assertEqual(answers, [])
            client.query("commit")
            thread.join(10)
            self.yes(answers[0])

    def test_a_standby_that_does_not_get_there_says_no_in_time(self):
        relay = Relay(self.lab, self.a.port)
        self.b.sql(f"alter system set primary_conninfo = '{self.b.conninfo(relay.port)}'")
        self.b.sql("select pg_reload_conf()")
        wait_until(lambda: self.b.sender() == relay.port, "b receives through the relay")
        relay.stall()
        self.a.sql("insert into written values (1)")
        stop = self.yes(self.ma.call("prepare", self.moving(), hold_ms=2000, **DOWN))["out"]
        answer = self.mb.call("prepare", self.moving({"db@a": stop}), deadline_ms=700, hold_ms=2000, **UP)
        self.no(answer, "bytes behind")
        self.assertLess(answer.seconds, 0.7)

    def test_an_old_token(self):
        self.yes(self.mb.call("commit", self.context(), token=7, from_="standby", to="offline"))
        self.no(self.mb.call("commit", self.context(), token=6, **REJOIN), "token 6 is lower than 7")
        self.no(self.ma.call("commit", self.context(), token="x", **OFF), "LOCKSTEP_TOKEN")
        self.assertIsNone(self.b.pid())
        self.yes(self.mb.call("commit", self.context(), token=7, **REJOIN))


class Commit(PostgresCase):
    def test_switch_each_commit_twice(self):
        self.a.sql("insert into written values (1)")
        out = self.prepare_both()
        for _ in range(2):
            self.yes(self.ma.call("commit", self.moving(out), **OFF))
        self.assertIsNone(self.a.pid())
        for _ in range(2):
            self.yes(self.mb.call("commit", self.moving(out), **UP))
        self.assertTrue(self.b.has(1))
        self.yes(self.ma.call("commit", self.moving(out), **OFF))
        pids = set()
        for _ in range(2):
            self.yes(self.ma.call("commit", self.moving(out), deadline_ms=20000, **REJOIN))
            pids.add(self.a.pid())
        self.assertEqual(len(pids), 1, "a second start")
        self.a.receives_from(self.b)
        self.b.sql("insert into written values (2)")
        wait_until(lambda: self.a.has(2), "a row from b reaches a")
        with open(self.a.log, encoding="utf-8") as log:
            self.assertNotIn("rewind", log.read())

    def test_there_and_back(self):
        self.switch()
        back = lambda out=None: self.context("a", out, actual="b")
        stop = self.yes(self.mb.call("prepare", back(), hold_ms=5000, **DOWN))["out"]
        out = {"db@b": stop}
        self.yes(self.ma.call("prepare", back(out), hold_ms=5000, **UP))
        self.yes(self.mb.call("commit", back(out), **OFF))
        self.yes(self.ma.call("commit", back(out), **UP))
        self.yes(self.mb.call("commit", back(out), deadline_ms=20000, **REJOIN))
        self.assertTrue(self.a.is_primary())
        self.assertEqual(self.yes(self.ma.call("status"))["facts"]["timeline"], 3)

    def test_a_successor_that_is_behind_is_waited_for_while_we_still_run(self):
        out = self.prepare_both()
        self.b.stop()
        self.again(self.ma.call("commit", self.moving(out), deadline_ms=1500, **OFF), "still the primary: db@b does not answer")
        self.a.sql("insert into written values (1)")
        self.b.start().receives_from(self.a)
        self.switch(out, rejoin=False)
        self.assertTrue(self.b.has(1), "written after prepare, and lost")

    def test_a_successor_that_lost_touch_at_the_end(self):
        out = self.prepare_both()
        self.b.kill()
        self.a.sql("insert into written values (1)")
        self.a.stop()
        self.b.start()
        self.no(self.ma.call("commit", self.moving(out), deadline_ms=1000, **OFF), "would lose writes")
        self.yes(self.ma.call("undo", self.context(out=out, actual="a"), deadline_ms=20000, from_="offline", to="primary"))
        self.assertTrue(self.a.is_primary() and self.a.has(1))

    def test_an_end_without_a_shutdown(self):
        out = self.prepare_both()
        self.a.kill()
        self.no(self.ma.call("commit", self.moving(out), **OFF), "ended without a clean shutdown (in production)")

    def test_a_standby_that_lacks_something_is_not_promoted(self):
        out = self.prepare_both()
        self.a.stop()
        lacking = {"db@a": {**out["db@a"], "lsn": "0/FFFFFFFF"}}
        self.no(self.mb.call("commit", self.moving(lacking), **UP), "not promoted")
        other = {"db@a": {**out["db@a"], "system": "1"}}
        self.no(self.mb.call("commit", self.moving(other), **UP), "another database")
        self.assertFalse(self.b.is_primary())

    def test_no_second_primary(self):
        out = self.prepare_both()
        self.no(self.mb.call("commit", self.moving(out), **UP), "db@a is a primary that takes writes")
        self.assertFalse(self.b.is_primary())

    def test_undo_before_the_promotion(self):
        out = self.prepare_both()
        self.yes(self.ma.call("commit", self.moving(out), **OFF))
        self.yes(self.mb.call("undo", self.context(out=out), from_="primary", to="standby", deadline_ms=20000))
        for _ in range(2):
            self.yes(self.ma.call("undo", self.context(out=out), from_="offline", to="primary", deadline_ms=20000))
        self.assertTrue(self.a.is_primary())
        self.b.receives_from(self.a)
        self.assertEqual(self.yes(self.ma.call("status"))["facts"]["timeline"], 1)

    def test_undo_after_the_promotion(self):
        out = self.switch()
        back = self.context("a", out, actual="b")
        self.yes(self.ma.call("undo", back, from_="standby", to="offline", deadline_ms=20000))
        self.yes(self.mb.call("undo", back, from_="primary", to="standby", deadline_ms=20000))
        self.assertFalse(self.b.is_primary())
        self.yes(self.ma.call("undo", back, from_="offline", to="primary", deadline_ms=20000))
        self.assertTrue(self.a.is_primary())
        # b's history goes on beyond: what brings it back is its own way down and up, or a notice.
        self.yes(self.mb.call("notice", self.context("a"), role="observer", decision="commit", deadline_ms=20000))
        self.b.receives_from(self.a)

    def test_stop_is_bounded(self):
        nobody = shown(self.members, {member.name: "offline" for member in self.members})
        with self.a.connection() as client:
            client.query("begin; insert into written values (1)")
            self.yes(self.ma.call("stop", nobody, to="offline", deadline_ms=10000))
        os.kill(self.b.pid(), signal.SIGSTOP)
        answer = self.mb.call("stop", nobody, to="offline", deadline_ms=1500)
        self.yes(answer)
        self.assertLess(answer.seconds, 1.5)
        self.assertIsNone(self.b.pid())
        self.yes(self.mb.call("stop", nobody, to="offline"))

    def test_start_by_command(self):
        self.b.stop()
        argv = f'["{BIN}/pg_ctl", "start", "-s", "-D", "{self.b.data}", "-l", "{self.b.log}", "-o", "-c config_file={self.b.configuration}"]'
        member = postgresql_member(self.b, PG_START=argv)
        self.yes(member.call("commit", self.context(), deadline_ms=20000, **REJOIN))
        self.b.receives_from(self.a)


class Parted(PostgresCase):
    """A primary that was lost comes back with a history of its own."""

    def test_rewind_of_a_crashed_primary(self):
        self.failover()
        for _ in range(2):
            self.yes(self.ma.call("commit", self.moving(), deadline_ms=30000, **REJOIN))
        self.a.receives_from(self.b)
        wait_until(lambda: self.a.has(2), "what b wrote reaches a")
        self.assertFalse(self.a.has(666), "a row that b lacks")

    def test_a_primary_without_its_first_checkpoint(self):
        stopped = []

        def stop_checkpointer():
            stopped.append(int(self.b.value("select pid from pg_stat_activity where backend_type = 'checkpointer'")))
            os.kill(stopped[0], signal.SIGSTOP)

        self.failover(stop_checkpointer)
        self.b.sql("revoke pg_checkpoint from replicator")
        self.again(self.ma.call("commit", self.moving(), deadline_ms=30000, **REJOIN), "first checkpoint as a primary")
        os.kill(stopped[0], signal.SIGCONT)
        self.b.sql("checkpoint")
        self.yes(self.ma.call("commit", self.moving(), deadline_ms=30000, **REJOIN))
        self.a.receives_from(self.b)

    def test_the_configuration_is_its_own(self):
        for server in self.servers:
            server.sql(f"alter system set work_mem = '{1 + self.servers.index(server)}MB'")
        self.failover()
        self.yes(self.ma.call("commit", self.moving(), deadline_ms=30000, **REJOIN))
        self.assertEqual((self.a.value("show work_mem"), self.b.value("show work_mem")), ("1MB", "2MB"))

    def test_no_rewind_without_hints(self):
        self.a.sql("alter system set wal_log_hints = off")
        self.a.stop()
        self.a.start()
        self.failover()
        self.no(self.ma.call("commit", self.moving(), deadline_ms=30000, **REJOIN), "PG_BASEBACKUP is not yes")
        member = postgresql_member(self.a, PG_BASEBACKUP="yes")
        self.yes(member.call("commit", self.moving(), deadline_ms=30000, **REJOIN))
        self.a.receives_from(self.b)
        self.assertFalse(self.a.has(666))
        self.assertEqual(self.a.value("show wal_log_hints"), "off", "the configuration is no longer its own")

    def test_a_rewind_that_was_interrupted_is_not_trusted(self):
        self.failover()
        os.mkdir(f"{self.a.data}.kept")
        open(f"{self.a.data}.kept/rewinding", "w", encoding="ascii").close()
        belongs(f"{self.a.data}.kept", f"{self.a.data}.kept/rewinding")
        self.no(self.ma.call("commit", self.moving(), deadline_ms=30000, **REJOIN), "a rewind was interrupted")

    def test_a_first_copy(self):
        self.b.stop()
        shutil.rmtree(self.b.data)
        self.no(self.mb.call("commit", self.context(), deadline_ms=30000, **REJOIN), "holds no data")
        member = postgresql_member(self.b, PG_BASEBACKUP="yes", PG_BIN=BIN)
        self.yes(member.call("commit", self.context(), deadline_ms=30000, **REJOIN))
        self.b.receives_from(self.a)


class Others(PostgresCase):
    THIRD = True

    def test_notice_repoints_the_third_without_a_restart(self):
        third, pid = self.members[2], self.c.pid()
        out = self.prepare_both()
        self.yes(third.call("notice", self.moving(out), role="observer"))
        self.assertEqual(self.c.sender(), self.a.port, "an intent moved it")
        self.yes(self.ma.call("commit", self.moving(out), **OFF))
        self.again(third.call("notice", self.moving(out), role="observer", decision="commit"), "not the primary yet")
        self.yes(self.mb.call("commit", self.moving(out), **UP))
        for _ in range(2):
            self.yes(third.call("notice", self.context("b"), role="observer", decision="commit", deadline_ms=20000))
        self.c.receives_from(self.b)
        self.assertEqual(self.c.pid(), pid, "it was restarted")
        self.yes(self.mb.call("notice", self.context("b"), role="observer", decision="commit"))
        self.assertTrue(self.b.is_primary())

    def test_a_gap_repoints_too(self):
        self.switch()
        self.yes(self.members[2].call("notice", self.context("b", gap=True), gap=1, deadline_ms=20000))
        self.c.receives_from(self.b)

    def test_notice_leaves_a_relay_that_works_alone(self):
        relay = Relay(self.lab, self.a.port)
        self.c.sql(f"alter system set primary_conninfo = '{self.c.conninfo(relay.port)}'")
        self.c.sql("select pg_reload_conf()")
        wait_until(lambda: self.c.sender() == relay.port, "c receives through the relay")
        self.yes(self.members[2].call("notice", self.context(), role="observer", decision="commit"))
        self.assertEqual(self.c.sender(), relay.port)


class UnderLoad(PostgresCase):
    def test_writers_lose_nothing_without_a_hold(self):
        writers = PgWriters([self.a.port], count=4, per_second=400, database="postgres").start()
        writers.wait_for(200)
        members = [postgresql_member(server, PG_QUIET_MS="0") for server in self.servers]
        stop = self.yes(members[0].call("prepare", self.moving(), hold_ms=5000, **DOWN))["out"]
        out = {"db@a": stop}
        self.yes(members[1].call("prepare", self.moving(out), hold_ms=5000, **UP))
        self.yes(self.ma.call("commit", self.moving(out), **OFF))
        self.yes(self.mb.call("commit", self.moving(out), **UP))
        wait_until(lambda: len(writers.errors) > 20, "writers meet the server that has stopped")
        writers.stop()
        self.assertEqual(missing_rows(writers.acknowledged, self.b), [])


class Client(PostgresCase):
    """The protocol: passwords and TLS."""

    def test_passwords(self):
        self.a.sql("set password_encryption = 'scram-sha-256'; create role secret login password 'hush'")
        self.a.sql("set password_encryption = 'md5'; create role old login password 'hush'")
        for user in ("secret", "old"):
            with Connection(("127.0.0.1", self.a.port), user, "postgres", "hush") as server:
                self.assertEqual(server.value("select current_user"), user)
            with self.assertRaisesRegex(Refused, "password authentication failed"):
                Connection(("127.0.0.1", self.a.port), user, "postgres", "loud")
            with self.assertRaisesRegex(ConnectionError, "none is configured"):
                Connection(("127.0.0.1", self.a.port), user, "postgres")

    def test_tls(self):
        certificate, key = os.path.join(self.a.home, "server.crt"), os.path.join(self.a.home, "server.key")
        argv = ["req", "-new", "-x509", "-days", "2", "-nodes", "-subj", "/CN=a", "-addext", "subjectAltName=IP:127.0.0.1",
                "-out", certificate, "-keyout", key]
        self.lab.start("openssl", ["openssl", *argv]).wait()
        belongs(certificate, key)
        os.chmod(certificate, 0o644)
        used = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
        address = ("127.0.0.1", self.a.port)
        with self.assertRaisesRegex(ConnectionError, "offers no TLS"):
            Connection(address, "postgres", "postgres", tls="require")
        self.a.sql(f"alter system set ssl_cert_file = '{certificate}'")
        self.a.sql(f"alter system set ssl_key_file = '{key}'")
        self.a.sql("alter system set ssl = on")
        self.a.sql("select pg_reload_conf()")
        wait_until(lambda: self.a.value("show ssl") == "on", "TLS is on")
        for tls, root, expected in (("disable", None, "f"), ("prefer", None, "t"), ("verify-full", certificate, "t")):
            with Connection(address, "postgres", "postgres", tls=tls, tls_root=root) as server:
                self.assertEqual(server.value(used), expected, tls)
        with self.assertRaisesRegex(OSError, "certificate verify failed"):
            Connection(address, "postgres", "postgres", tls="verify-ca", tls_root=None)

    def test_connection_strings_and_password_files(self):
        self.assertEqual(conninfo(r"user=a password='it\'s  x' sslmode = require"),
                         {"user": "a", "password": "it's  x", "sslmode": "require"})
        path = self.lab.write("pgpass", "# a comment\nother:*:*:a:no\n*:5432:replication:a:with\\:colon\n*:*:*:a:rest\n", 0o600)
        self.assertEqual(password_in(path, "h", 5432, "replication", "a"), "with:colon")
        self.assertEqual(password_in(path, "h", 5432, "postgres", "a"), "rest")
        self.assertIsNone(password_in(path, "h", 5432, "postgres", "b"))


if __name__ == "__main__":
    unittest.main()
