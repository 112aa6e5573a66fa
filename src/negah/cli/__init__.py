"""The command line: one small file per verb, each a dataclass (`negah.cli.show.Verb`) that parses, calls runs, prints."""
