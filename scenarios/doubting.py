"""Puts one bug after another into a copy of the handlers, and sees a scenario fail for the right reason.

A check that was never seen failing counts as absent. A bug that goes unnoticed ends this with 1.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile

HANDLERS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "handlers")

# What a handler says in place of its own software's processes to mislead the guard.
ANOTHER_PROCESS = ('[__import__("subprocess").Popen(["/bin/sleep", "60"], env={}, start_new_session=True, stdin=-3, stdout=-3, '
                   'stderr=-3).pid]')


def break_handlers(directory, edits):
    shutil.copytree(HANDLERS, directory, ignore=shutil.ignore_patterns("tests", "__pycache__"))
    for name, text, instead in edits:
        path = os.path.join(directory, name)
        with open(path, encoding="utf-8") as file:
            program = file.read()
        if program.count(text) != 1:
            sys.exit(f"{name} has changed: {text!r} is there {program.count(text)} times")
        with open(path, "w", encoding="utf-8") as file:
            file.write(program.replace(text, instead))


def shows(scenario, case, expected, scratch, directory, more):
    """Whether the scenario fails with what it is expected to say; and what it said. Its logs go with `scratch`."""
    argv = [os.path.join(scenario, "run"), "--case", *case.split(), "--handlers", directory, *more]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": scratch})
    said = next((line for line in done.stdout.splitlines() if "FAILED:" in line), done.stdout + done.stderr)
    words = [expected] if isinstance(expected, str) else expected
    return done.returncode == 1 and any(word in said for word in words), said[said.find("FAILED:"):].strip()


def main(scenario, bugs):
    """`scenario`: its directory. `bugs`: what is wrong; the case in which it must show, with further arguments behind it; what
    the scenario must say, or several of which it says one; and the edits: file, text, text instead. The command line goes to
    the scenario, but for `--only`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[bug for bug, *_ in bugs], action="append", help="only these (repeatable)")
    arguments, more = parser.parse_known_args()
    bugs = [bug for bug in bugs if arguments.only is None or bug[0] in arguments.only]
    unseen = 0
    for bug, case, expected, edits in bugs:
        with tempfile.TemporaryDirectory(prefix="lockstep-doubt-") as scratch:
            os.chmod(scratch, 0o755)  # a handler may run as another user
            directory = os.path.join(scratch, "handlers")
            break_handlers(directory, edits)
            seen, said = shows(scenario, case, expected, scratch, directory, more)
        print(f"{'seen' if seen else 'NOT SEEN'}: {bug}: {said[:200]}", flush=True)
        unseen += not seen
    verdict = "FAILED" if unseen else "passed"
    print(f"{os.path.basename(scenario)} doubt {verdict}: {len(bugs) - unseen} of {len(bugs)} bugs were seen")
    sys.exit(1 if unseen else 0)
