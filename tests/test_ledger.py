"The ledger can't go stale: what it says of settings is what the recipes hold."

from dataclasses import replace

import pytest

from hyperclip_nb.evaluation.ledger import LEDGER, Line, covered, here, ledger_table, value_at
from hyperclip_nb.evaluation.overrides import differences, find, settings_of
from hyperclip_nb.evaluation.presets import PRESETS
from hyperclip_nb.evaluation.recipe import PAPER, Recipe

KNOWN = {path.partition(".")[0] for path in settings_of(PAPER, everything=True)} | {
    *settings_of(PAPER, everything=True)
}


def test_a_line_is_about_settings_that_exist():
    assert {path for line in LEDGER for path in line.settings} <= KNOWN
    assert len({line.what for line in LEDGER}) == len(LEDGER)
    paths = [path for line in LEDGER for path in line.settings]
    assert len({*paths}) == len(paths), "two lines about one setting"


@pytest.mark.parametrize("other", ["scenes", "paper rows"])
def test_every_difference_from_the_preset_paper_has_a_line(other):
    recipe = Recipe() if other == "scenes" else PRESETS["scenes"].paper
    paths = [text.partition("=")[0] for text in differences(PAPER, recipe)]
    assert len(paths) > 20 and [path for path in paths if not covered(LEDGER, path)] == []


def test_every_departure_from_the_paper_is_known_and_says_what_was_measured():
    "A new one must be added here, with its line; one that is gone must go."
    departures = {line.what for line in LEDGER if line.departs}
    assert departures == {
        "denoiser of HyperLDM",
        "form of the HVAE",
        "views of a task",
        "averages of parameters (EMA)",
    }
    for line in LEDGER:
        assert line.effect and (line.settings or line.here) and "|" not in line.effect, line.what


def test_what_is_done_here_is_read_from_the_recipes():
    line = Line(what="x", settings={"hvae.latent_size": 128, "views": 100, "hnet": PAPER.hnet}, effect="-")
    assert here(line, PAPER, Recipe()).startswith("`hvae.latent_size=128`, `views=100`, `hnet`: 27,000 steps")
    assert not line.departs
    other = replace(PAPER, views=7)
    assert "**`views=7`**" in here(line, other, PAPER) and value_at(other, "views") == 7
    assert find("hvae.latent_size", list(settings_of(PAPER))) == "hvae.latent_size"


def test_the_table_has_a_row_for_each_line_departures_first():
    rows = ledger_table().splitlines()[2:]
    assert len(rows) == len(LEDGER) and all(row.count(" | ") == 5 for row in rows)
    first = [row.split("|")[1].strip() for row in rows[:4]]
    assert {*first} == {line.what for line in LEDGER if line.departs}
