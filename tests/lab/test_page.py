"""A page holds its plots, words and figures, and nothing that could be mistaken for markup."""

import json

import pytest

from negah.errors import OutputError
from negah.lab.page import Page, Panel, figure
from negah.lab.shapes import shapes


def panel(name: str = "first", rows=({"setting": "a <b>", "knn": 0.25}, {"setting": "c", "knn": 0.123456})) -> Panel:
    plot, (axis,) = figure()
    axis.plot([1, 2], [3, 4], label="a line")
    axis.legend()
    return Panel(name, "A title", "What if x < y?", "It is.", list(rows), plot, [shapes])


def test_a_page_shows_each_panel_and_its_figures(tmp_path):
    page = Page("toy", "A question?", tmp_path / "new" / "folder", {"steps": 3})
    page.add(panel())
    page.add(panel("second"))
    text = (page.out / "index.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 2 and "What if x &lt; y?" in text and "a &lt;b&gt;" in text
    assert "0.123<" in text and "steps 3" in text and "negah lab toy" in text
    assert "<code>negah.lab.shapes.shapes</code>" in text and "src/negah/lab/shapes.py" in text
    assert (page.out / "first.svg").stat().st_size > 1000 and (page.out / "second.svg").exists()
    record = json.loads((page.out / "results.json").read_text(encoding="utf-8"))
    assert record["panels"]["first"]["rows"][1] == {"setting": "c", "knn": 0.123456}
    assert record["settings"] == {"steps": 3} and record["versions"]["torch"]


def test_a_deviation_stands_beside_its_mean(tmp_path):
    page = Page("toy", "A question?", tmp_path, {})
    page.add(panel(rows=[{"setting": "a", "knn": 0.25, "knn ±": 0.0123}, {"setting": "b", "knn": 0.5}]))
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<td>0.25 ± 0.0123</td>" in text and "<td>0.5</td>" in text and "<th>knn ±</th>" not in text


def test_what_was_done_stays_when_an_experiment_is_stopped(tmp_path):
    page = Page("toy", "A question?", tmp_path, {})
    page.add(panel())
    assert "A title" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="another --out"):
        Page("toy", "A question?", tmp_path / "file", {}).add(panel())
