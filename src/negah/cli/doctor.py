"""`negah doctor`."""

from dataclasses import dataclass

from negah.cli import show

NO_ROOM = ("all", "dev", "ray")  # extras that open no room: all of them, what developers use, and one kept for later


@dataclass
class Doctor(show.Verb):
    """Say what is installed and bundled, what it runs on, and how to add what is missing.

    Nothing is downloaded. The exit status is 0 on a sound install, and 2 when something stops a survey from running.

    Example:
        negah doctor
        negah doctor --json > doctor.json
    """

    def run(self) -> int:
        from negah.runs.doctor import checkup

        found = checkup()
        if self.json:
            show.as_json(found)
            return 2 if found.problems else 0
        show.table(
            [
                ("negah", found.negah),
                ("Python", f"{found.python} on {found.system}"),
                *found.gdal.items(),
                *((name, version) for name, version in found.libraries.items() if version),
            ],
            title="Versions",
        )
        show.table(
            [
                (d.kind, d.name, show.size(d.memory), "bf16" if d.bf16 else "no bf16", " ".join(d.features))
                for d in found.devices
            ],
            header=("device", "", "memory", "", ""),
            title=f"Devices ({found.threads} CPU cores may be used)",
        )
        show.table(
            [(b.name, show.size(b.size), "" if b.card else "without a card") for b in found.bundled]
            or [("nothing", "", "")],
            header=("model", "size", ""),
            title="Bundled",
        )
        show.table(
            [(p.what, p.path, show.size(p.free)) for p in found.places],
            header=("", "folder", "free"),
            title="Disk space",
        )
        if extras := [extra for extra in found.extras if extra.name not in NO_ROOM]:
            show.table(
                [(e.name, ", ".join(e.missing) or "complete", e.add if e.missing else "") for e in extras],
                header=("extra", "missing", "add it with"),
                title="Extras",
            )
        for problem in found.problems:
            show.error(problem)
        if not found.problems:
            print("All is well: `negah survey` can run here.")
        return 2 if found.problems else 0
