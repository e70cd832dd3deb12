// The front of a sweep: its axes can be switched, and clicked points are kept.
// Indices of the points that no other beats: at most the cost and at least the worth.
function front(cost, worth, places) {
  const best = [];
  for (const i of places.slice().sort((a, b) => cost[a] - cost[b] || worth[b] - worth[a]))
    if (!best.length || worth[i] > worth[best[best.length - 1]]) best.push(i);
  return best;
}

function unpacked(text, type) { // base64 of little-endian numbers
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return new type(bytes.buffer);
}

const data = read("front-data");
const columns = Object.fromEntries(Object.entries(data.columns).map(([name, text]) => [name, unpacked(text, Float32Array)]));
const capacity = unpacked(data.capacity, Float32Array), test = unpacked(data.test, Uint8Array);
const recipe = unpacked(data.recipe, Uint32Array), tests = Object.keys(data.tests);
const shown = value => Number.isNaN(value) ? "–" : `${Number(value.toPrecision(5))}`;
const chosen = name => document.getElementById(name).value;
const about = i => `capacity ${shown(capacity[i])} (${tests[test[i]]})<br>` + data.recipes[recipe[i]].replaceAll(", ", "<br>");

function drawFront() {
  const cost = columns[chosen("cost")], worth = columns[chosen("worth")], asked = tests.indexOf(chosen("test"));
  const known = new Uint32Array(cost.length);
  let count = 0;
  for (let i = 0; i < cost.length; i++) if (test[i] === asked && cost[i] === cost[i] && worth[i] === worth[i]) known[count++] = i;
  const places = known.slice(0, count), few = count <= 2000;
  const traces = data.recipes.length > 12 ? [["trials", places]] : data.recipes.map(
    (name, r) => [name, places.filter(i => recipe[i] === r)]);
  const differing = names => { // what tells the recipes apart, for the legend
    const parts = names.map(name => name.split(", "));
    return parts.map(own => own.filter(p => !parts.every(other => other.includes(p))).join(", ") || "points");
  };
  const labels = differing(traces.map(([name]) => name));
  const named = count <= 60, at = (column, mine) => Float32Array.from(mine, i => column[i]);
  const drawn = traces.map(([, mine], k) => ({
    type: few ? "scatter" : "scattergl", mode: named ? "markers+text" : "markers", name: labels[k],
    x: at(cost, mine), y: at(worth, mine), customdata: mine,
    text: named ? Array.from(mine, i => shown(capacity[i])) : undefined, textposition: "bottom right",
    hovertext: few ? Array.from(mine, about) : undefined, hoverinfo: few ? "text+x+y" : "x+y",
    marker: {size: few ? 9 : 4, color: data.colours[k % data.colours.length]}}));
  const best = front(cost, worth, places);
  drawn.push({type: "scatter", mode: "lines", name: "front", x: at(cost, best), y: at(worth, best),
    line: {shape: "hv", width: 1, color: data.colours[6]}, hoverinfo: "skip"});
  Plotly.react("front", drawn, themed({
    hovermode: "closest", clickmode: "event", showlegend: true,
    xaxis: {title: {text: data.costs[chosen("cost")]}, type: "log", hoverformat: ".5~g"},
    yaxis: {title: {text: data.worths[chosen("worth")]}, hoverformat: ".5~g"}}), options);
}

const kept = new Set();
function keep(i) {
  if (kept.has(i)) return;
  kept.add(i);
  document.getElementById("kept").hidden = false;
  const row = document.querySelector("#kept tbody").insertRow();
  const numbers = [...Object.keys(data.costs), ...Object.keys(data.worths)].map(name => shown(columns[name][i]));
  for (const text of [shown(capacity[i]), tests[test[i]], ...numbers, data.recipes[recipe[i]]])
    row.insertCell().textContent = text;
}

drawings.unshift(() => {
  drawFront();
  document.getElementById("front").on("plotly_click", event => {
    const place = event.points[0].customdata;
    if (place !== undefined) keep(place);
  });
});
for (const name of ["cost", "worth", "test"]) document.getElementById(name).addEventListener("change", drawFront);
