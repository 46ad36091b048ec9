"""The result file: its form, and that its numbers follow from each other."""

import json
import math
import statistics
import unittest

import schema
from bench import DATA, DIGITS, SOURCE, Case

SCHEMA = json.loads((SOURCE / "docs/result_schema.json").read_text())


class Records(Case):
    def check_schema(self, lines):
        for line in lines:
            form = SCHEMA["$defs"][line["record"]]
            self.assertEqual(schema.errors(line, form, SCHEMA), [])
            self.assertEqual(schema.errors(line, SCHEMA), [])

    def test_a_result_file_has_the_form_of_the_schema(self):
        lines = self.run_to_file("--strategy", "replay,lwf", "--seeds", 2, "--trace-penalties", "true")
        self.check_schema(lines)
        kinds = [line["record"] for line in lines]
        one_seed = ["experience"] * 5 + ["result"]
        self.assertEqual(kinds, ["header", *one_seed, *one_seed, "summary"])

    def test_the_schema_refuses_what_is_wrong(self):
        lines = self.run_to_file()
        result = next(line for line in lines if line["record"] == "result")
        for damage in (
            lambda r: r.pop("steps"),
            lambda r: r["metrics"].pop("bwt"),
            lambda r: r["metrics"].update(final_accuracy=1.5),
            lambda r: r["matrix"][0].__setitem__(0, "0.5"),
            lambda r: r.update(surprise=1),
        ):
            damaged = json.loads(json.dumps(result))
            damage(damaged)
            self.assertTrue(schema.errors(damaged, SCHEMA))
        for damage in (
            lambda s: s["metrics"].pop("bwt"),
            lambda s: s["metrics"].update(surprise=None),
            lambda s: s["metrics"]["final_accuracy"].update(std=-1),
            lambda s: s["metrics"]["final_accuracy"].update(mean=1.5),
            lambda s: s["seconds"]["train"].update(mean=-1),
            lambda s: s["joules"].update(device=-1),
        ):
            damaged = json.loads(json.dumps(lines[-1]))
            damage(damaged)
            self.assertTrue(schema.errors(damaged, SCHEMA))

    def test_trained_learners_are_saved(self):
        saved = {}
        for jobs in (1, 2):
            folder = self.folder / f"jobs{jobs}"
            folder.mkdir()
            self.succeed("run", *DIGITS, "--strategy", "replay", "--seeds", 2, "--jobs", jobs, "--save", folder)
            saved[jobs] = {file.name: file.read_bytes() for file in folder.iterdir()}
        self.assertEqual(sorted(saved[1]), ["seed_0.safetensors", "seed_1.safetensors"])
        self.assertEqual(saved[1], saved[2])
        first = saved[1]["seed_0.safetensors"]
        tensors = json.loads(first[8 : 8 + int.from_bytes(first[:8], "little")])
        self.assertIn([16, 64], [t["shape"] for name, t in tensors.items() if name != "__metadata__"])
        self.assertNotEqual(first, saved[1]["seed_1.safetensors"])

    def test_what_was_not_measured_is_null(self):
        lines = self.run_to_file("--evaluate", "final")
        metrics = next(line for line in lines if line["record"] == "result")["metrics"]
        known = [name for name, value in metrics.items() if value is not None]
        self.assertEqual(known, ["final_accuracy", "final_accuracy_by_sample"])

    def test_evaluations_during_training_give_curves_and_change_nothing(self):
        options = ["--strategy", "ewc,replay", "--batch-size", 100, "--trace-penalties", "true"]
        without = self.run_to_file(*options)
        lines = self.run_to_file(*options, "--evaluate-every", 1, "--force")
        self.check_schema(lines)
        for before, after in zip(without, lines):
            if before["record"] == "experience":
                self.assertEqual((before["loss"], before["accuracy"]), (after["loss"], after["accuracy"]))
        experiences = [line for line in lines if line["record"] == "experience"]
        points = [point for line in experiences for point in line["curve"]]
        steps = sum(line["steps"] for line in experiences)
        self.assertEqual([point["step"] for point in points], list(range(1, steps + 1)))
        for line in experiences:
            self.assertEqual(line["curve"][-1]["accuracy"], line["accuracy"])
        metrics = lines[-2]["metrics"]
        seen = [statistics.mean(p["accuracy"][: e + 1]) for e, line in enumerate(experiences) for p in line["curve"]]
        self.assertAlmostEqual(metrics["anytime_aaa"], statistics.mean(seen), places=12)
        ends = [line["curve"][-1]["step"] for line in experiences]
        lowest = [min(p["accuracy"][j] for p in points if p["step"] > ends[j]) for j in range(4)]
        self.assertAlmostEqual(metrics["anytime_min_acc"], statistics.mean(lowest), places=12)
        self.assertIsNone(metrics["anytime_lca_10"])  # an experience has three batches
        self.assertIsNone(lines[-1]["metrics"]["anytime_lca_10"])
        self.assertEqual(lines[-1]["metrics"]["anytime_aaa"]["mean"], metrics["anytime_aaa"])

    def test_curves_end_with_the_experience_however_many_steps_lie_between(self):
        lines = self.run_to_file("--batch-size", 10, "--evaluate-every", 7)
        experiences = [line for line in lines if line["record"] == "experience"]
        last = 0
        for line in experiences:
            end = last + line["steps"]
            wanted = [step for step in range(last + 1, end + 1) if step % 7 == 0 or step == end]
            self.assertEqual([point["step"] for point in line["curve"]], wanted)
            last = end
        every = self.run_to_file("--batch-size", 10, "--evaluate-every", 1, "--force")
        metrics = next(line for line in every if line["record"] == "result")
        experiences = [line for line in every if line["record"] == "experience"]
        area = []
        for e, line in enumerate(experiences):
            start = experiences[e - 1]["curve"][-1]["accuracy"] if e > 0 else metrics["untrained"]
            area.append(statistics.mean([start[e]] + [point["accuracy"][e] for point in line["curve"][:10]]))
        self.assertAlmostEqual(metrics["metrics"]["anytime_lca_10"], statistics.mean(area), places=12)

    def test_an_online_stream_keeps_a_memory_by_experience(self):
        def bytes_of_state(*options):
            lines = self.run_to_file("--strategy", "a_gem", "--batch-size", 10, "--force", *options)
            return next(line for line in lines if line["record"] == "result")["state_bytes"]

        self.assertEqual(bytes_of_state("--stream.chunk", 10), bytes_of_state())

    def test_the_last_part_of_an_online_experience_may_be_shorter_than_a_batch(self):
        lines = self.run_to_file("--strategy", "replay", "--stream.chunk", 10, "--batch-size", 10, "--replay.batch", 10)
        result = next(line for line in lines if line["record"] == "result")
        self.assertEqual(result["samples"], 1442)
        self.assertEqual(result["steps"], 29 + 29 + 30 + 29 + 29)

    def test_experiences_may_have_epochs_and_learning_rates_of_their_own(self):
        def losses(*options):
            lines = self.run_to_file("--strategy", "naive", "--force", *options)
            return [(line["loss"], line["steps"]) for line in lines if line["record"] == "experience"]

        for optimizer in ("rmsprop", "adagrad"):  # made in their first step
            one, listed = ("--lr", 0.003), ("--lr-per-experience", 0.003)
            self.assertEqual(losses("--optimizer", optimizer, *one), losses("--optimizer", optimizer, *listed))

        usual = losses("--lr", 0.1, "--epochs", 2)
        listed = losses("--lr-per-experience", "0.1,0.02", "--epochs-per-experience", "2,2,1")
        self.assertEqual(usual[0], listed[0])
        self.assertEqual(usual[1][1], listed[1][1])
        self.assertNotEqual(usual[1][0], listed[1][0])
        self.assertEqual([2 * steps for _, steps in listed[2:]], [steps for _, steps in usual[2:]])
        self.assertEqual(usual, losses("--lr-per-experience", "0.1", "--epochs-per-experience", 2))

    def test_images_are_augmented_anew_in_every_epoch(self):
        def losses(*options):
            lines = self.run_to_file("--strategy", "replay", "--epochs", 2, "--force", *options)
            return [line["loss"] for line in lines if line["record"] == "experience"]

        plain, varied = losses(), losses("--augment-crop", 1, "--augment-flip", "true")
        self.assertEqual(varied, losses("--augment-crop", 1, "--augment-flip", "true"))
        self.assertNotEqual(varied, plain)
        self.assertEqual(plain, losses("--augment-crop", 0))

    def test_the_header_names_each_strategy_with_its_hooks_and_every_option(self):
        header = self.run_to_file("--strategy", "replay,lwf,replay", "--replay2.capacity", 77)[0]
        self.assertEqual([s["name"] for s in header["strategies"]], ["replay", "lwf", "replay"])
        self.assertEqual([s["prefix"] for s in header["strategies"]], ["replay", "lwf", "replay2"])
        self.assertIn("extend", header["strategies"][0]["hooks"])
        self.assertIn("penalty", header["strategies"][1]["hooks"])
        self.assertEqual(header["config"]["strategy"]["replay2"]["capacity"], 77)
        self.assertEqual(header["config"]["model"]["hidden"], [16])

    def test_metrics_and_summary_follow_from_the_matrix(self):
        lines = self.run_to_file("--seeds", 3, "--strategy", "replay", "--epochs", 2)
        results = [line for line in lines if line["record"] == "result"]
        rows = [line["accuracy"] for line in lines if line["record"] == "experience"]
        self.assertEqual([r for result in results for r in result["matrix"]], rows)
        for result in results:
            matrix, metrics = result["matrix"], result["metrics"]
            self.assertAlmostEqual(metrics["final_accuracy"], statistics.mean(matrix[-1]))
            best = [max(row[j] for row in matrix[:-1]) for j in range(4)]
            forgetting = statistics.mean(best[j] - matrix[-1][j] for j in range(4))
            self.assertAlmostEqual(metrics["forgetting"], forgetting)
            self.assertAlmostEqual(metrics["forgetting_at"][-1], forgetting)
            forward = statistics.mean(matrix[j - 1][j] - result["untrained"][j] for j in range(1, 5))
            self.assertAlmostEqual(metrics["fwt"], forward)
            self.assertIsNone(metrics["intransigence"])
            self.assertEqual(result["samples"], 2 * 1442)
            rate = result["samples"] / result["seconds"]["train"]
            self.assertAlmostEqual(result["samples_per_second"] / rate, 1)
        values = [r["metrics"]["final_accuracy"] for r in results]
        over = lines[-1]["metrics"]["final_accuracy"]
        sem = statistics.stdev(values) / math.sqrt(3)
        self.assertEqual(over["n"], 3)
        self.assertAlmostEqual(over["mean"], statistics.mean(values))
        self.assertAlmostEqual(over["std"], statistics.stdev(values))
        self.assertAlmostEqual(over["sem"], sem)
        self.assertAlmostEqual(over["ci95"][1] - over["mean"], 4.302653 * sem, places=6)

    def test_what_one_experience_or_one_evaluation_cannot_tell_is_null(self):
        single = self.run_to_file("--experiences", 1)
        self.check_schema(single)
        for name in ("forgetting", "bwt", "fwt", "rem", "min_acc", "forgetting_at", "average_incremental_from_second"):
            self.assertIsNone(single[-2]["metrics"][name], name)
        final = self.run_to_file("--evaluate", "final", name="final.jsonl")
        self.check_schema(final)
        self.assertIsNone(final[1]["accuracy"])
        self.assertIsNotNone(final[-2]["metrics"]["final_accuracy"])
        self.assertIsNone(final[-2]["metrics"]["learning_accuracy"])

    def test_joint_and_cumulative_training_are_tested_on_every_experience(self):
        joint = self.run_to_file("--strategy", "joint", "--epochs", 5)
        self.check_schema(joint)
        self.assertEqual(len(joint[-2]["matrix"]), 1)
        self.assertAlmostEqual(joint[-2]["metrics"]["final_accuracy"], statistics.mean(joint[-2]["matrix"][0]))
        self.assertIsNone(joint[-2]["metrics"]["forgetting"])
        cumulative = self.run_to_file("--strategy", "cumulative", "--epochs", 5, name="cumulative.jsonl")
        self.check_schema(cumulative)
        self.assertEqual(len(cumulative[-2]["matrix"]), 5)
        self.assertGreater(cumulative[-2]["samples"], 5 * 1442)

    def test_training_from_scratch_starts_every_experience_with_new_weights(self):
        flags = ["--experiences", 2, "--epochs", 3, "--optimizer", "adam"]
        scratch = self.run_to_file("--strategy", "from_scratch", *flags, name="scratch.jsonl")
        self.check_schema(scratch)
        cumulative = self.run_to_file("--strategy", "cumulative", *flags, name="cumulative.jsonl")
        self.assertEqual(scratch[1]["loss"], cumulative[1]["loss"])
        self.assertEqual(scratch[2]["steps"], cumulative[2]["steps"])
        self.assertGreater(scratch[2]["loss"]["mean"], cumulative[2]["loss"]["mean"])

    def test_epochs_can_differ_between_experiences(self):
        lines = self.run_to_file("--epochs-per-experience", "3,1", "--batch-size", 10, "--experiences", 3)
        rows = [line["steps"] for line in lines if line["record"] == "experience"]
        once = self.run_to_file("--batch-size", 10, "--experiences", 3, name="once.jsonl")
        single = [line["steps"] for line in once if line["record"] == "experience"]
        self.assertEqual(rows, [3 * single[0], single[1], single[2]])

    def test_penalties_of_one_strategy_listed_twice_are_kept_apart(self):
        lines = self.run_to_file("--strategy", "lwf,lwf", "--lwf2.strength", 3)
        penalties = lines[2]["loss"]["penalties"]
        self.assertEqual(list(penalties), ["lwf", "lwf2"])
        self.assertAlmostEqual(penalties["lwf2"] / penalties["lwf"], 3, places=5)

    def test_an_online_stream_is_measured_once_per_experience(self):
        lines = self.run_to_file("--chunk", 50, "--batch-size", 10, "--strategy", "replay")
        self.check_schema(lines)
        self.assertEqual(len(lines[-2]["matrix"]), 5)

    def test_other_forms_of_output_say_the_same(self):
        text = self.succeed("run", *DIGITS, "--seeds", 2, "--format", "json")
        whole = json.loads(text)
        self.check_schema([whole["header"], *whole["results"], whole["summary"]])
        lines = self.succeed("run", *DIGITS, "--seeds", 2, "--format", "csv").splitlines()
        self.assertEqual(len(lines), 3)
        names, first = lines[0].split(","), lines[1].split(",")
        metric = names.index("final_accuracy")
        self.assertEqual(float(first[metric]), whole["results"][0]["metrics"]["final_accuracy"])
        self.assertEqual(first[names.index("intransigence")], "")
        self.assertIn("final_accuracy", self.succeed("run", *DIGITS))

    def test_a_run_of_several_seeds_holds_the_runs_of_each(self):
        several = self.run_to_file("--seeds", 3, "--first-seed", 4, "--strategy", "replay")
        alone = self.run_to_file("--first-seed", 6, "--strategy", "replay", name="alone.jsonl")
        results = [line for line in several if line["record"] == "result"]
        self.assertEqual([r["seed"] for r in results], [4, 5, 6])
        self.assertEqual(results[2]["matrix"], alone[-2]["matrix"])
        self.assertNotEqual(results[0]["matrix"], results[1]["matrix"])

    def test_seeds_at_the_same_time_give_what_each_gives_alone(self):
        for strategy in ("replay,lwf", "ewc", "a_gem"):
            common = ("--strategy", strategy, "--seeds", 3)
            turns = self.run_to_file(*common, name=strategy + "_turns.jsonl")
            together = self.run_to_file(*common, "--jobs", 3, name=strategy + "_together.jsonl")
            self.check_schema(together)
            self.assertEqual([line["record"] for line in turns], [line["record"] for line in together])
            for one, other in zip(turns, together):
                for key in ("seed", "experience", "matrix", "metrics", "loss"):
                    self.assertEqual(one.get(key), other.get(key))

    def test_sub_streams_can_be_fixed_over_seeds(self):
        def sizes(*arguments, name):
            lines = self.run_to_file("--order", "shuffled", "--seeds", 3, *arguments, name=name)
            return [line["test_sizes"] for line in lines if line["record"] == "result"]

        free = sizes(name="free.jsonl")
        self.assertNotEqual(free[0], free[1])
        fixed = sizes("--stream-seed", 0, name="fixed.jsonl")
        self.assertEqual(fixed, [free[0]] * 3)
        lines = self.run_to_file("--init-seed", 3, "--seeds", 2, name="init.jsonl")
        untrained = [line["untrained"] for line in lines if line["record"] == "result"]
        self.assertEqual(untrained[0], untrained[1])

    def test_a_growing_head_has_no_accuracy_before_training(self):
        lines = self.run_to_file("--model.head", "growing")
        self.check_schema(lines)
        self.assertIsNone(lines[-2]["untrained"])
        self.assertIsNone(lines[-2]["metrics"]["fwt"])

    def test_the_task_scenario_uses_a_head_per_task_and_can_mask_one_head(self):
        heads = self.run_to_file("--scenario", "task")
        self.assertEqual((heads[-2]["prediction"], heads[-2]["active_classes"]), ("task_head", "task"))
        masked = self.run_to_file("--evaluation.outputs", "task", name="masked.jsonl")
        self.assertEqual((masked[-2]["prediction"], masked[-2]["active_classes"]), ("task_masked", "task"))
        for outputs, active in (("automatic", "seen"), ("all", "all")):
            lines = self.run_to_file("--evaluation.outputs", outputs, "--force")
            self.assertEqual((lines[-2]["prediction"], lines[-2]["active_classes"]), ("class", active))

    def test_the_engine_is_recorded_and_changes_nothing_but_time(self):
        compiled = self.run_to_file("--strategy", "replay")
        self.assertEqual(compiled[-2]["engine"], "compiled")
        slow = self.run_to_file("--strategy", "replay", "--engine", "reference", name="slow.jsonl")
        self.assertEqual(slow[-2]["engine"], "reference")
        self.assertEqual(slow[-2]["matrix"], compiled[-2]["matrix"])
        growing = self.run_to_file("--model.head", "growing", name="growing.jsonl")
        self.assertRegex(growing[-2]["engine"], "^(layers|reference): the model is not a chain")

    def test_penalties_are_recorded(self):
        lwf = self.run_to_file("--strategy", "lwf")
        self.assertEqual(lwf[1]["loss"]["penalties"], {})
        self.assertGreater(lwf[2]["loss"]["penalties"]["lwf"], 0)
        ewc = self.run_to_file("--strategy", "ewc", "--trace-penalties", "true", name="ewc.jsonl")
        self.assertGreater(ewc[2]["loss"]["penalties"]["ewc"], 0)


if __name__ == "__main__":
    unittest.main()
