"""The command line: one small file per verb, each a dataclass (`show.Verb`) that parses, calls runs, prints."""
