import os
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from calling import redis_member, shown
from lab import Lab, Redis, ReplyError, Relay, RoleSampler, Writers, missing, wait_until

DOWN = {"from_": "primary", "to": "replica"}
UP = {"from_": "replica", "to": "primary"}


class RedisCase(unittest.TestCase):
    """Three servers: r1 is the primary, r2 and r3 replicate from it."""

    SETTINGS = {}

    def setUp(self):
        self.lab = Lab(self.id().split(".")[-1])
        self.addCleanup(self.close)
        self.servers = [Redis(self.lab, name).start() for name in ("r1", "r2", "r3")]
        self.r1, self.r2, self.r3 = self.servers
        self.r2.follow(self.r1)
        self.r3.follow(self.r1)
        self.m1, self.m2, self.m3 = self.members = [redis_member(server, **self.SETTINGS) for server in self.servers]

    def close(self):
        outcome = getattr(self._outcome, "result", None)
        self.lab.keep = bool(outcome and any(test is self for test, _ in outcome.failures + outcome.errors))
        self.lab.close()

    def context(self, primary="r1", out=None, actual=None):
        names = {member.name: "replica" for member in self.members}
        return shown(self.members, {**names, f"cache@{primary}": "primary"},
                     {**names, f"cache@{actual or primary}": "primary"}, out)

    def yes(self, answer):
        self.assertEqual(answer.code, 0, answer)
        return answer.json

    def no(self, answer, text):
        self.assertEqual(answer.code, 1, answer)
        self.assertIn(text, answer.reason)

    def again(self, answer, text):
        self.assertEqual(answer.code, 75, answer)
        self.assertIn(text, answer.reason)

    def prepare_both(self, hold_ms=5000):
        stop = self.yes(self.m1.call("prepare", self.planned(), hold_ms=hold_ms, deadline_ms=5000, **DOWN))["out"]
        out = {"cache@r1": stop}
        self.yes(self.m2.call("prepare", self.context("r2", out, actual="r1"), hold_ms=hold_ms, deadline_ms=5000, **UP))
        return out

    def planned(self):
        """The context before the decision to move to r2: its goals are the plan's."""
        return self.context("r2", actual="r1")

    def decided(self, out):
        """The context after the decision to move to r2: goals are new, actual states are still the old ones."""
        return self.context("r2", out, actual="r1")


class Status(RedisCase):
    def test_each_state(self):
        self.r1.call("SET", "a", "1")
        primary = self.yes(self.m1.call("status"))
        self.assertEqual(primary["state"], "primary")
        self.assertEqual(primary["facts"]["replicas"], 2)
        self.assertEqual(primary["pids"], [self.r1.process.pid])
        wait_until(lambda: self.yes(self.m2.call("status"))["facts"]["lag"] == 0, "r2 has caught up")
        replica = self.yes(self.m2.call("status"))
        self.assertEqual((replica["state"], replica["facts"]["link"]), ("replica", "up"))
        self.assertEqual(replica["score"], primary["facts"]["offset"])
        self.r3.kill()
        self.assertEqual(self.yes(self.m3.call("status"))["state"], "offline")

    def test_the_name_of_the_middle_state(self):
        member = redis_member(self.r2, REDIS_REPLICA_STATE="standby")
        self.assertEqual(self.yes(member.call("status"))["state"], "standby")

    def test_a_server_that_does_not_answer_is_unknown(self):
        self.r3.process.send_signal(19)  # SIGSTOP: connected, and silent
        self.no(self.m3.call("status"), "unknown")

    def test_unix_socket_and_password(self):
        secret = self.lab.write("secret", "hush\n", 0o600)
        server = Redis(self.lab, "r4", f"unixsocket {self.lab.path('r4.sock')}").start()
        server.call("CONFIG", "SET", "requirepass", "hush")
        member = redis_member(server, REDIS_SOCKET=self.lab.path("r4.sock"))
        self.no(member.call("status"), "NOAUTH")
        member = redis_member(server, REDIS_SOCKET=self.lab.path("r4.sock"), REDIS_PASSWORD_FILE=secret)
        self.assertEqual(self.yes(member.call("status"))["state"], "primary")


class Check(RedisCase):
    SETTINGS = {"REDIS_MAX_LAG_BYTES": "50000"}

    def test_yes_from_both(self):
        self.yes(self.m1.call("check", self.planned(), **DOWN))
        self.yes(self.m2.call("check", self.planned(), **UP))

    def test_the_wrong_roles(self):
        self.no(self.m2.call("check", self.planned(), **DOWN), "not the primary")
        self.no(self.m1.call("check", self.planned(), **UP), "primary already")

    def test_a_primary_that_would_write_as_a_replica(self):
        self.r1.call("CONFIG", "SET", "replica-read-only", "no")
        self.no(self.m1.call("check", self.planned(), **DOWN), "replica-read-only")

    def test_lag(self):
        relay = Relay(self.lab, self.r1.port)
        self.r2.follow(relay.port)
        relay.stall()
        for number in range(40):
            self.r1.call("SET", f"k:{number}", "x" * 5000)
        answer = self.m2.call("check", self.planned(), **UP)
        self.no(answer, "bytes, at most 50000")
        self.assertRegex(answer.reason, r"^lag 20\d{4} bytes, at most 50000$")
        relay.go_on()
        wait_until(lambda: self.m2.call("check", self.planned(), **UP).code == 0, "yes once it has caught up")

    def test_link_down_and_another_history(self):
        relay = Relay(self.lab, self.r1.port)
        self.r2.follow(relay.port)
        relay.close()
        wait_until(lambda: self.r2.info()["master_link_status"] == "down", "the link is seen to be down")
        self.no(self.m2.call("check", self.planned(), **UP), "link to 127.0.0.1")
        other = Redis(self.lab, "other").start()
        self.r2.follow(other)
        self.no(self.m2.call("check", self.planned(), **UP), "another history")

    def test_without_a_primary_there_is_nobody_to_compare_with(self):
        self.r1.kill()
        wait_until(lambda: self.r2.info()["master_link_status"] == "down", "the link is seen to be down")
        goals = {member.name: "replica" for member in self.members}
        self.yes(self.m2.call("check", shown(self.members, goals), **UP))

    def test_offline_needs_its_commands(self):
        self.no(self.m3.call("check", self.planned(), from_="replica", to="offline"), "REDIS_STOP is not set")
        self.no(self.m3.call("check", self.planned(), from_="offline", to="replica"), "REDIS_START is not set")
        member = redis_member(self.r3, REDIS_STOP='"systemctl stop redis"')
        self.no(member.call("check", self.planned(), from_="replica", to="offline"), "JSON list")


class Prepare(RedisCase):
    def test_the_entering_one_has_all_that_the_leaving_one_stopped_at(self):
        self.r1.call("SET", "a", "1")
        out = self.prepare_both()
        self.assertGreaterEqual(self.yes(self.m2.call("status"))["facts"]["offset"], out["cache@r1"]["offset"])

    def test_the_pause_ends_in_redis_itself(self):
        self.yes(self.m1.call("prepare", self.context(), hold_ms=400, **DOWN))
        began = time.monotonic()
        self.r1.call("SET", "a", "1")
        self.assertGreater(time.monotonic() - began, 0.2)

    def test_cancel_ends_it_at_once(self):
        self.yes(self.m1.call("prepare", self.context(), hold_ms=60000, **DOWN))
        self.yes(self.m1.call("cancel", self.context(), **DOWN))
        self.r1.call("SET", "a", "1")
        self.yes(self.m1.call("cancel", self.context(), **DOWN))
        self.r1.kill()
        self.yes(self.m1.call("cancel", self.context(), **DOWN))

    def test_a_replica_that_does_not_get_there_says_no_in_time(self):
        relay = Relay(self.lab, self.r1.port)
        self.r2.follow(relay.port)
        relay.stall()
        self.r1.call("SET", "a", "1")
        stop = self.yes(self.m1.call("prepare", self.context(), hold_ms=2000, **DOWN))["out"]
        answer = self.m2.call("prepare", self.context(out={"cache@r1": stop}), deadline_ms=700, hold_ms=2000, **UP)
        self.no(answer, "bytes behind")
        self.assertLess(answer.seconds, 0.7)


class Commit(RedisCase):
    def switch(self, out):
        self.yes(self.m1.call("commit", self.decided(out), **DOWN))
        self.yes(self.m2.call("commit", self.decided(out), **UP))

    def test_switch_each_commit_twice(self):
        self.r1.call("SET", "a", "1")
        out = self.prepare_both()
        for _ in range(2):
            self.yes(self.m1.call("commit", self.decided(out), **DOWN))
        self.assertFalse(self.r1.is_primary())
        for _ in range(2):
            self.yes(self.m2.call("commit", self.decided(out), **UP))
        self.yes(self.m1.call("commit", self.decided(out), **DOWN))
        wait_until(lambda: self.r1.info()["master_link_status"] == "up", "r1 follows r2")
        self.assertEqual(self.r1.info()["master_port"], str(self.r2.port))
        self.r2.call("SET", "b", "2")
        wait_until(lambda: self.r1.call("GET", "b") == "2", "a write on r2 reaches r1")
        self.assertEqual(self.r2.info()["sync_full"], "0", "the old primary needed a full copy")

    def test_the_role_is_kept_over_a_restart(self):
        self.switch(self.prepare_both())
        self.r1.kill()
        self.r1.start()
        self.assertFalse(self.r1.is_primary())
        self.r2.kill()
        self.r2.start()
        self.assertTrue(self.r2.is_primary())

    def test_a_write_that_waits_in_the_pause_is_never_acknowledged(self):
        out = self.prepare_both()
        heard = []

        def write():
            try:
                heard.append(self.r1.call("SET", "waiting", "1"))
            except Exception as error:
                heard.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        wait_until(lambda: self.r1.info()["blocked_clients"] == "1", "the write waits")
        self.switch(out)
        thread.join(10)
        self.assertIsInstance(heard[0], Exception)
        self.assertIsNone(self.r2.call("GET", "waiting"))

    def test_after_the_pause_ran_out_the_successor_must_have_the_rest(self):
        relay = Relay(self.lab, self.r1.port)
        self.r2.follow(relay.port)
        out = self.prepare_both(hold_ms=1)
        relay.stall()
        self.r1.call("SET", "late", "1")
        self.again(self.m1.call("commit", self.decided(out), deadline_ms=800, **DOWN), "bytes behind")
        self.assertTrue(self.r1.is_primary())
        self.r1.call("SET", "later", "1")  # given back: writers are not held up between two tries
        relay.go_on()
        self.switch(out)
        self.assertEqual(self.r2.call("GET", "later"), "1")

    def test_a_successor_that_lost_its_history_is_not_promoted(self):
        out = self.prepare_both()
        other = Redis(self.lab, "other").start()
        self.r2.follow(other)
        self.no(self.m2.call("commit", self.decided(out), **UP), "another history")
        self.assertFalse(self.r2.is_primary())

    def test_undo_gives_the_role_back(self):
        out = self.prepare_both()
        self.switch(out)
        back = self.context("r1", out, actual="r2")
        wait_until(lambda: self.r1.info()["master_link_status"] == "up", "r1 follows r2")
        for _ in range(2):
            self.yes(self.m2.call("undo", back, **DOWN))
        for _ in range(2):
            self.yes(self.m1.call("undo", back, **UP))
        self.assertTrue(self.r1.is_primary())
        wait_until(lambda: self.r2.info()["master_link_status"] == "up", "r2 follows r1 again")
        self.r1.call("SET", "a", "1")

    def test_undo_of_a_demotion_that_never_happened_ends_the_pause(self):
        out = self.prepare_both(hold_ms=60000)
        self.yes(self.m1.call("undo", self.context(out=out), **UP))
        self.r1.call("SET", "a", "1")

    def test_undo_right_after_the_promotion(self):
        out = self.prepare_both()
        self.switch(out)
        back = self.context("r1", out, actual="r2")
        deadline = time.monotonic() + 10
        while self.m2.call("undo", back, **DOWN).code == 75:
            self.assertLess(time.monotonic(), deadline)
        self.yes(self.m1.call("undo", back, **UP))
        self.assertTrue(self.r1.is_primary())
        self.assertFalse(self.r2.is_primary())


class Others(RedisCase):
    def test_notice_repoints_the_third(self):
        out = self.prepare_both()
        self.yes(self.m3.call("notice", self.planned(), role="observer"))
        self.assertEqual(self.r3.info()["master_port"], str(self.r1.port), "an intent moved it")
        self.yes(self.m1.call("commit", self.decided(out), **DOWN))
        self.again(self.m3.call("notice", self.decided(out), role="observer", decision="commit"), "not the primary yet")
        self.yes(self.m2.call("commit", self.decided(out), **UP))
        for _ in range(2):
            self.yes(self.m3.call("notice", self.context("r2"), role="observer", decision="commit"))
        self.assertEqual(self.r3.info()["master_port"], str(self.r2.port))
        wait_until(lambda: self.r3.info()["master_link_status"] == "up", "r3 follows r2")
        self.yes(self.m2.call("notice", self.context("r2"), role="observer", decision="commit"))
        self.assertTrue(self.r2.is_primary())
        self.assertEqual(self.r2.info()["sync_full"], "0", "a full copy was needed")

    def test_notice_leaves_a_relay_that_works_alone(self):
        relay = Relay(self.lab, self.r1.port)
        self.r3.follow(relay.port)
        self.yes(self.m3.call("notice", self.context(), role="observer", decision="commit"))
        self.assertEqual(self.r3.info()["master_port"], str(relay.port))

    def test_stop_with_and_without_a_primary_to_follow(self):
        nobody = shown(self.members, {member.name: "replica" for member in self.members})
        self.r1.call("SET", "a", "1")
        for _ in range(2):
            self.yes(self.m1.call("stop", nobody, to="replica"))
        self.assertEqual(self.yes(self.m1.call("status"))["facts"]["primary"], "127.0.0.1:0")
        with self.assertRaisesRegex(Exception, "READONLY"):
            self.r1.call("SET", "b", "1")
        self.assertEqual(self.r1.call("GET", "a"), "1")
        self.yes(self.m2.call("commit", nobody, **UP))
        self.yes(self.m1.call("stop", self.context("r2"), to="replica"))
        wait_until(lambda: self.r1.info()["master_link_status"] == "up", "r1 follows r2")

    def test_offline_and_back(self):
        start = f'["redis-server", "{self.r3.configuration}", "--daemonize", "yes"]'
        member = redis_member(self.r3, REDIS_START=start, REDIS_STOP=f'["redis-cli", "-p", "{self.r3.port}", "shutdown"]')
        self.members[2] = member
        for _ in range(2):
            self.yes(member.call("commit", self.context(), from_="replica", to="offline"))
        self.assertEqual(self.yes(member.call("status"))["state"], "offline")
        for _ in range(2):
            self.yes(member.call("commit", self.context(), from_="offline", to="replica"))
        self.assertEqual(self.r3.info()["master_port"], str(self.r1.port))
        self.yes(member.call("stop", self.context(), to="offline"))

    def test_one_that_was_killed_as_a_primary_is_started_as_a_replica(self):
        """As in a repair: nobody left in order, so there is no position to compare with, and the pid is what was killed."""
        start = f'["redis-server", "{self.r1.configuration}", "--daemonize", "yes"]'
        member = redis_member(self.r1, REDIS_START=start, REDIS_CONF=self.r1.configuration)
        pid, = self.yes(member.call("status"))["pids"]
        os.kill(pid, 9)
        self.r1.process.wait()
        self.assertEqual(self.yes(member.call("status"))["state"], "offline")
        names = [each.name for each in self.members]
        goals = {**dict.fromkeys(names, "replica"), "cache@r1": "offline", "cache@r2": "primary"}
        actuals = {**dict.fromkeys(names, "replica"), "cache@r1": "offline"}
        context = shown(self.members, goals, actuals)
        for phase in ("check", "prepare", "commit"):
            self.yes(self.m2.call(phase, context, hold_ms=5000, deadline_ms=5000, **UP))
        self.assertTrue(self.r2.is_primary())
        roles = RoleSampler([self.r1, self.r2], every_s=0.001).start()
        for _ in range(2):
            self.yes(member.call("commit", self.context("r2"), from_="offline", to="replica"))
        wait_until(lambda: self.r1.info()["master_link_status"] == "up", "r1 follows r2")
        roles.stop()
        self.assertEqual((roles.two_primaries, roles.samples > 10), (0, True))
        with open(self.r1.configuration, encoding="utf-8") as file:
            self.assertEqual(file.read().count("replicaof"), 1)
        self.yes(member.call("stop", self.context("r2"), to="offline"))

    def test_a_shutdown_that_waits_for_a_replica_is_called_off_by_an_undo(self):
        self.r2.process.send_signal(19)  # SIGSTOP: it is waited for
        self.r1.call("SET", "a", "1")
        stop = f'["redis-cli", "-p", "{self.r1.port}", "shutdown", "nosave"]'
        member = redis_member(self.r1, REDIS_STOP=stop)
        answer = member.call("commit", self.context("r1"), from_="primary", to="offline", deadline_ms=1000)
        self.assertNotEqual(answer.code, 0, answer)
        self.yes(member.call("undo", self.context("r1"), from_="offline", to="primary"))
        with self.assertRaisesRegex(ReplyError, "No shutdown in progress"):
            self.r1.call("SHUTDOWN", "ABORT")
        self.r1.call("SET", "b", "1")

    def test_who_is_down_prepares_nothing(self):
        self.r1.kill()
        self.yes(self.m1.call("prepare", self.context(), from_="offline", to="primary", hold_ms=5000))

    def test_stop_to_offline_without_a_command(self):
        self.yes(self.m1.call("stop", self.context(), to="offline"))
        self.assertEqual(self.yes(self.m1.call("status"))["state"], "offline")

    def test_an_unknown_phase_and_a_bad_setting(self):
        self.no(self.m1.call("fence"), "no phase 'fence'")
        self.no(redis_member(self.r1, REDIS_PORT="x").call("status"), "REDIS_PORT")


class UnderLoad(RedisCase):
    def test_writers_lose_nothing_with_a_distant_replica(self):
        self.r2.follow(Relay(self.lab, self.r1.port, delay_s=0.2).port)  # over loopback hardly anything is under way
        writers = Writers([self.r1.port], count=6).start()
        writers.wait_for(300)
        out = self.prepare_both()
        self.yes(self.m1.call("commit", self.decided(out), **DOWN))
        self.yes(self.m2.call("commit", self.decided(out), **UP))
        self.assertTrue(writers.acknowledged)
        wait_until(lambda: sum("READONLY" in text for _, text in writers.errors) > 20, "writers meet the demoted server")
        writers.stop()
        self.assertEqual(missing(writers.acknowledged, self.r2), [])


if __name__ == "__main__":
    unittest.main()
