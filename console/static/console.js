// Keeps the page current: replaces parts that changed, draws the charts, sends the verbs.
// Every part arrives as HTML that the server escaped; the content security policy lets no other script run.
"use strict";

const rows = [];
const CHARTS = [
  { id: "chart-reward", series: [{ field: "reward", mode: "lines" }] },
  { id: "chart-accuracy", percent: true, series: [
    { field: "accuracy", mode: "markers", name: "trained" },
    { field: "validation_accuracy", mode: "lines+markers", name: "held-out" }] },
  { id: "chart-length", floor: true, series: [{ field: "length", mode: "lines" }] },
  { id: "chart-clip", percent: true, series: [{ field: "clip_ratio", mode: "lines", fill: true }] },
];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function boundaries() {
  const found = [];
  for (const row of rows) {
    // Row 0 is the validation before the first iteration; it belongs to no stage.
    if (row.iteration >= 1 && (found.length === 0 || found.at(-1).stage !== row.stage)) {
      found.push({ at: row.iteration, stage: row.stage });
    }
  }
  return found;
}

function span() {
  const iterations = rows.map((row) => row.iteration);
  return iterations.length ? [Math.min(...iterations) - 0.5, Math.max(...iterations, 10) + 0.5] : [0, 10];
}

function layout(chart) {
  const ink = colour("--quiet"), line = colour("--line");
  const axis = { gridcolor: line, zeroline: false, linecolor: line, tickfont: { color: ink, size: 11 }, fixedrange: true };
  const changes = boundaries();
  return {
    margin: { l: 46, r: 10, t: 18, b: 26 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", color: ink },
    showlegend: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: colour("--card"), bordercolor: line, font: { color: colour("--ink"), size: 12 } },
    xaxis: { ...axis, showgrid: false, range: span() },
    yaxis: { ...axis, tickformat: chart.percent ? ".0%" : "", rangemode: chart.percent || chart.floor ? "tozero" : "normal" },
    shapes: changes.slice(1).map((change) => ({
      type: "line", x0: change.at - 0.5, x1: change.at - 0.5, yref: "paper", y0: 0, y1: 1,
      line: { color: ink, width: 1, dash: "dot" },
    })),
    annotations: changes.map((change) => ({
      x: change.at, xanchor: "left", yref: "paper", y: 1, yanchor: "bottom", text: escapeText(change.stage),
      showarrow: false, font: { size: 11, color: ink },
    })),
  };
}

function escapeText(text) {
  return text.replace(/[&<>]/g, (character) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[character]);
}

function traces(chart) {
  const accent = colour("--accent"), soft = colour("--soft"), faded = colour("--faded");
  return chart.series.map((series, number) => {
    const known = rows.filter((row) => series.field in row);
    const faint = chart.series.length > 1 && number === 0;
    return {
      type: "scatter", mode: series.mode, name: series.name || "", hovertemplate: "%{y}",
      x: known.map((row) => row.iteration), y: known.map((row) => row[series.field]),
      line: { color: accent, width: 2 }, marker: { color: faint ? faded : accent, size: faint ? 4 : 6 },
      fill: series.fill ? "tozeroy" : "none", fillcolor: soft,
    };
  });
}

function draw() {
  if (typeof Plotly === "undefined") {
    return;
  }
  for (const chart of CHARTS) {
    Plotly.react(chart.id, traces(chart), layout(chart), { displayModeBar: false, responsive: true });
  }
}

function show(id, text) {
  const element = document.getElementById(id);
  element.textContent = text;
  element.hidden = !text;
}

function apply(changes) {
  for (const [name, html] of Object.entries(changes.parts || {})) {
    const part = document.getElementById(name);
    const focused = part.contains(document.activeElement) ? document.activeElement.closest("form") : null;
    if (part.innerHTML !== html) {
      part.innerHTML = html;
      if (focused) {
        const again = part.querySelector(`form[action="${focused.getAttribute("action")}"] button`) || part.querySelector("button");
        if (again) {
          again.focus();
        }
      }
    }
  }
  if (changes.rows) {
    rows.splice(changes.first_row, Infinity, ...changes.rows);
    draw();
  }
  show("link", changes.problem ? `The run does not answer: ${changes.problem}` : "");
}

async function act(event) {
  const form = event.target.closest("form[action^='/verbs/']");
  if (!form) {
    return;
  }
  event.preventDefault();
  form.querySelector("button").disabled = true;
  try {
    const answer = await fetch(form.action, { method: "POST", headers: { Accept: "application/json" } });
    show("said", (await answer.json()).message);
  } catch (error) {
    show("said", "The console does not answer.");
  }
}

document.addEventListener("submit", act);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
const stream = new EventSource("/stream");
stream.onmessage = (message) => apply(JSON.parse(message.data));
stream.onerror = () => show("link", "The console does not answer; trying again.");
document.addEventListener("DOMContentLoaded", draw);
