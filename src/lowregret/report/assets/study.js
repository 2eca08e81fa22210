"use strict";
// Draws every chart of a study from the JSON in #chart-data. Colours follow the page's light or dark theme.
(() => {
  const charts = JSON.parse(document.getElementById("chart-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const TOOLS = ["zoom2d", "pan2d", "resetScale2d", "toImage"];
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shade = drawn => drawn[dark.matches ? "dark" : "light"];
  const spread = series => series.low.some((value, k) => value !== series.high[k]);

  function band(series) {
    if (series.kind !== "line" || !spread(series)) return [];
    return [{
      x: [...series.x, ...[...series.x].reverse()], y: [...series.high, ...[...series.low].reverse()],
      fill: "toself", fillcolor: shade(series), opacity: 0.14, line: {width: 0}, mode: "lines",
      hoverinfo: "skip", showlegend: false, legendgroup: series.name,
    }];
  }

  // Error bars are lengths, whatever the scale of the axis.
  const bars = (at, low, high, color) => ({
    type: "data", symmetric: false, array: at.map((value, k) => high[k] - value),
    arrayminus: at.map((value, k) => value - low[k]), color, thickness: 1.4, width: 4,
  });

  function line(series) {
    const color = shade(series);
    const guide = series.kind === "guide";
    const trace = {
      name: series.name, x: series.x, y: series.y, mode: guide ? "lines" : "lines+markers", legendgroup: series.name,
      line: {color, dash: series.dash, width: guide ? 1.4 : 2.2}, marker: {size: 6, color}, customdata: series.note,
      hovertemplate: guide ? "%{y:.4g}" : "%{y:.4g} at %{x:.4g}, %{customdata}",
    };
    if (series.kind === "bars" && spread(series)) trace.error_y = bars(series.y, series.low, series.high, color);
    return trace;
  }

  function diamond(mark) {
    const color = shade(mark);
    return {
      name: mark.name, x: [mark.x], y: [mark.y], mode: "markers", legendgroup: mark.name, showlegend: false,
      marker: {symbol: "diamond", size: 8, color}, error_x: bars([mark.x], [mark.low], [mark.high], color),
      customdata: [mark.note], hovertemplate: "%{customdata}",
    };
  }

  function level(one) {
    const across = one.axis === "y";
    const [far, near] = across ? ["x", "y"] : ["y", "x"];
    const flat = one.low === one.high;
    return {
      type: flat ? "line" : "rect", layer: "below", [`${far}ref`]: `${far} domain`, [`${far}0`]: 0, [`${far}1`]: 1,
      [`${near}0`]: one.low, [`${near}1`]: one.high, fillcolor: css("--soft"), opacity: flat ? 1 : 0.13,
      line: {color: css("--soft"), width: flat ? 1.4 : 0, dash: "dot"}, name: one.text, showlegend: true,
    };
  }

  const ticks = shown => shown.length
    ? {tickmode: "array", tickvals: shown.map(tick => tick[0]), ticktext: shown.map(tick => tick[1])} : {};

  // A shape at an end of the axis lies on the frame; a point that nobody sees makes room for it.
  const room = (one, chart) => one.axis === "y" || !chart.series.length ? [] : [{
    x: [one.low], y: [chart.series[0].y[0]], mode: "markers", opacity: 0, hoverinfo: "skip", showlegend: false,
  }];

  const title = text => ({text, font: {size: 13}});

  function draw(chart) {
    const traces = [
      ...chart.series.flatMap(series => [...band(series), line(series)]), ...chart.marks.map(diamond),
      ...chart.levels.flatMap(one => room(one, chart)),
    ];
    const axis = {gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true};
    const rows = Math.ceil(chart.series.length / 5);
    const place = document.getElementById(chart.key);
    place.style.height = `${25 + 1.2 * rows}rem`;
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: {l: 64, r: 16, t: 30, b: 48},
      font: {color: css("--text"), family: getComputedStyle(document.body).fontFamily, size: 13},
      hoverlabel: {bgcolor: css("--card"), bordercolor: css("--line"), font: {color: css("--text")}},
      modebar: {bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent")},
      legend: {orientation: "h", yref: "container", y: 0, yanchor: "bottom"},
      xaxis: {...axis, ...ticks(chart.x_ticks), type: chart.x_log ? "log" : "linear", title: title(chart.x_title)},
      yaxis: {...axis, ...ticks(chart.y_ticks), type: chart.y_log ? "log" : "linear", title: title(chart.y_title)},
      shapes: chart.levels.map(level), showlegend: true,
    };
    Plotly.react(place, traces, layout, {responsive: true, displaylogo: false, modeBarButtons: [TOOLS]});
  }

  const drawAll = () => charts.forEach(draw);
  drawAll();
  dark.addEventListener("change", drawAll);
})();
