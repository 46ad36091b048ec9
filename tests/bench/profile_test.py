"""Where the time of a step goes, and that a step makes no more calls than are on record."""

import json
import os
import unittest
import unittest.mock

from bench import DATA, SOURCE, Case

COSTS = SOURCE / "tests/bench/step_costs.json"
COMMON = ("--stream", "split_digits", "--data", DATA, "--model.hidden", "32,32", "--batch-size", 10, "--lr", 0.01,
          "--steps", 20)
STRATEGIES = ("naive", "replay", "er_ace", "der", "derpp", "a_gem", "lwf", "ewc", "si", "mas", "ncm", "replay,lwf,ewc")
COUNTS = ("operations", "allocations", "nodes")
# Every processor then takes the same ways: all products are LibTorch's.
PORTABLE = unittest.mock.patch.dict(os.environ, ATEN_CPU_CAPABILITY="default")


class Profile(Case):
    def profile(self, *arguments):
        return json.loads(self.succeed("profile", *COMMON, "--format", "json", *arguments))

    def test_parts_lie_inside_of_the_step_and_name_the_hooks(self):
        profile = self.profile("--strategy", "replay,lwf,ewc")
        parts = {part["part"]: part for part in profile["parts"]}
        self.assertEqual(profile["experiences"], 4)
        self.assertEqual(parts["step"]["calls"], profile["steps"])
        for name in ("gather", "inputs", "forward", "loss", "backward", "optimizer", "replay.extend",
                     "replay.extend/memory.draw", "replay.after_step/memory.insert", "lwf.penalty", "ewc.edit_gradient"):
            self.assertEqual(parts["step/" + name]["calls"], profile["steps"], name)
        self.assertEqual(parts["ewc.end"]["calls"], profile["experiences"])
        inner = [part for name, part in parts.items() if name.count("/") == 1]
        for what in ("seconds", *COUNTS):
            self.assertLessEqual(sum(part[what] for part in inner), parts["step"][what], what)

    def test_floating_point_operations_are_those_of_the_products(self):
        rows, widths = 10, (64, 32, 32, 10)
        layers = [2 * rows * a * b for a, b in zip(widths, widths[1:])]
        for engine in ("compiled", "reference"):
            profile = self.profile("--strategy", "naive", "--engine", engine, "--training.drop-last", "true")
            parts = {part["part"]: part["flops"] for part in profile["parts"]}
            steps = profile["counted_steps"]
            self.assertEqual(parts["step/forward"], steps * sum(layers))
            # Plain SGD may form the gradients of weights while it adds them.
            self.assertEqual(parts["step/backward"] + parts["step/optimizer"], steps * (2 * sum(layers) - layers[0]))
            self.assertEqual(profile["flops_per_step"] * steps, parts["step"])
            self.assertAlmostEqual(profile["flops_per_second"] / profile["flops_per_step"] / profile["steps_per_second"], 1)
            self.assertAlmostEqual(profile["samples_per_second"] / profile["steps_per_second"], rows)
            self.assertGreater(profile["product_flops_per_second"], 1e8)

    def test_floating_point_operations_are_those_of_the_convolutions(self):
        profile = json.loads(self.succeed("profile", "--stream", "split_digits", "--data", DATA, "--model", "small_cnn",
                                          "--model.channels", "4,6", "--model.hidden", 16, "--batch-size", 10,
                                          "--training.drop-last", "true", "--steps", 5, "--format", "json"))
        parts = {part["part"]: part["flops"] / profile["counted_steps"] for part in profile["parts"]}
        first = 2 * 10 * (8 * 8 * 4) * (5 * 5 * 1)
        others = 2 * 10 * (4 * 4 * 6) * (5 * 5 * 4) + 2 * 10 * (2 * 2 * 6 * 16 + 16 * 10)
        self.assertEqual(parts["step/forward"], first + others)
        self.assertEqual(parts["step/backward"] + parts["step/optimizer"], first + 2 * others)

    def test_a_trace_is_written_whole_and_never_over_another_file(self):
        path = self.folder / "trace.json"
        self.profile("--trace", path)
        names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
        self.assertLessEqual({"pawl: step", "pawl: forward", "pawl: backward", "aten::log_softmax"}, names)
        self.assertEqual(os.listdir(self.folder), ["trace.json"])
        before = path.read_bytes()
        self.refused(1, "profile", *COMMON, "--trace", path, says=["--trace", "exists already"])
        self.assertEqual(path.read_bytes(), before)
        self.profile("--trace", path, "--force")

    def test_mistakes_are_told(self):
        self.refused(2, "profile", "--steps", "none", says=["--steps is 'none'"])
        self.refused(2, "profile", "--steps", 0, says=["1 or more"])
        self.refused(2, "profile", "--out", "x.jsonl", says=["no option --out"])
        self.refused(2, "profile", "--save", ".", says=["no option --save"])
        self.refused(2, "profile", "replay", says=["takes options only"])
        self.refused(1, "profile", *COMMON, "--trace", self.folder / "none" / "x.json", says=["cannot be written"])

    def test_a_step_makes_the_calls_that_are_on_record(self):
        libtorch = self.run_to_file("--stream.experiences", 2)[0]["libtorch"]
        with PORTABLE:
            costs = {f"{strategy}, {engine}": self.cost(strategy, engine)
                     for strategy in STRATEGIES for engine in ("compiled", "reference")}
        if os.environ.get("PAWL_RECORD_COSTS"):
            COSTS.write_text(json.dumps({"libtorch": libtorch, "costs": costs}, indent=1) + "\n")
        recorded = json.loads(COSTS.read_text())
        if libtorch != recorded["libtorch"]:
            self.skipTest(f"the costs on record are those of LibTorch {recorded['libtorch']}, not of {libtorch}")
        self.assertEqual(costs, recorded["costs"],
                         "where the change is meant, run this test with PAWL_RECORD_COSTS=1 and commit the file")

    def test_products_of_few_rows_save_calls(self):
        for strategy in ("naive", "replay,lwf,ewc"):
            own = self.cost(strategy, "compiled")
            with PORTABLE:
                portable = self.cost(strategy, "compiled")
            for what in COUNTS:
                self.assertLessEqual(own[what], portable[what], what)

    def test_memory_does_not_grow_with_the_number_of_experiences(self):
        keeps = {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=1"}  # of what is freed
        peak = {}
        for experiences in (3, 40):
            with unittest.mock.patch.dict(os.environ, keeps):
                lines = self.run_to_file("--stream", "permuted_digits", "--stream.experiences", experiences,
                                         "--strategy", "replay,ewc,lwf", "--lr", 0.001, "--epochs", 1,
                                         "--ewc.samples", 50, "--model.hidden", "400,400",
                                         name=f"{experiences}.jsonl")
            peak[experiences] = next(line for line in lines if line["record"] == "result")["peak_memory_bytes"]
        self.assertLess(peak[40] - peak[3], 16e6)  # 37 copies of the weights are 29e6

    def cost(self, strategy, engine):
        """What the counted steps make in all."""
        parts = self.profile("--strategy", strategy, "--engine", engine)["parts"]
        step = next(part for part in parts if part["part"] == "step")
        return {what: step[what] for what in COUNTS}


if __name__ == "__main__":
    unittest.main()
