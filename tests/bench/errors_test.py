"""Bad input: one sentence, a non-zero exit code, nothing half-written."""

import gzip
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import unittest

from bench import DATA, DIGITS, PROGRAM, Case, call, records


class Errors(Case):
    def refused_run(self, code, *arguments, says=()):
        """Refuses the run and leaves no file behind."""
        out = self.folder / "out.jsonl"
        self.refused(code, "run", *DIGITS, "--out", out, *arguments, says=says)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_wrong_names_get_the_nearest_right_one(self):
        self.refused_run(2, "--strategy", "replya", says=["replay"])
        self.refused_run(2, "--stream", "splt_digits", says=["split_digits"])
        self.refused_run(2, "--model", "mpl", says=["mlp"])
        self.refused_run(2, "--optimizer", "adm", says=["adam"])
        self.refused_run(2, "--strategy", "replay", "--replay.memory", "reservior", says=["reservoir"])
        self.refused_run(2, "--strategy", "replay", "--replay.capcity", 9, says=["--replay.capacity"])
        self.refused_run(2, "--epoch", 2, says=["--epochs"])
        self.refused_run(2, "--device", "cudda", says=["cuda"])
        self.refused_run(2, "--init", "xavier", says=["did you mean --model.init?"])
        self.refused_run(2, "--memory", "ring", "--strategy", "replay", says=["did you mean --replay.memory?"])
        self.refused_run(2, "--strategy", "replay", "--replay.by", "task", says=["by is an option of the memory ring"])
        self.refused_run(2, "--optimizer", "adam", "--momentum", 0.9, says=["momentum is an option of", "optimizer sgd"])
        self.refused_run(2, "--strategy", "er", says=["'replay'"])
        self.refused_run(2, "--strategy", "der++", says=["'derpp'"])
        self.refused_run(2, "--scenario", "clas", says=["class"])
        self.refused(2, "rnu", says=["run"])
        self.refused(2, "list", "strategeis", says=["strategies"])
        self.refused(2, "help", "ewcc", says=["ewc"])
        self.refused(2, "reproduce", "A777")
        self.refused(2, "reproduce", "--cost", "second", says=["seconds"])

    def test_bad_values_name_the_option_and_its_range(self):
        self.refused_run(2, "--lr", "fast", says=["--lr", ">= 0"])
        self.refused_run(2, "--lr", "nan", says=["--lr", ">= 0"])
        self.refused_run(2, "--momentum", 1, says=["--momentum", "[0, 1)"])
        self.refused_run(2, "--epochs", "1.5", says=["--epochs", "integer >= 1"])
        self.refused_run(2, "--seeds", 0, says=["--seeds"])
        self.refused_run(2, "--threads", 0, says=["--threads"])
        self.refused_run(2, "--nesterov", "maybe", says=["--nesterov", "true or false"])
        self.refused_run(2, "--lr", says=["--lr", "needs a value"])
        self.refused_run(2, "--strategy", "lwf", "--lwf.temperature", 0, says=["--lwf.temperature", "> 0"])
        self.refused_run(2, "--model.hidden", "10,x", says=["--model.hidden"])

    def test_flags_that_nothing_reads(self):
        for says, flags in {
            "iterations = 0": ["--epochs", 2, "--iterations", 9],
            "epochs_per_experience is empty": ["--epochs", 2, "--epochs_per_experience", "1,2"],
            "lr_per_experience is empty": ["--lr", 0.1, "--lr_per_experience", "0.1,0.2"],
            "lr_schedule = cosine": ["--lr_final", 0.1],
            "lr_schedule = milestones": ["--lr_milestones", 3, "--lr_schedule", "cosine"],
            "there are lr_milestones": ["--lr_factor", 0.5],
            "normalize = custom": ["--stream.mean", 0.5],
            "class_order is empty": ["--order", "shuffled", "--class_order", "1,0,2,3,4,5,6,7,8,9"],
            "chunk > 0": ["--boundaries", "hidden"],
            "init = normal or truncated_normal": ["--model.init_std", 0.2],
            "mode = online": ["--strategy", "ewc", "--ewc.mode", "separate", "--ewc.decay", 0.9],
            "labels = batch": ["--strategy", "ewc", "--ewc.fisher_batch", 8],
            "accumulate = ema": ["--strategy", "mas", "--mas.decay", 0.9],
            "reading = batch": ["--strategy", "mas", "--mas.importance_batch", 8],
            "jobs > 1 and device = cuda": ["--fleet", "false", "--seeds", 2, "--jobs", 2],
            "strengths is empty": ["--strategy", "lwf", "--lwf.strength", 2, "--lwf.strengths", "1,2"],
            "weighting = fixed": ["--strategy", "replay", "--replay.new_weight", 0.4],
            "draw = cycle": ["--strategy", "replay", "--replay.drop_last", "true"],
        }.items():
            with self.subTest(says):
                self.refused_run(2, *flags, says=["has no effect", says])
        self.refused_run(2, "--epochs_per_experience", "1,2", "--iterations", 9, says=["iterations = 0"])

    def test_flags_of_which_one_takes_the_place_of_the_other(self):
        flags = ["--replay.per_group", 5, "--replay.capacity", 100]
        for order in (flags, flags[2:] + flags[:2]):
            self.refused_run(2, "--strategy", "replay", "--replay.memory", "ring", *order,
                             says=["--replay.capacity", "--replay.per_group", "one of them"])

    def test_a_file_and_flags_at_their_default_may_hold_what_nothing_reads(self):
        config = self.succeed("run", *DIGITS, "--iterations", 2, "--print-config")
        self.assertIn("epochs = 1", config)
        (self.folder / "run.toml").write_text(config)
        self.succeed("run", "--config", self.folder / "run.toml")
        self.succeed("run", *DIGITS, "--iterations", 2, "--epochs", 1)

    def test_checkpoints_that_cannot_be_saved(self):
        self.refused_run(1, "--save", self.folder / "none", says=["--save", "not a folder"])
        kept = self.folder / "seed_1.safetensors"
        kept.write_text("precious")
        out = self.folder / "out.jsonl"
        run = ["run", *DIGITS, "--seeds", 2, "--save", self.folder, "--out", out]
        self.refused(1, *run, says=["seed_1.safetensors exists already", "--force"])
        self.assertEqual([file.name for file in self.folder.iterdir()], [kept.name])
        self.assertEqual(kept.read_text(), "precious")
        self.succeed(*run, "--force")
        self.assertGreater(kept.stat().st_size, 1000)

    def test_numbers_beyond_float32(self):
        for flags in (["--lr", "1e39"], ["--strategy", "ewc", "--ewc.strength", "-1e300"]):
            self.refused_run(2, *flags, says=["must be", "at most 3.4e38"])

    def test_numbers_of_experiences_that_do_not_fit(self):
        self.refused_run(2, "--experiences", 0, says=["--experiences", ">= 1"])
        self.refused_run(1, "--experiences", 11, says=["11", "10 classes"])

    def test_capacities_that_do_not_fit(self):
        self.refused_run(2, "--strategy", "replay", "--replay.capacity", -1, says=["--replay.capacity", ">= 0"])
        for memory in ("reservoir", "class_balanced", "ring"):
            self.refused_run(
                2, "--strategy", "replay", "--replay.memory", memory, "--replay.capacity", 9,
                says=["--replay.capacity", "10 classes"],
            )

    def test_the_capacity_of_a_memory_that_is_not_used_does_not_matter(self):
        flags = ["--strategy", "ncm", "--ncm.capacity", 5]
        self.succeed("run", *DIGITS, *flags)
        self.refused_run(2, *flags, "--ncm.source", "memory", says=["--ncm.capacity", "10 classes"])

    def test_capacity_zero_is_naive_training(self):
        naive = self.run_to_file(name="naive.jsonl")
        zero = self.run_to_file("--strategy", "replay", "--replay.capacity", 0, name="zero.jsonl")
        rows = [[(r["accuracy"], r["loss"]["mean"]) for r in lines if r["record"] == "experience"]
                for lines in (naive, zero)]
        self.assertEqual(rows[0], rows[1])

    def test_a_batch_larger_than_an_experience(self):
        self.refused_run(1, "--batch-size", 1000, says=["batch_size", "1000"])

    def test_options_that_contradict_each_other(self):
        self.refused_run(1, "--strategy", "er_ace,er_ace", says=["er_ace", "loss"])
        self.refused_run(2, "--strategy", "joint,replay", says=["joint"])
        self.refused_run(2, "--strategy", "joint", "--kind", "cumulative", says=["--kind"])
        self.refused_run(2, "--drop-last", "true", says=["--stream.drop_last", "--training.drop_last"])
        self.refused_run(2, "--replay.capacity", 50, says=["replay", "--strategy"])

    def test_a_loss_that_is_not_finite_leaves_no_file(self):
        self.refused_run(1, "--lr", "1e38", "--epochs", 5, says=["loss", "experience"])

    def test_data_that_is_not_there(self):
        self.refused_run(1, "--data", self.folder / "nowhere", says=["nowhere"])
        self.refused_run(1, "--stream", "split_mnist", "--data", self.folder, says=["mnist", "fetch_data"])

    def test_data_that_is_damaged(self):
        whole = gzip.decompress((pathlib.Path(DATA) / "digits/digits.csv.gz").read_bytes())
        packed = gzip.compress(whole)
        flipped = bytearray(packed)
        flipped[len(flipped) // 2] ^= 4
        for name, damaged in (
            ("digits.csv", whole[:5000]), ("digits.csv", whole + b"0"), ("digits.csv", whole.replace(b"16", b"17", 1)),
            ("digits.csv.gz", packed[:-10]), ("digits.csv.gz", packed + b"more"), ("digits.csv.gz", bytes(flipped)),
        ):
            with tempfile.TemporaryDirectory() as data:
                (pathlib.Path(data) / name).write_bytes(damaged)
                self.refused_run(1, "--data", data, says=[name, "fetch the file again"])

    def test_images_and_labels_that_do_not_fit(self):
        def idx(kind, *sizes, fill):
            return bytes([0, 0, kind, len(sizes)]) + b"".join(n.to_bytes(4, "big") for n in sizes) + fill

        images, labels = idx(8, 20, 28, 28, fill=bytes(20 * 784)), idx(8, 20, fill=bytes(range(10)) * 2)
        for damage, said in (
            ({"train-images-idx3-ubyte": images[:-1]}, "truncated"),
            ({"train-images-idx3-ubyte": images + b"0"}, "follow"),
            ({"train-images-idx3-ubyte": b"\x01" + images[1:]}, "magic"),
            ({"train-images-idx3-ubyte": idx(13, 20, 28, 28, fill=bytes(20 * 784 * 4))}, "type"),
            ({"train-images-idx3-ubyte": idx(8, 20, 14, 56, fill=bytes(20 * 784))}, "28x28"),
            ({"train-labels-idx1-ubyte": idx(8, 20, fill=bytes([10]) * 20)}, "label 10"),
            ({"t10k-labels-idx1-ubyte": labels[:-1]}, "truncated"),
            ({"t10k-labels-idx1-ubyte": idx(8, 19, fill=labels[8:-1])}, "19 labels"),
        ):
            files = {f"{part}-{kind}": data for part in ("train", "t10k")
                     for kind, data in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels))} | damage
            with tempfile.TemporaryDirectory() as data:
                for name, content in files.items():
                    (pathlib.Path(data) / name).write_bytes(content)
                self.refused_run(1, "--stream", "split_mnist", "--data", data, says=[next(iter(damage)), said])

    def test_a_batch_of_one_row_under_batch_norm(self):
        self.refused_run(1, "--model.batch-norm", "true", "--train-limit", 101, "--experiences", 1, "--batch-size", 10,
                         says=["one row", "drop_last"])
        self.run_to_file("--model.batch-norm", "true", "--train-limit", 101, "--experiences", 1, "--batch-size", 10,
                         "--training.drop-last", "true")

    def test_files_that_cannot_be_written(self):
        self.refused(1, "run", *DIGITS, "--out", self.folder / "no" / "x.jsonl", says=["--out", "No such file"])
        self.refused(1, "run", *DIGITS, "--out", self.folder, says=["folder"])
        if os.path.exists("/dev/full"):
            self.refused(1, "run", *DIGITS, "--out", "/dev/full", says=["--out"])

    def test_an_existing_file_is_replaced_only_by_force(self):
        out = self.folder / "out.jsonl"
        out.write_text("precious\n")
        self.refused(1, "run", *DIGITS, "--out", out, says=["exists", "--force"])
        self.assertEqual(out.read_text(), "precious\n")
        self.succeed("run", *DIGITS, "--out", out, "--force")
        self.assertEqual(records(out)[0]["record"], "header")
        self.assertEqual(list(self.folder.iterdir()), [out])

    def test_cuda_where_there_is_none(self):
        done = call("run", *DIGITS, "--device", "cuda", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        self.assertEqual(done.returncode, 1)
        self.assertIn("CUDA", done.stderr)

    def test_config_files_that_cannot_be_read(self):
        self.refused_run(2, "--config", "/nowhere.toml", says=["/nowhere.toml"])
        self.refused(2, "run", *DIGITS, "--config", self.folder, says=["--config", "folder"])
        config = self.folder / "run.toml"
        for text, said in (
            ("epochs = ", "line 1"), ("[training]\nepoch = 3", "did you mean training.epochs?"),
            ("epoch = 3", "did you mean epochs?"), ("seeds = 1979-05-27", "seeds"),
            ("[strategy.replay]\ncapacity = 9", "'replay', which this run does not use"),
            ('strategies = "lwf"\n[strategy.lwf]\nstrenght = 1', "strategy.lwf.strength"),
            ("[training]\nbatch_size = 0", "--batch_size is '0' but must be integer >= 1"),
        ):
            config.write_text(text)
            self.refused(2, "run", *DIGITS, "--config", config, says=[said])

    def test_no_command_and_stray_arguments(self):
        self.refused(2, says=["run"])
        self.refused(2, "run", "naive", says=["naive"])

    def test_ctrl_c_keeps_what_is_finished(self):
        out = self.folder / "out.jsonl"
        process = subprocess.Popen(
            [PROGRAM, "run", *DIGITS, "--seeds", "1000000", "--out", str(out)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        part = pathlib.Path(f"{out}.part{process.pid}")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (part.exists() and '"record":"result"' in part.read_text()):
            time.sleep(0.05)
        for _ in range(2):  # as  timeout  does, which signals the program and its group
            process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 130, stderr)
        self.assertIn("interrupted", stderr)
        self.assertIn("final_accuracy", stdout)
        lines = records(out)
        self.assertTrue(lines[-1]["interrupted"])
        finished = [line["seed"] for line in lines if line["record"] == "result"]
        self.assertEqual(lines[-1]["seeds"], finished)
        self.assertEqual(list(self.folder.iterdir()), [out])

    def test_a_seed_that_diverges_is_named_and_those_before_it_are_kept(self):
        unstable = ["--stream", "split_digits", "--data", DATA, "--strategy", "mas", "--mas.strength", "1",
                    "--lr", "0.1", "--epochs", "3", "--first-seed", "3", "--seeds", "2"]
        for jobs in (1, 2):
            out = self.folder / f"{jobs}.jsonl"
            done = call("run", *unstable, "--jobs", jobs, "--out", out)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn("the loss is", done.stderr)
            self.assertIn("(seed 4)", done.stderr)
            self.assertIn("final_accuracy", done.stdout)
            lines = records(out)
            self.assertEqual([line["seed"] for line in lines if line["record"] == "result"], [3])
            self.assertTrue(lines[-1]["interrupted"])
            self.assertEqual(lines[-1]["seeds"], [3])

    def test_an_only_seed_that_diverges_leaves_no_file(self):
        unstable = ["--strategy", "mas", "--mas.strength", "1", "--lr", "0.1", "--epochs", "3", "--first-seed", "4"]
        out = self.folder / "out.jsonl"
        done = call("run", "--stream", "split_digits", "--data", DATA, *unstable, "--out", out)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("(seed 4)", done.stderr.splitlines()[-1])  # a warning of the strategy stands before it
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_capacity_that_is_asked_for_counts(self):
        def weights(*options):
            lines = self.run_to_file("--force", *options)
            return [line["loss"] for line in lines if line["record"] == "experience"]

        naive = weights("--strategy", "naive")
        memory = ["--strategy", "a_gem"]
        self.assertEqual(weights(*memory, "--a_gem.capacity", 0), naive)
        self.assertNotEqual(weights(*memory), naive)
        self.assertNotEqual(weights(*memory, "--a_gem.capacity", 20), weights(*memory))
        self.refused(2, "run", *DIGITS, *memory, "--a_gem.capacity", 3, says=["--a_gem.capacity is 3"])

    def test_memory_that_is_not_there_is_a_sentence(self):
        # Under the address sanitizer, too, which ends the program otherwise.
        sanitizer = os.environ.get("ASAN_OPTIONS", "") + ":allocator_may_return_null=1:log_path=/dev/null"
        self.refused(1, "run", *DIGITS, "--model.hidden", "1000000,100000000",
                     says=["there is not enough memory for"], env={**os.environ, "ASAN_OPTIONS": sanitizer})

    def test_a_stop_at_any_moment_leaves_a_whole_file_or_none(self):
        heavy = ["--seeds", "100000", "--strategy", "ewc", "--ewc.strength", "1", "--evaluation.batch-size", "1"]
        for number, delay in ((signal.SIGINT, 0), (signal.SIGTERM, 0.02), (signal.SIGTERM, 0.3), (signal.SIGINT, 1)):
            out = self.folder / "out.jsonl"
            process = subprocess.Popen([PROGRAM, "run", *DIGITS, *heavy, "--out", str(out)],
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            part = pathlib.Path(f"{out}.part{process.pid}")
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and not part.exists():
                time.sleep(0.001)
            time.sleep(delay)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 130, stderr)
            self.assertEqual(len(stderr.splitlines()), 1, stderr)
            self.assertIn("interrupted", stderr)
            if out.exists():
                self.assertTrue(records(out)[-1]["interrupted"])
                out.unlink()
            self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_link_to_a_file_that_is_not_there_yet_is_followed(self):
        link, out = self.folder / "link.jsonl", self.folder / "out.jsonl"
        link.symlink_to("out.jsonl")
        self.succeed("run", *DIGITS, "--out", link)
        self.assertEqual(records(out)[-1]["record"], "summary")
        self.assertTrue(link.is_symlink())

    def test_progress_goes_to_a_terminal_and_is_gone_at_the_end(self):
        parent, child = os.openpty()
        long = ["--experiences", "1", "--batch-size", "2", "--epochs", "20"]  # 14,420 steps: far more than one line
        process = subprocess.Popen([PROGRAM, "run", *DIGITS, *long], stdout=subprocess.PIPE, stderr=child, text=True)
        os.close(child)
        shown = b""
        while True:
            try:
                more = os.read(parent, 4096)
            except OSError:  # the other end is closed
                break
            if not more:
                break
            shown += more
        os.close(parent)
        stdout, _ = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0)
        self.assertNotIn("\033", stdout)
        self.assertIn(b"samples/s", shown)
        self.assertTrue(shown.endswith(b"\r\x1b[K"), shown[-100:])

    def test_progress_is_for_terminals_alone(self):
        done = call("run", *DIGITS)
        self.assertEqual(done.stderr, "")


if __name__ == "__main__":
    unittest.main()
