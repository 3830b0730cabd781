"""The command line that every scenario has: which cases, how often, with which binary; then a table and one closing line."""

import argparse
import json
import os
import shutil
import signal
import string
import sys
import time
import traceback

from cluster import Unexpected
from lab import Lab, within_reach

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Scenario:
    """What is told apart: the cases, which of them run unless others are asked for, and what is shown of each."""

    def __init__(self, name, cases, usual, columns, packages, total, scriptlike=(), broken=lambda results: []):
        """`cases`: {name: function of (lab, arguments, number of the run) that returns figures}. `columns`: [(key of a figure,
        title)]. `packages`: {program: Debian package}. `total`: results to a text for the closing line. `scriptlike`: the
        cases that need no lockstep binary. `broken`: results to a text for each promise about many runs that they break.
        """
        self.name, self.cases, self.usual, self.packages, self.total = name, cases, usual, packages, total
        self.scriptlike, self.broken = scriptlike, broken
        self.columns = [("case", "case"), ("run", "run"), *columns, ("took_ms", "took ms"), ("outcome", "outcome")]

    def main(self, doc):
        arguments = self._parse(doc)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
        began, results = time.monotonic(), []
        for case in arguments.case:
            for number in range(arguments.runs):
                print(f"{case}, run {number + 1} of {arguments.runs}", file=sys.stderr)
                results.append(self._run(case, number, arguments))
        print(self._table(results))
        if arguments.json:
            with open(arguments.json, "w", encoding="utf-8") as file:
                json.dump(results, file, indent=1)
        broken = list(self.broken(results))
        for promise in broken:
            print(f"FAILED: {promise}")
        print(self._closing_line(results, broken, time.monotonic() - began))
        sys.exit(0 if all(result["ok"] for result in results) and not broken else 1)

    def _run(self, case, number, arguments):
        lab = Lab(f"{self.name}-{case}")
        lab.keep = True  # until it went well
        result = {"case": case, "run": number + 1, "ok": False}
        try:
            result.update(self.cases[case](lab, arguments, number))
            result["ok"], lab.keep = True, arguments.keep
        except Exception as error:  # whatever it is, the other cases are still to be seen
            lab.write("failure.log", traceback.format_exc())
            known = isinstance(error, (Unexpected, TimeoutError))
            result["outcome"] = f"FAILED: {error if known else repr(error)}"
        finally:
            lab.close()
        return result

    def _table(self, results):
        rows = [[title for _, title in self.columns]]
        rows += [[str(result.get(key, "-")) for key, _ in self.columns] for result in results]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.columns) - 1)] + [0]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)

    def _closing_line(self, results, broken, seconds):
        failed = [f"{result['case']} {result['run']}" for result in results if not result["ok"]]
        said = f"{len(results) - len(failed)} of {len(results)} runs as stated"
        verdict = f"FAILED ({', '.join(failed + broken)})" if failed or broken else "passed"
        return f"{self.name} {verdict}: {'; '.join([said, *self.total(results)])}; {seconds:.0f} s"

    def _parse(self, doc):
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--case", choices=self.cases, action="append",
                            help=f"only these (repeatable); default: {', '.join(self.usual)}")
        parser.add_argument("--all", action="store_true", help="every case")
        parser.add_argument("--runs", type=int, default=1)
        parser.add_argument("--lockstep", metavar="PATH", help="the binary; default: target/release, then target/debug")
        parser.add_argument("--handlers", metavar="DIR", default=os.path.join(ROOT, "handlers"), help="others than the ready ones")
        parser.add_argument("--json", metavar="FILE", help="also write the figures there")
        parser.add_argument("--keep", action="store_true", help="keep the directories with all logs")
        arguments = parser.parse_args()
        absent = sorted({package for program, package in self.packages.items() if shutil.which(program) is None})
        if absent:
            parser.error(f"Debian packages are missing: {' '.join(absent)}")
        arguments.case = list(self.cases) if arguments.all else arguments.case or list(self.usual)
        arguments.lockstep = find_binary(arguments.lockstep)
        arguments.handlers = within_reach(os.path.abspath(arguments.handlers))
        if arguments.lockstep is None and not set(arguments.case) <= set(self.scriptlike):
            parser.error("no lockstep binary: build it, or give --lockstep PATH")
        return arguments


def find_binary(given):
    for path in [given] if given else [os.path.join(ROOT, "target", kind, "lockstep") for kind in ("release", "debug")]:
        if os.access(path, os.X_OK):
            return os.path.abspath(path)
    return None


def configure(lab, name, template, **values):
    """NAME.toml from a template of agent.toml."""
    with open(template, encoding="utf-8") as text:
        lab.write(f"{name}.toml", string.Template(text.read()).substitute(values))
