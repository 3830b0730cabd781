"""The wrapper around fence agents, with an agent of ours in place of a device's: it keeps a plug in a file."""

import json
import os
import shutil
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from calling import Member

AGENT = """#!/usr/bin/env python3
import os, sys, time
options = dict(line.rstrip("\\n").split("=", 1) for line in sys.stdin)
where = os.path.dirname(os.path.abspath(__file__))
plug = os.path.join(where, "plug-" + options.get("port", "none"))
with open(os.path.join(where, "asked"), "a") as asked:
    print(options["action"], options.get("port"), options.get("password"), sys.argv[1:], file=asked)
if options.get("password") != "s=ecret%":
    sys.exit("Unable to connect/login to fencing device")
if os.path.exists(os.path.join(where, "hangs")):
    time.sleep(60)
if options["action"] == "status":
    on = os.path.exists(plug)
    print("Status: ON" if on else "Status: OFF")
    sys.exit(0 if on else 2)
if os.path.exists(plug) and not os.path.exists(os.path.join(where, "stuck")):
    os.remove(plug)
if options["action"] == "reboot":
    open(plug, "w").close()
print("Success: Powered OFF")
"""


class FenceCase(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="lockstep-fence-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.agent = self.write("fence_test", AGENT, 0o755)
        self.config = self.write("fence.ini", f"[DEFAULT]\nagent = {self.agent}\npassword = s=ecret%\n"
                                 "[pg-a]\nport = 1\n[pg-b]\nport = 2\naction = reboot\n"
                                 "[pg-c]\nport = 3\nagent = fence_of_nobody\n[pg-d]\naction = monitor\n", 0o600)
        self.write("plug-1", "")
        self.write("plug-2", "")

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, name, text, mode=0o600):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(self.path(name), mode)
        return self.path(name)

    def fence(self, host, **lockstep):
        member = Member(f"db@{host}", "fence-agents", None, {"FENCE_CONFIG": self.config})
        return member.call("fence", **lockstep)

    def no(self, answer, text):
        self.assertEqual(answer.code, 1, answer)
        self.assertIn(text, answer.reason)

    def asked(self):
        if not os.path.exists(self.path("asked")):
            return []
        with open(self.path("asked"), encoding="utf-8") as file:
            return [line.split()[:2] for line in file]

    def test_a_host_is_turned_off_and_seen_to_be(self):
        answer = self.fence("pg-a")
        self.assertEqual(answer.code, 0, answer)
        self.assertFalse(os.path.exists(self.path("plug-1")))
        self.assertTrue(os.path.exists(self.path("plug-2")), "it is another host's")
        self.assertEqual(self.asked(), [["off", "1"], ["status", "1"]])
        # Again, as after a lost answer.
        self.assertEqual(self.fence("pg-a").code, 0)

    def test_passwords_are_in_no_list_of_processes(self):
        self.fence("pg-a")
        with open(self.path("asked"), encoding="utf-8") as file:
            self.assertIn("off 1 s=ecret% []", file.read().splitlines())

    def test_a_reboot_is_as_good(self):
        self.assertEqual(self.fence("pg-b").code, 0)
        self.assertEqual(self.asked(), [["reboot", "2"]])

    def test_a_device_that_says_done_and_has_not_done_it_is_no_evidence(self):
        self.write("stuck", "")
        self.no(self.fence("pg-a"), "does not say that it is: Status: ON")

    def test_a_device_that_refuses_is_no_evidence(self):
        with open(self.config, encoding="utf-8") as file:
            text = file.read()
        self.write("fence.ini", text.replace("s=ecret%", "wrong"))
        self.no(self.fence("pg-a"), "could not turn pg-a off: Unable to connect/login")
        self.assertTrue(os.path.exists(self.path("plug-1")))

    def test_a_device_that_hangs_is_given_up_in_time(self):
        self.write("hangs", "")
        began = time.monotonic()
        self.no(self.fence("pg-a", deadline_ms=1000), "did not end in time")
        self.assertLess(time.monotonic() - began, 20)

    def test_what_nobody_has_configured_is_no_evidence(self):
        self.no(self.fence("pg-z"), "has no section [pg-z]")
        self.no(self.fence("pg-c"), "agent = 'fence_of_nobody' of [pg-c]")
        self.no(self.fence("pg-d"), "action = 'monitor' of [pg-d]")
        self.assertEqual(self.asked(), [])

    def test_a_file_that_cannot_be_used_is_no_evidence(self):
        os.chmod(self.config, 0o644)
        self.no(self.fence("pg-a"), "may be used by everybody")
        self.write("fence.ini", "agent = x\n")
        self.no(self.fence("pg-a"), "cannot read")
        os.remove(self.config)
        self.no(self.fence("pg-a"), "cannot read")
        self.assertEqual(self.asked(), [])

    def test_it_has_no_other_phase(self):
        member = Member("db@pg-a", "fence-agents", None, {"FENCE_CONFIG": self.config})
        self.no(member.call("stop"), "no phase 'stop'")
        self.no(member.call_with("", "fence"), "no context")
        self.assertEqual(json.dumps(self.asked()), "[]")


if __name__ == "__main__":
    unittest.main()
