// The front of a sweep: its axes can be switched, and clicked points are kept.
const WIDE = 240, HIGH = 120, MANY = 2000; // cells of a grid; points above which one a cell is drawn

function range(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  return [low, high];
}

// Which of so many equal cells of a range each value lies in; the last one has its upper end.
function cells(values, [low, high], count) {
  const scale = high > low ? count / (high - low) : 0;
  return Int32Array.from(values, value => value === high ? count - 1 : Math.floor((value - low) * scale));
}

// Places 0 … of the points that no other beats: at most the cost and at least the worth. What a point of a cheaper column
// of the grid beats is left out first, so that few are left to sort.
function front(cost, worth) {
  const column = cells(cost, range(cost), WIDE), before = new Float32Array(WIDE + 1).fill(-Infinity), rest = [];
  for (let i = 0; i < cost.length; i++) before[column[i] + 1] = Math.max(before[column[i] + 1], worth[i]);
  for (let c = 1; c <= WIDE; c++) before[c] = Math.max(before[c], before[c - 1]);
  for (let i = 0; i < cost.length; i++) if (worth[i] > before[column[i]]) rest.push(i);
  const best = [];
  for (const i of rest.sort((a, b) => cost[a] - cost[b] || worth[b] - worth[a]))
    if (!best.length || worth[i] > worth[best[best.length - 1]]) best.push(i);
  return best;
}

// Places of the points in a view, one a cell.
function visible(cost, worth, view) {
  const column = cells(cost, view[0], WIDE), row = cells(worth, view[1], HIGH), taken = new Uint8Array(WIDE * HIGH), seen = [];
  for (let i = 0; i < cost.length; i++) {
    if (column[i] < 0 || column[i] >= WIDE || row[i] < 0 || row[i] >= HIGH) continue;
    const cell = row[i] * WIDE + column[i];
    if (!taken[cell]) { taken[cell] = 1; seen.push(i); }
  }
  return seen;
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

function differing(recipes) { // what tells them apart, for the legend
  const parts = recipes.map(name => name.split(", "));
  return parts.map(own => own.filter(p => !parts.every(other => other.includes(p))).join(", ") || "points");
}

let view; // ranges that the reader zoomed in to; none: all of it
function drawFront() {
  const cost = columns[chosen("cost")], worth = columns[chosen("worth")], asked = tests.indexOf(chosen("test"));
  const places = new Uint32Array(cost.length);
  let count = 0;
  for (let i = 0; i < cost.length; i++) if (test[i] === asked && cost[i] > 0 && worth[i] === worth[i]) places[count++] = i;
  const x = Float32Array.from({length: count}, (_, k) => Math.log10(cost[places[k]]));
  const y = Float32Array.from({length: count}, (_, k) => worth[places[k]]);
  const few = count <= MANY, named = count <= 60;
  const seen = few ? Array.from({length: count}, (_, k) => k) : visible(x, y, view ?? [range(x), range(y)]);
  document.getElementById("hidden").textContent = few ? "" :
    `${seen.length} of ${count} points are drawn, one where many lie; zoom in for the others.`;
  const names = data.recipes.length > 12 ? ["trials"] : data.recipes;
  const labels = differing(names), at = (column, mine) => Float32Array.from(mine, k => column[places[k]]);
  const drawn = names.map((_, r) => names.length === 1 ? seen : seen.filter(k => recipe[places[k]] === r)).map((mine, r) => ({
    type: few ? "scatter" : "scattergl", mode: named ? "markers+text" : "markers", name: labels[r],
    x: at(cost, mine), y: at(worth, mine), customdata: Array.from(mine, k => places[k]),
    text: named ? Array.from(mine, k => shown(capacity[places[k]])) : undefined, textposition: "bottom right",
    hovertext: few ? Array.from(mine, k => about(places[k])) : undefined, hoverinfo: few ? "text+x+y" : "x+y",
    marker: {size: few ? 9 : 4, color: data.colours[r % data.colours.length]}}));
  const best = front(x, y);
  drawn.push({type: "scatter", mode: "lines", name: "front", x: at(cost, best), y: at(worth, best),
    line: {shape: "hv", width: 1, color: data.colours[6]}, hoverinfo: "skip"});
  Plotly.react("front", drawn, themed({
    hovermode: "closest", clickmode: "event", showlegend: true, uirevision: chosen("cost") + chosen("worth"),
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

drawings.unshift(drawFront);
function listen() {
  const drawn = document.getElementById("front");
  drawn.on("plotly_click", event => {
    const place = event.points[0].customdata;
    if (place !== undefined) keep(place);
  });
  drawn.on("plotly_relayout", () => { // other points are seen where the reader looks closer
    const {xaxis, yaxis} = drawn.layout;
    view = xaxis.autorange && yaxis.autorange ? undefined : [xaxis.range, yaxis.range];
    drawFront();
  });
  for (const name of ["cost", "worth", "test"]) document.getElementById(name).addEventListener("change", () => {
    view = undefined;
    drawFront();
  });
}
