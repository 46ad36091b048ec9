"""Published results: the bands, the decision rule, and the quick start."""

import json
import unittest

import schema
from bench import DATA, SOURCE, Case, call, records

SCHEMA = json.loads((SOURCE / "docs/result_schema.json").read_text())

PROTOCOL = """
protocol = "TOY"
source = "a test"
[config.stream]
name = "split_digits"
[config.model]
hidden = [16]
[[target]]
id = "T1"
title = "toy"
method = "naive"
cost = "seconds"
published = {published}
spread = {spread}
spread_kind = "population std"
runs = 10
band = "two-sided"
tolerance = 0.1
[target.config]
stream.scenario = "class"
optimizer.lr = 0.05
"""


class Reproduce(Case):
    def toy(self, published, spread):
        (self.folder / "toy.toml").write_text(PROTOCOL.format(published=published, spread=spread))
        out = self.folder / "out.jsonl"
        done = call("reproduce", "T1", "--protocols", self.folder, "--data", DATA, "--out", out, "--force")
        return done, records(out)

    def test_bands_are_prediction_intervals(self):
        text = self.succeed("reproduce", "--list")
        for row in (
            ("A1 ", "93.46", "88.63 .. 98.29"),  # half width 4.83 for three runs
            ("A9 ", "95.59", "94.19 .. 96.99"),  # 1.40
            ("A25", "89.12", "88.28 .. 89.96"),  # 0.84, level .95 since five runs were published
            ("A33", "88.79", "86.61 .. 90.97"),  # 2.18, from a standard error
            ("A18", "23.00", "22.00 .. 32.00"),
            ("A17", "97.00", ">= 96.00"),
        ):
            self.assertTrue(any(all(part in line for part in row) for line in text.splitlines()), row)

    def test_every_target_has_a_complete_configuration(self):
        for line in self.succeed("reproduce", "--list").splitlines()[1:]:
            config = self.succeed("reproduce", line.split()[0], "--print-config")
            path = self.folder / "target.toml"
            path.write_text(config)
            self.assertEqual(self.succeed("run", "--config", path, "--print-config"), config)

    def test_three_runs_inside_the_band_pass(self):
        done, lines = self.toy(20, 30)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("pass", done.stdout)
        self.assertEqual(lines[-1]["ours"]["seeds"], [1, 2, 3])
        for line in lines:
            self.assertEqual(schema.errors(line, SCHEMA), [])

    def test_runs_outside_the_band_are_repeated_and_then_fail_on_fresh_seeds(self):
        done, lines = self.toy(99, 0.1)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("FAIL", done.stdout)
        self.assertEqual([line["seed"] for line in lines if line["record"] == "result"], list(range(1, 11)))
        self.assertEqual(lines[-1]["ours"]["seeds"], [6, 7, 8, 9, 10])
        half = 3.2498 * 0.1 * (10 / 9) ** 0.5 * (1 / 5 + 1 / 10) ** 0.5 + 0.1
        self.assertAlmostEqual(lines[-1]["band"][1], 99 + half, places=4)

    def test_the_quick_start_compares_seven_strategies(self):
        lines = self.succeed("quickstart", "--data", DATA, "--seeds", 2).splitlines()
        table = lines[lines.index(next(line for line in lines if line.startswith("strategy"))):]
        self.assertEqual([row.split()[0] for row in table[1:]],
                         ["naive", "ewc", "lwf", "replay", "replay,lwf", "derpp", "joint"])
        accuracy = {row.split()[0]: float(row.split()[1]) for row in table[1:]}
        self.assertLess(accuracy["naive"], 40)
        self.assertGreater(accuracy["replay"], 70)
        self.assertGreater(accuracy["joint"], 85)


if __name__ == "__main__":
    unittest.main()
