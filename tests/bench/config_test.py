"""Options: one description behind flags, config files, help and lists."""

import json
import unittest

from bench import DIGITS, SOURCE, Case


class Config(Case):
    def printed(self, *arguments):
        return self.succeed("run", *arguments, "--print-config")

    def test_a_printed_config_gives_the_same_config_again(self):
        for arguments in (
            [],
            ["--strategy", "replay,lwf,replay2".replace("replay2", "replay"), "--replay2.memory", "quota", "--lr", 1e-05],
            ["--stream", "rotated_digits", "--angle-list", "0,45.5,90", "--optimizer", "adam", "--seeds", 3],
            ["--strategy", "joint", "--out", 'odd "name"\\.jsonl', "--class-order", "9,8,7,6,5,4,3,2,1,0"],
            ["--strategy", "ewc", "--ewc.strength", "1e8", "--model.hidden", "", "--model", "small_cnn".replace("small_cnn", "mlp")],
        ):
            config = self.folder / "run.toml"
            first = self.printed(*DIGITS[2:], *arguments)
            config.write_text(first)
            self.assertEqual(self.printed("--config", config), first)

    def test_a_printed_config_reproduces_the_run(self):
        flags = ["--strategy", "replay", "--replay.capacity", 40, "--epochs", 2, "--seeds", 2, "--lr", 0.1]
        config = self.folder / "run.toml"
        config.write_text(self.printed(*DIGITS, *flags))
        by_flags = self.run_to_file(*flags)
        again = self.folder / "again.jsonl"
        self.succeed("run", "--config", config, "--out", again)
        by_file = [json.loads(line) for line in again.read_text().splitlines()]
        self.assertEqual(
            [line["metrics"] for line in by_file if "metrics" in line],
            [line["metrics"] for line in by_flags if "metrics" in line],
        )

    def test_flags_win_over_the_file_and_the_file_over_defaults(self):
        config = self.folder / "run.toml"
        config.write_text('strategies = ["replay", "lwf"]\nseeds = 3\n[optimizer]\nname = "adam"\nbeta1 = 0.5\n'
                          "[training]\nepochs = 7\n[strategy.replay]\nmemory = \"ring\"\nby = \"class\"\n[model]\nhidden = [5, 6]\n")
        text = self.printed("--config", config, "--epochs", 2)
        for line in ('strategies = "replay,lwf"', "seeds = 3", "epochs = 2", "beta1 = 0.5", 'memory = "ring"', "hidden = [5,6]"):
            self.assertIn(line, text)
        other = self.printed("--config", config, "--optimizer", "sgd", "--replay.memory", "reservoir")
        self.assertNotIn("beta1", other)
        self.assertIn('memory = "reservoir"', other)

    def test_a_memory_of_the_file_stays_when_a_flag_names_the_strategies(self):
        config = self.folder / "run.toml"
        config.write_text('strategies = "replay"\n[strategy.replay]\nmemory = "ring"\nby = "class"\ncapacity = 60\n')
        text = self.printed("--config", config, "--strategy", "lwf,replay")
        for line in ('strategies = "lwf,replay"', 'memory = "ring"', 'by = "class"', "capacity = 60"):
            self.assertIn(line, text)

    def test_every_option_of_every_component_is_taken_from_the_shell_and_from_a_file(self):
        def check(choice, entry, flag):
            before = self.printed(*choice)
            flags = [f"{flag(option)}={option['default']}" for option in entry["options"]]
            self.assertEqual(self.printed(*choice, *flags), before)
            config = self.folder / "run.toml"
            config.write_text(before)
            self.assertEqual(self.printed("--config", config), before)

        everything = json.loads(self.succeed("list", "--json"))
        for family in ("streams", "strategies", "models", "optimizers"):
            for entry in everything[family]:
                if "options" in entry:
                    singular = {"strategies": "strategy"}.get(family, family[:-1])
                    check([f"--{singular}", entry["name"]], entry, lambda option: option["flag"])
        for entry in everything["memories"]:
            check(["--strategy", "replay", "--replay.memory", entry["name"]], entry,
                  lambda option: f"--replay.{option['name']}")

    def test_numbers_and_texts_of_any_kind_survive_a_file(self):
        odd = "tab\tline\nquote\"back\\slash del\x7f caf\u00e9 #=[]"
        values = {"--lr": ("1e-08", "1e-8"), "--weight-decay": ("1.2345678901234567e+19", "12345678901234567168"),
                  "--data": (None, odd)}
        flags = [f"{flag}={value}" for flag, (_, value) in values.items()]
        config = self.folder / "run.toml"
        first = self.printed(*flags)
        for written, _ in values.values():
            self.assertIn(written or "", first)
        config.write_text(first)
        self.assertEqual(self.printed("--config", config), first)
        self.assertEqual(json.loads(next(line for line in first.splitlines() if line.startswith("data = "))[7:]), odd)

    def test_spellings_of_a_flag_are_the_same(self):
        self.assertEqual(self.succeed("run", "--print_config"), self.succeed("run", "--print-config"))
        first = self.printed("--batch-size", 7, "--strategy", "replay", "--replay.batch", 3)
        for flag in ("--batch_size", "--training.batch-size", "--training.batch_size"):
            self.assertEqual(self.printed(f"{flag}=7", "--strategies=replay", "--strategy.replay.batch=3"), first)
        self.assertEqual(self.printed("--nesterov"), self.printed("--optimizer.nesterov", "true"))

    def test_the_example_of_the_documentation_runs(self):
        out = self.folder / "results.jsonl"
        self.succeed(
            "run", "--stream", "split_digits", "--experiences", 5, "--scenario", "class", "--strategy", "replay,lwf",
            "--replay.memory", "reservoir", "--replay.capacity", 500, "--replay.batch", 10, "--lwf.strength", 0.5,
            "--model", "mlp", "--model.hidden", "400,400", "--model.init", "xavier", "--normalize", "none",
            "--optimizer", "sgd", "--lr", 0.05, "--epochs", 1, "--batch-size", 10, "--seeds", 2, "--first-seed", 0,
            "--threads", 1, "--device", "cpu", "--data", DIGITS[3], "--out", out,
        )
        self.assertEqual(len(out.read_text().splitlines()), 14)

    def test_every_component_is_listed_and_has_help_with_all_its_options(self):
        everything = json.loads(self.succeed("list", "--json"))
        self.assertEqual(list(everything), ["streams", "strategies", "models", "memories", "optimizers", "metrics"])
        for family, entries in everything.items():
            self.assertEqual(json.loads(self.succeed("list", family, "--json"))[family], entries)
            plain = self.succeed("list", family)
            for entry in entries:
                self.assertIn(entry["name"], plain)
                self.assertTrue(entry["about"], entry["name"])
                text = self.succeed("help", entry["name"])
                self.assertIn(entry["about"], text)
                for option in entry.get("options", []):
                    self.assertIn(f"{option['flag']} (default", text)
                    self.assertIn(option["help"], text)
                    self.assertIn(option["values"], text)

    def test_every_strategy_model_and_optimizer_runs_by_name(self):
        everything = json.loads(self.succeed("list", "--json"))
        for strategy in everything["strategies"]:
            self.succeed("run", *DIGITS, "--strategy", strategy["name"])
        for optimizer in everything["optimizers"]:
            self.succeed("run", *DIGITS, "--optimizer", optimizer["name"])
        for memory in everything["memories"]:
            self.succeed("run", *DIGITS, "--strategy", "replay", "--replay.memory", memory["name"])
        for stream in ("permuted_digits", "rotated_digits"):
            self.succeed("run", "--stream", stream, *DIGITS[2:], "--experiences", 2)

    def test_help_of_a_run_shows_the_options_of_what_it_uses(self):
        text = self.succeed("run", "--strategy", "replay", "--optimizer", "adam", "--help")
        for flag in ("--replay.capacity", "--beta1", "--experiences", "--epochs", "--evaluation.outputs", "--print-config"):
            self.assertIn(f"  {flag}", text)
        for command in ("run", "list", "reproduce", "quickstart"):
            self.assertIn("usage:", self.succeed(command, "--help"))
        self.assertIn("usage:", self.succeed("--help"))

    def test_the_page_of_options_is_up_to_date(self):
        page = (SOURCE / "docs/options.md").read_text()
        self.assertEqual(page, self.succeed("list", "--markdown"), "write it anew: pawl-bench list --markdown > docs/options.md")


if __name__ == "__main__":
    unittest.main()
