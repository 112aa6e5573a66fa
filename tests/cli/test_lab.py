"""`negah lab` refuses what cannot be meant, and says which."""

import pytest

from negah.cli.lab import Lab
from negah.errors import InputError
from negah.lab import adversarial, gradient
from negah.lab.page import Page


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "collapse", "full": True}, "collapse has no --full"),
        ({"name": "universal", "full": True, "steps": 100}, "leave out --steps"),
        ({"name": "adversarial", "full": True}, "give --data"),
        ({"name": "adversarial", "steps": 0}, "--steps 0: give 10 or more"),
        ({"name": "gradient", "data": ("pictures",)}, "gradient looks at vectors .* leave out --data"),
        ({"name": "gradient", "full": True}, "leave out --full"),
        ({"name": "describe", "full": True}, "describe has no --full"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, options, says):
    with pytest.raises(InputError, match=says):
        Lab(out=tmp_path, **options).run()


def test_each_experiment_has_steps_of_its_own(tmp_path, monkeypatch, capsys):
    seen = []

    def run(out, effort):
        seen.append((effort.steps, effort.batch, effort.full))
        return Page("toy", "A question?", out, {})

    monkeypatch.setattr(adversarial, "run", run)
    Lab(name="adversarial", out=tmp_path).run()
    Lab(name="adversarial", out=tmp_path, steps=20, batch=8).run()
    Lab(name="adversarial", out=tmp_path, full=True).run()
    monkeypatch.setattr(gradient, "run", run)
    Lab(name="gradient", out=tmp_path).run()
    assert seen == [(500, 64, False), (20, 8, False), (500, 64, True), (100, 64, False)]
    assert f"page: {tmp_path / 'index.html'}" in capsys.readouterr().out
