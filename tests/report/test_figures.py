"""The pictures exist for what was measured, say what they show, and come out the same twice."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from lowregret.report.figures import draw_learning_curves, draw_training_loss, write_figures
from lowregret.store import RunDirectory


def texts(svg: Path) -> list[str]:
    root = ElementTree.parse(svg).getroot()
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_run_gives_its_figures_as_png_and_svg(make_run) -> None:
    run = make_run()
    written = write_figures(run)
    names = ["learning_curves.png", "learning_curves.svg", "training_loss.png", "training_loss.svg"]
    assert [path.name for path in written] == names
    assert all(path.parent == run.figures for path in written)
    for png in written[::2]:
        header = png.read_bytes()[:24]
        width, height = int.from_bytes(header[16:20]), int.from_bytes(header[20:24])
        assert header.startswith(b"\x89PNG")
        assert width >= 1200
        assert height >= 700
    said = texts(run.figures / "learning_curves.svg")
    assert "held-out NLL (nats per token)" in said
    assert {"validation", "test", "base model", "optimizer steps (log scale)"} <= set(said)
    assert said.count("r8") == 2  # In the legend and at the end of its line.


def test_a_sweep_adds_the_learning_rate_figure_and_names_what_diverged(make_run, sweep) -> None:
    run = make_run(sweep, diverged="r64-lr0.003", also=("gsm8k",))
    names = {path.stem for path in write_figures(run)}
    assert names == {"learning_curves", "training_loss", "learning_rates", "further_data"}
    said = texts(run.figures / "learning_rates.svg")
    assert {"rank 1", "rank 8", "rank 64", "final test NLL (nats per token)"} <= set(said)
    assert any("rank 64 diverged" in text for text in said)
    assert texts(run.figures / "further_data.svg").count("gsm8k") == 1


def test_a_rate_that_was_stopped_early_is_not_called_diverged(make_run, sweep) -> None:
    run = make_run(sweep, stopped="r64-lr0.003")
    write_figures(run)
    said = texts(run.figures / "learning_rates.svg")
    assert any("rank 64 stopped early" in text for text in said)
    assert not any("diverged" in text for text in said)


def test_the_same_rows_give_the_same_files(make_run) -> None:
    first = [path.read_bytes() for path in write_figures(make_run())]
    assert first == [path.read_bytes() for path in write_figures(make_run(name="again"))]


def test_lines_carry_the_logged_values(make_run) -> None:
    run = make_run()
    figure = draw_learning_curves(run.read_evals(), run.plan)
    assert figure is not None
    drawn = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in figure.axes[1].get_lines()}
    logged = [row.nll for row in run.read_evals() if (row.slot, row.split) == ("r64", "test")]
    assert drawn["r64"] == logged
    assert set(drawn["base model"]) == {1.464}


def test_nothing_is_drawn_of_nothing(make_run) -> None:
    run = make_run()
    assert draw_learning_curves((), run.plan) is None
    assert draw_training_loss((), run.plan) is None
    with RunDirectory.open(run.path) as emptied:
        emptied.truncate_logs(-1)
    assert write_figures(emptied) == ()


def test_a_model_or_slot_name_is_no_markup(make_run, hostile) -> None:
    run = make_run(also=("$x_{1$ <b>",), text=hostile)
    write_figures(run)
    assert re.search(r"&lt;b&gt;", (run.figures / "further_data.svg").read_text())


def test_report_rooms_import_without_torch() -> None:
    program = (
        "import sys, lowregret.report.figures, lowregret.report.html, lowregret.report.tables;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == 0
