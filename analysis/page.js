// Draws the page's figures in the colours of its theme, and again where that changes.
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

function drawFigures() {
  for (const source of document.querySelectorAll("script[data-figure]")) {
    const figure = JSON.parse(source.textContent);
    Plotly.react(source.dataset.figure, figure.data, themed(figure.layout), options);
  }
}

const drawings = [drawFigures]; // a page's own script may put more in front
function start() {
  const drawAll = () => drawings.forEach(draw => draw());
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  document.documentElement.dataset.ready = "yes";
}
