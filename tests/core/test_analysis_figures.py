"""Figures and the page: nothing clipped, nothing missing, nothing from elsewhere."""

import errno
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from ase.data import chemical_symbols

pytest.importorskip("matplotlib")

from changes import change_with, random_change
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import rgb_to_hsv
from matplotlib.figure import Figure

from e3sparse.analysis import figures, group_table
from e3sparse.analysis.causality import Ablation
from e3sparse.analysis.heatmap import Scale
from e3sparse.analysis.periodic_table import place
from e3sparse.analysis.report import PAGE, write_report
from e3sparse.errors import ConfigError, E3SparseError

pytestmark = pytest.mark.any_e3nn


def ablation_of(change):
    """Return what an ablation could have found, without a model."""
    table = group_table(change)
    share = np.linspace(-0.05, 0.4, len(table))
    table = table.assign(
        forces_mae=50 + 100 * share,
        carried=share,
        carried_low=share - 0.1,
        carried_high=share + 0.1,
    )
    return Ablation(table, before=150.0, after=50.0, frames=12)


def changes(count=3):
    """Return changes of several methods; the first is sparse."""
    made = [
        random_change("all", "budget", seed=1, target_sparsity=0.9, trained_on=(1, 8)),
        random_change("all", "low_rank", seed=2, trained_on=(1, 8)),
        random_change("all", "dense", seed=3),
        *(random_change("linear", "budget", seed=s) for s in range(4, 8)),
    ]
    return made[:count]


DRAWN = {
    "species": figures.species_heatmap,
    "channels": figures.channel_heatmap,
    "periodic": figures.periodic_map,
    "depth": figures.sparsity_by_depth,
    "ablation": lambda made: figures.ablation(ablation_of(made[0]), made[0].name),
}


def clipped(figure):
    """Return at which edges something is drawn up to the last pixel."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    dark = np.asarray(canvas.buffer_rgba())[..., :3].min(axis=2) < 250
    edges = {"top": dark[0], "bottom": dark[-1], "left": dark[:, 0], "right": dark[:, -1]}
    return [name for name, pixels in edges.items() if pixels.any()]


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_clipped(name, count):
    assert clipped(DRAWN[name](changes(count))) == []


def test_the_control_sees_clipped_text():
    figure = Figure(figsize=(2, 2))
    figure.text(0.1, 0.9, "fits")
    assert clipped(figure) == []
    # Of letters, a gap may lie at the edge.
    figure.text(0.9, 0.5, "—" * 20)
    assert clipped(figure) == ["right"]


@pytest.mark.parametrize("name", ["species", "channels", "periodic"])
def test_panels_share_one_colour_scale(name):
    made = changes(2)
    # One scale for both: a panel alone would spread its own values over all colours.
    small = change_with(
        lambda deltas: [delta.fill_(1e-3) for delta in deltas.values()], name="small"
    )
    figure = DRAWN[name]([made[1], small])
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert len(bars) == 1
    light = [
        np.mean([rgb_to_hsv(p.get_facecolor()[:3])[2] for p in axes.patches])
        for axes in figure.axes
        if axes.get_label() != "<colorbar>"
    ]
    assert light[1] > light[0]


def test_colours_are_told_apart_in_grey():
    scale = Scale.of([1e-4, 1.0])
    colors = [scale.color(v)[:3] for v in np.logspace(-4, 0, 40)]
    luminance = [0.3 * r + 0.59 * g + 0.11 * b for r, g, b in colors]
    assert (np.diff(luminance) < 0).all()


def test_nothing_is_drawn_by_element_without_an_axis_over_elements():
    made = [random_change("mixed")]
    assert figures.species_heatmap(made) is None
    assert figures.periodic_map(made) is None


def test_every_element_has_a_place_of_its_own():
    places = {z: place(z) for z in range(1, 119)}
    assert len(set(places.values())) == 118
    same_column = [("H", "Fr"), ("Be", "Ra"), ("Sc", "Lr"), ("Fe", "Hs"), ("C", "Fl"), ("He", "Og")]
    for one, other in same_column:
        assert places[chemical_symbols.index(one)][1] == places[chemical_symbols.index(other)][1]
    assert places[57][0] == places[70][0] == 8
    with pytest.raises(ValueError, match="119"):
        place(119)


@pytest.mark.parametrize(
    ("layers", "names"),
    [(["embedding", "readout"], ["input"]), (["embedding", "radial.layer0"], ["input", "1"])],
)
def test_depths_are_called_after_the_layers(layers, names):
    (axes,) = figures.sparsity_by_depth([random_change(layers, "dense")]).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == names


class Page(HTMLParser):
    """What a page refers to, its ids, and the text of its tables."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with everything in it."""
    folder = tmp_path_factory.mktemp("report") / "out"
    made = changes(3)
    write_report(made, folder, ablations={made[0].name: ablation_of(made[0])})
    return folder


def test_the_page_needs_nothing_else(report):
    text = (report / PAGE).read_text()
    page = Page(text)
    assert len(page.tags) > 100
    outside = [link for link in page.links if not link.startswith(("#", "data:image/png;base64,"))]
    assert outside == []
    assert "script" not in page.tags
    assert not re.search(r"url\((?!#)", text)
    # Ids of several figures on one page must not meet: each would draw the other's glyphs.
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert page.tags.count("svg") == len(DRAWN)


def test_ranks_of_noise_are_called_so(tmp_path):
    made = changes(1)
    clear = ablation_of(made[0])
    noisy = replace(clear, table=clear.table.assign(carried_low=-1.0, carried_high=1.0))
    # A share that grows with the change, so that the correlation alone would say too much.
    said = {}
    for name, found in (("clear", clear), ("noisy", noisy)):
        order = found.table["one_minus_r2"].fillna(0).rank() / 100
        table = found.table.assign(carried=order)
        if name == "clear":
            table = table.assign(carried_low=order - 0.001, carried_high=order + 0.001)
        found = replace(found, table=table)
        page = write_report(made, tmp_path / name, ablations={made[0].name: found})
        said[name] = page.read_text()
    assert "ranks noise" in said["noisy"]
    assert "larger changes carry more" in said["clear"]
    assert "ranks noise" not in said["clear"]


def test_figures_and_tables_lie_beside_it(report):
    names = {path.name for path in (report / "figures").iterdir()}
    assert names == {
        f"{n}.{s}" for n in {*DRAWN, "ablation0"} - {"ablation"} for s in ("png", "svg")
    }
    blocks = pd.read_csv(report / "tables" / "blocks.csv")
    assert set(blocks["change"]) == {change.name for change in changes(3)}
    assert {"irreps_in", "irreps_in2", "irreps_out", "updated", "relative", "one_minus_r2"} <= set(
        blocks.columns
    )
    pairs = pd.read_csv(report / "tables" / "pairs.csv")
    assert len(pairs) == 3


def test_the_page_says_what_is_exact_and_what_is_not(report):
    text = (report / PAGE).read_text()
    # Low rank on H and O moved carbon's weights; the third was trained on all elements.
    assert "weights of absent elements are no longer the base model" in text
    assert "the training frames have all elements of the model" in text
    held = change_with(lambda deltas: None, trained_on=(1,))
    write_report([held], report.parent / "held")
    assert "are exactly the base model&#39;s" in (report.parent / "held" / PAGE).read_text()


def test_a_folder_that_is_no_report_is_left_alone(tmp_path):
    made = changes(1)
    (tmp_path / "mine.txt").write_text("kept")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is not the folder of a report"):
            write_report(made, tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_report_is_replaced_only_on_request(tmp_path):
    out = tmp_path / "out"
    write_report(changes(3), out)
    before = (out / PAGE).read_bytes()
    with pytest.raises(ConfigError, match="--overwrite"):
        write_report(changes(1), out)
    assert (out / PAGE).read_bytes() == before
    write_report(changes(1), out, overwrite=True)
    assert not (out / "tables" / "pairs.csv").exists()


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_report_that_is_replaced_costs_nobody_a_file(tmp_path):
    out = tmp_path / "out"
    write_report(changes(1), out)
    (out / "figures" / "mine.png").write_text("mine")
    (out / "notes.txt").write_text("mine")
    write_report(changes(3), out, overwrite=True)
    assert (out / "figures" / "mine.png").read_text() == "mine"
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "tables" / "pairs.csv").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_page_and_figures_of_somebody_else_are_no_report(tmp_path):
    (tmp_path / PAGE).write_text("mine")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "mine.png").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="is not the folder of a report"):
        write_report(changes(1), tmp_path, overwrite=True)
    assert contents(tmp_path) == before


def test_a_report_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_report(changes(3), out)
    before = contents(out)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(E3SparseError, match="No space is left"):
        write_report(changes(1), out, overwrite=True)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
