// The page's own script: it draws what Plotly is given, lets the front's axes be switched, and keeps clicked points.
"use strict";
const read = id => JSON.parse(document.getElementById(id).textContent);
const ink = () => getComputedStyle(document.body).color;
const options = {responsive: true, displaylogo: false};

function themed(layout) {
  const faint = "rgba(128,128,128,.3)";
  const axis = {gridcolor: faint, zerolinecolor: faint, automargin: true};
  return Object.assign({}, layout, {
    template: null, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {color: ink()}, margin: {t: 20, r: 10, b: 50, l: 60},
    legend: Object.assign({orientation: "h", y: 1.12}, layout.legend),
    xaxis: Object.assign({}, axis, layout.xaxis), yaxis: Object.assign({}, axis, layout.yaxis)});
}

// Indices of the points that no other beats: at most the cost and at least the worth.
function front(cost, worth, places) {
  const order = places.slice().sort((a, b) => cost[a] - cost[b] || worth[b] - worth[a]);
  const best = [];
  for (const i of order) if (!best.length || worth[i] > worth[best[best.length - 1]]) best.push(i);
  return best;
}

const data = read("front-data");
const chosen = name => document.getElementById(name).value;
const about = i => `capacity ${data.capacity[i]} (${data.test[i]})<br>` + data.recipes[data.recipe[i]].replaceAll(", ", "<br>");

function drawFront() {
  const cost = data.columns[chosen("cost")], worth = data.columns[chosen("worth")], test = chosen("test");
  const places = [...cost.keys()].filter(i => data.test[i] === test && cost[i] !== null && worth[i] !== null);
  const few = places.length <= 2000;
  const traces = data.recipes.length > 12 ? [["trials", places]] : data.recipes.map(
    (recipe, r) => [recipe, places.filter(i => data.recipe[i] === r)]);
  const differing = names => { // what tells the recipes apart, for the legend
    const parts = names.map(name => name.split(", "));
    return parts.map(own => own.filter(p => !parts.every(other => other.includes(p))).join(", ") || "points");
  };
  const labels = differing(traces.map(([name]) => name));
  const drawn = traces.map(([, mine], k) => ({
    type: few ? "scatter" : "scattergl", mode: few && places.length <= 60 ? "markers+text" : "markers", name: labels[k],
    x: mine.map(i => cost[i]), y: mine.map(i => worth[i]), customdata: mine,
    text: places.length <= 60 ? mine.map(i => `${data.capacity[i]}`) : undefined, textposition: "bottom right",
    hovertext: few ? mine.map(about) : undefined, hoverinfo: few ? "text+x+y" : "x+y",
    marker: {size: few ? 9 : 4, color: data.colours[k % data.colours.length]}}));
  const best = front(cost, worth, places);
  drawn.push({type: "scatter", mode: "lines", name: "front", x: best.map(i => cost[i]), y: best.map(i => worth[i]),
    line: {shape: "hv", width: 1, color: data.colours[6]}, hoverinfo: "skip"});
  Plotly.react("front", drawn, themed({
    hovermode: "closest", clickmode: "event", showlegend: true,
    xaxis: {title: {text: data.costs[chosen("cost")]}, type: "log"}, yaxis: {title: {text: data.worths[chosen("worth")]}}}),
    options);
}

const kept = new Set();
function keep(i) {
  if (kept.has(i)) return;
  kept.add(i);
  document.getElementById("kept").hidden = false;
  const row = document.querySelector("#kept tbody").insertRow();
  const cells = [data.capacity[i], data.test[i], ...Object.keys(data.costs).map(c => data.columns[c][i]),
    ...Object.keys(data.worths).map(w => data.columns[w][i]), data.recipes[data.recipe[i]]];
  for (const value of cells) row.insertCell().textContent = value ?? "–";
}

function drawAll() {
  drawFront();
  for (const source of document.querySelectorAll("script[data-figure]")) {
    const figure = JSON.parse(source.textContent);
    Plotly.react(source.dataset.figure, figure.data, themed(figure.layout), options);
  }
}

drawAll();
document.getElementById("front").on("plotly_click", event => {
  const place = event.points[0].customdata;
  if (place !== undefined) keep(place);
});
for (const name of ["cost", "worth", "test"]) document.getElementById(name).addEventListener("change", drawFront);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
document.documentElement.dataset.ready = "yes";
