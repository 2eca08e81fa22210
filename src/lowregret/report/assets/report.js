"use strict";
// Draws the charts of a run from the JSON in #chart-data. Colours follow the page's light or dark theme.
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const state = {split: data.heldOut.some(part => part.split === "test") ? "test" : data.heldOut[0]?.split, log: true};

  const TOOLS = ["zoom2d", "pan2d", "resetScale2d", "toImage"];
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const color = slot => data.styles[slot][dark.matches ? "dark" : "light"];
  const line = slot => ({color: color(slot), dash: data.styles[slot].dash, width: 2.2});
  const position = curve => state.log ? curve.x : curve.steps;

  const ends = () => state.log ? [data.ticks.at[0], data.last] : [0, data.last];

  const stepAxis = () => state.log
    ? {type: "log", tickvals: data.ticks.at, ticktext: data.ticks.text, title: {text: "optimizer steps (log scale)"}}
    : {type: "linear", title: {text: "optimizer steps"}};

  function draw(id, traces, xaxis, ytitle, log = false) {
    const place = document.getElementById(id);
    if (!place) return;
    const axis = {gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true};
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: {l: 64, r: 16, t: 30, b: 48},
      font: {color: css("--text"), family: getComputedStyle(document.body).fontFamily, size: 13},
      hoverlabel: {bgcolor: css("--card"), bordercolor: css("--line"), font: {color: css("--text")}},
      hovermode: "x unified", modebar: {bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent")},
      // Held by the container and not the plot, so that two rows of names can't run into the axis title.
      legend: {orientation: "h", yref: "container", y: 0, yanchor: "bottom"},
      xaxis: {...axis, ...xaxis}, yaxis: {...axis, type: log ? "log" : "linear", title: {text: ytitle}},
    };
    Plotly.react(place, traces, layout, {responsive: true, displaylogo: false, modeBarButtons: [TOOLS]});
  }

  function heldOut() {
    const part = data.heldOut.find(part => part.split === state.split);
    if (!part) return;
    const traces = part.curves.map(curve => ({
      name: curve.slot, x: position(curve), y: curve.values, mode: "lines+markers", line: line(curve.slot),
      marker: {size: 6}, customdata: curve.steps, hovertemplate: "%{y:.4f}, step %{customdata}",
    }));
    if (part.base !== null) {
      traces.push({
        name: "base model", x: ends(), y: [part.base, part.base], mode: "lines", hovertemplate: "%{y:.4f}",
        line: {color: css("--soft"), dash: "dash", width: 1.4},
      });
    }
    draw("held-out", traces, stepAxis(), `${part.split} ${data.heldOutLabel}`);
  }

  function series(part) {
    const traces = part.curves.flatMap(curve => [
      {
        x: position(curve), y: curve.raw, mode: "lines", line: {color: color(curve.slot), width: 1}, opacity: 0.22,
        legendgroup: curve.slot, showlegend: false, hoverinfo: "skip",
      },
      {
        name: curve.slot, x: position(curve), y: curve.values, mode: "lines", line: line(curve.slot),
        legendgroup: curve.slot, customdata: curve.steps, hovertemplate: "%{y:.4f}, step %{customdata}",
      },
    ]);
    const lines = (part.levels || []).map(level => ({
      name: level.name, x: ends(), y: [level.value, level.value], mode: "lines", hovertemplate: "%{y:,.0f}",
      line: {color: color(level.slot), dash: "dot", width: 1.4},
    }));
    draw(part.id, [...traces, ...lines], stepAxis(), part.label, part.log);
  }

  function rates() {
    const traces = data.rates.map(curve => ({
      name: curve.label, x: curve.rates, y: curve.values, mode: "lines+markers",
      line: {color: color(curve.slots[0]), width: 2.2}, marker: {size: 8},
      customdata: curve.slots, hovertemplate: "%{y:.4f}, %{customdata}",
    }));
    const values = [...new Set(data.rates.flatMap(curve => curve.rates))].sort((a, b) => a - b);
    const axis = {type: "log", tickvals: values, ticktext: values.map(value => value.toExponential()),
      title: {text: "learning rate (log scale)"}};
    draw("rates", traces, axis, "final test NLL (nats per token)");
  }

  function buttons(id, choices, chosen, choose) {
    const place = document.getElementById(id);
    place.replaceChildren(...choices.map(([value, text]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.setAttribute("aria-pressed", String(value === chosen));
      button.addEventListener("click", () => { choose(value); drawAll(); });
      return button;
    }));
  }

  function drawAll() {
    buttons("splits", data.heldOut.map(part => [part.split, part.split]), state.split, value => { state.split = value; });
    buttons("axis", [[true, "log steps"], [false, "linear steps"]], state.log, value => { state.log = value; });
    heldOut();
    data.series.forEach(series);
    rates();
  }

  drawAll();
  dark.addEventListener("change", drawAll);
})();
