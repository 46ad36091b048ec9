"""What the tests of pawl-bench share: they drive the built program from outside.

PAWL_BENCH is the program, PAWL_DATA a folder with the digits, PAWL_SOURCE the top folder of the sources.
"""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

PROGRAM = os.environ["PAWL_BENCH"]
DATA = os.environ["PAWL_DATA"]
SOURCE = pathlib.Path(os.environ["PAWL_SOURCE"])

DIGITS = ["--stream", "split_digits", "--data", DATA, "--model.hidden", "16"]


def call(*arguments, **options):
    """Runs the program; the result has returncode, stdout and stderr."""
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


def records(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def succeed(self, *arguments, **options):
        done = call(*arguments, **options)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def run_to_file(self, *arguments, name="out.jsonl"):
        """A run on the digits; its records."""
        out = self.folder / name
        self.succeed("run", *DIGITS, "--out", out, *arguments)
        return records(out)

    def refused(self, code, *arguments, says=(), **options):
        """The program refuses in one sentence that holds all of `says`, and prints no results."""
        done = call(*arguments, **options)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertTrue(done.stderr.startswith("pawl-bench: "), done.stderr)
        for text in says:
            self.assertIn(text, done.stderr)
