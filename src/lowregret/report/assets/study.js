"use strict";
// Draws every chart of a study from the JSON in #chart-data. Colours follow the page's light or dark theme.
(() => {
  const charts = JSON.parse(document.getElementById("chart-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const TOOLS = ["zoom2d", "pan2d", "resetScale2d", "toImage"];
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function band(series, color) {
    if (series.low.every((value, k) => value === series.high[k])) return [];
    return [{
      x: [...series.x, ...[...series.x].reverse()], y: [...series.high, ...[...series.low].reverse()],
      fill: "toself", fillcolor: color, opacity: 0.14, line: {width: 0}, mode: "lines",
      hoverinfo: "skip", showlegend: false, legendgroup: series.name,
    }];
  }

  function draw(chart) {
    const traces = chart.series.flatMap(series => {
      const color = series[dark.matches ? "dark" : "light"];
      return [...band(series, color), {
        name: series.name, x: series.x, y: series.y, mode: "lines+markers", legendgroup: series.name,
        line: {color, dash: series.dash, width: 2.2}, marker: {size: 6, color}, customdata: series.note,
        hovertemplate: "%{y:.4f} at %{x:.4g}, %{customdata}",
      }];
    });
    const axis = {gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true};
    const ticks = chart.ticks.length
      ? {tickvals: chart.ticks.map(tick => tick[0]), ticktext: chart.ticks.map(tick => tick[1])} : {};
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: {l: 64, r: 16, t: 30, b: 48},
      font: {color: css("--text"), family: getComputedStyle(document.body).fontFamily, size: 13},
      hoverlabel: {bgcolor: css("--card"), bordercolor: css("--line"), font: {color: css("--text")}},
      modebar: {bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent")},
      legend: {orientation: "h", yref: "container", y: 0, yanchor: "bottom"},
      xaxis: {...axis, ...ticks, type: chart.x_log ? "log" : "linear", title: {text: chart.x_title}},
      yaxis: {...axis, title: {text: chart.y_title}},
    };
    Plotly.react(chart.key, traces, layout, {responsive: true, displaylogo: false, modeBarButtons: [TOOLS]});
  }

  const drawAll = () => charts.forEach(draw);
  drawAll();
  dark.addEventListener("change", drawAll);
})();
