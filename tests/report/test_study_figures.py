"""The printed figures of a study say what their charts hold, in words that a reader knows."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection

from lowregret.report.study_charts import charts_of
from lowregret.report.study_figures import draw_chart, write_study_figures
from report.simulated import claim_question, rank_question, ratio_question


def texts(svg: Path) -> set[str]:
    root = ElementTree.parse(svg).getroot()
    return {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}


def test_every_chart_becomes_png_and_svg_and_no_tick_is_markup(tmp_path: Path) -> None:
    drawn = [
        *charts_of(0, *rank_question(), first_pass_bits=6000.0),
        *charts_of(1, *claim_question("learning-rate", "C3")),
        *charts_of(2, *ratio_question()),
    ]
    written = write_study_figures(tuple(drawn), tmp_path)
    assert [path.name for path in written] == [f"{chart.key}.{end}" for chart in drawn for end in ("png", "svg")]
    for path in written[1::2]:
        assert not any("$" in text for text in texts(path)), path
    assert {"LoRA minus FullFT", "parity: \u00b10.005"} <= texts(tmp_path / "1-rank-regret.svg")
    assert {"alpha 32", "alpha = r", "2e-3", "5e-3"} <= texts(tmp_path / "2-learning-rate-best-rate.svg")
    assert {"30", "100", "300", "about 10: 5 to 20"} <= texts(tmp_path / "3-ratio-length.svg")


def test_marks_are_drawn_with_their_intervals() -> None:
    chart = next(one for one in charts_of(0, *rank_question()) if one.marks)
    (axes,) = draw_chart(chart).axes
    bars = [own for own in axes.collections if isinstance(own, LineCollection)]
    ends = [np.asarray(bar.get_segments()[0])[:, 0].tolist() for bar in bars]
    assert ends == [[mark.low, mark.high] for mark in chart.marks]
