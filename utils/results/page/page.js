"use strict";
const {figures, sets} = JSON.parse(document.getElementById("data").textContent);
const sounds = JSON.parse(document.getElementById("sounds").textContent);
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "pentagon", "star", "hexagram", "bowtie"];
const CONFIG = {displayModeBar: false, responsive: true};
const drawn = new Set();
const still = matchMedia("(prefers-reduced-motion: reduce)");

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
// plotly reads a subset of HTML in every text, so names are escaped for it too
const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const percent = value => value === null ? "–" : value.toFixed(1);

function layout(more) {
  const axis = {gridcolor: colour("line"), zeroline: false, linecolor: colour("line"), automargin: true, fixedrange: true};
  const {xaxis = {}, yaxis = {}, ...rest} = more;
  return {
    font: {color: colour("ink"), family: getComputedStyle(document.body).fontFamily, size: 12},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: {l: 8, r: 8, t: 8, b: 8},
    hoverlabel: {bgcolor: colour("raised"), bordercolor: colour("line"), font: {color: colour("ink")}, align: "left"},
    dragmode: false, xaxis: {...axis, ...xaxis}, yaxis: {...axis, ...yaxis}, ...rest,
  };
}

// Contrast of text on a colour, as WCAG 2.1 defines it; colours are [r, g, b]
const rgb = name => [1, 3, 5].map(i => parseInt(colour(name).slice(i, i + 2), 16));
const light = parts => parts.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);

function heatmap(z, text, hover, x, y, xaxis, yaxis) {
  const [low, high] = [rgb("raised"), rgb("accent")], cells = z.flatMap((row, i) => row.map((value, j) => [i, j, value]));
  const shown = cells.filter(([i, j]) => text[i][j]), inks = ["ink", "ground"];
  const ink = value => {
    const back = low.map((v, k) => v + (high[k] - v) * value / 100);
    return colour(inks.reduce((a, b) => contrast(rgb(a), back) >= contrast(rgb(b), back) ? a : b));
  };
  const ticks = names => ({tickvals: names.map((_, i) => i), ticktext: names.map(plain), showgrid: false});
  return {
    data: [
      {type: "heatmap", z, customdata: hover, hovertemplate: "%{customdata}<extra></extra>", zmin: 0, zmax: 100,
       colorscale: [[0, colour("raised")], [1, colour("accent")]], showscale: false, xgap: 1, ygap: 1, hoverongaps: false},
      {type: "scatter", mode: "text", hoverinfo: "skip", x: shown.map(c => c[1]), y: shown.map(c => c[0]),
       text: shown.map(([i, j]) => text[i][j]), textfont: {color: shown.map(c => ink(c[2]))}},
    ],
    layout: layout({showlegend: false, xaxis: {...ticks(x), ...xaxis},
                    yaxis: {...ticks(y), ...yaxis, range: [y.length - 0.5, -0.5]}}),
  };
}

const draw = {
  table({values, rows, tasks}) {
    const hover = values.map((row, i) => row.map((value, j) =>
      `${plain(rows[i])}: ${percent(value)} % on task ${j}<br>${plain(tasks[j])}`));
    const text = values.map(row => row.map(value => value === null ? "" : value.toFixed(0)));
    return heatmap(values, text, hover, tasks.map((_, j) => j), rows, {title: {text: "test task"}}, {});
  },

  confusion({counts, classes}) {
    const totals = counts.map(row => row.reduce((a, b) => a + b, 0));
    const z = counts.map((row, i) => row.map(count => totals[i] ? 100 * count / totals[i] : null));
    const hover = counts.map((row, i) => row.map((count, j) =>
      `${count} of ${totals[i]} clips of ${plain(classes[i])}<br>taken for ${plain(classes[j])}`));
    const text = z.map(row => row.map(value => value >= 0.5 && classes.length <= 20 ? value.toFixed(0) : ""));
    return heatmap(z, text, hover, classes, classes, {tickangle: -90}, {});
  },

  curves({curves, tasks}) {
    const x = tasks.map((_, i) => i + 1);
    const looks = {loss: ["training loss", "y", "accent"], valid_loss: ["validation loss", "y", "floor"],
                   emb_std: ["spread of embeddings", "y2", "c4"], z_std: ["spread of projections", "y2", "c5"]};
    const data = Object.entries(curves).map(([name, y]) => ({
      x, y, name: looks[name][0], yaxis: looks[name][1], line: {color: colour(looks[name][2]), width: 2},
      mode: "lines", hovertemplate: "%{y:.3g}", legendrank: Object.keys(looks).indexOf(name),
    }));
    const starts = tasks.map((task, i) => i === 0 || task !== tasks[i - 1] ? i : -1).filter(i => i >= 0);
    const ends = [...starts.slice(1), tasks.length];
    const shapes = starts.map((from, k) => ({
      type: "rect", xref: "x", yref: "paper", x0: from + 0.5, x1: ends[k] + 0.5, y0: 0, y1: 1, layer: "below",
      fillcolor: colour("raised"), line: {width: 0}, opacity: k % 2,
    }));
    const annotations = starts.length > 12 ? [] : starts.map((from, k) => ({
      x: (from + ends[k] + 1) / 2, y: 1, xref: "x", yref: "paper", yanchor: "bottom", showarrow: false,
      text: `task ${tasks[from]}`, font: {color: colour("soft"), size: 11},
    }));
    const both = data.some(trace => trace.yaxis === "y2");
    const second = {...layout({}).yaxis, domain: [0, 0.32], range: [0, 1.05], title: {text: "spread"}};
    return {data, layout: layout({
      xaxis: {anchor: both ? "y2" : "y", showgrid: false},
      yaxis: {title: {text: "loss"}, domain: both ? [0.42, 1] : [0, 1]}, ...(both ? {yaxis2: second} : {}),
      shapes, annotations, margin: {l: 8, r: 8, t: 24, b: 8}, hovermode: "x unified",
      legend: {orientation: "h", y: -0.1, yanchor: "top"},
    })};
  },

  map({points, clips, encoders}, element) {
    const known = sets[clips], names = [...new Set(known.map(clip => clip[1]))];
    const tasks = [...new Set(known.map(clip => clip[2]))].sort((a, b) => a - b);
    const now = points[element.encoder ?? encoders.length - 1], narrow = element.clientWidth < 640;
    const data = names.map((name, k) => {
      const members = known.map((clip, i) => i).filter(i => known[i][1] === name), task = known[members[0]][2];
      return {
        type: "scatter", mode: "markers", name: plain(name), customdata: members, ids: members.map(String),
        x: members.map(i => now[i]?.[0]), y: members.map(i => now[i]?.[1]),
        text: members.map(i => `${plain(known[i][1])}, task ${known[i][2]}<br>${plain(known[i][0])}`),
        hovertemplate: "%{text}<extra></extra>", legendgroup: `${task}`, legendgrouptitle: {text: `task ${task}`},
        marker: {color: colour(`c${k % 10}`), symbol: SYMBOLS[tasks.indexOf(task) % SYMBOLS.length], size: narrow ? 8 : 10,
                 opacity: 0.85, line: {color: colour("ground"), width: 0.8}},
      };
    });
    const range = k => {  // the same for all encoders, so that a move is a move
      const values = points.flat().filter(point => point).map(point => point[k]);
      const [low, high] = [Math.min(...values), Math.max(...values)], margin = 0.06 * (high - low || 1);
      return [low - margin, high + margin];
    };
    const axis = {showticklabels: false, ticks: "", showgrid: false, showline: true, mirror: true};
    return {data, layout: layout({
      xaxis: {...axis, range: range(0)}, yaxis: {...axis, range: range(1), scaleanchor: "x"}, hovermode: "closest",
      legend: {groupclick: "toggleitem", tracegroupgap: 4, ...(narrow ? {orientation: "h", y: -0.02, yanchor: "top"} : {})},
    })};
  },
};

function show(element) {
  const figure = figures[element.dataset.figure], {data, layout} = draw[figure.kind](figure, element);
  const first = !drawn.has(element);
  Plotly.react(element, data, layout, CONFIG);
  drawn.add(element);
  if (first && figure.kind === "map") element.on("plotly_click", event => play(element, figure, event.points[0].customdata));
}

// The map's slider and player

function move(element, encoder) {
  const figure = figures[element.dataset.figure], duration = still.matches ? 0 : 600;
  element.encoder = encoder;
  label(element);
  if (!drawn.has(element)) return;
  const data = draw.map(figure, element).data.map(({x, y}) => ({x, y}));
  Plotly.animate(element, {data, traces: data.map((_, i) => i)},
                 {transition: {duration, easing: "cubic-in-out"}, frame: {duration, redraw: false}, mode: "immediate"});
}

function label(element) {
  const {encoders, variance, clips} = figures[element.dataset.figure], encoder = element.encoder;
  const learnt = [...new Set(sets[clips].filter(clip => clip[2] === encoder - 1).map(clip => clip[1]))].join(", ");
  const output = element.closest(".map").querySelector("output"), share = Math.round(100 * variance[encoder]);
  output.textContent = `${encoders[encoder]}${learnt ? `: ${learnt}` : ""} (${share} % of the variance is in the picture)`;
}

function play(element, figure, clip) {
  const place = element.closest(".map"), audio = place.querySelector("audio"), [path, name, task] = sets[figure.clips][clip];
  const sound = sounds[figure.clips]?.[clip];
  document.querySelectorAll("audio").forEach(other => other.pause());
  place.querySelector(".playing").textContent = `${name}, task ${task}: ${path}${sound ? "" : " (its sound is not in this page)"}`;
  audio.hidden = !sound;
  if (!sound) return;
  audio.src = `data:audio/ogg;base64,${sound}`;
  audio.play();
}

document.querySelectorAll(".map").forEach(place => {
  const slider = place.querySelector("input"), element = place.querySelector(".plot");
  element.encoder = Number(slider.value);
  label(element);
  slider.addEventListener("input", () => move(element, Number(slider.value)));
});

// Figures are drawn when they come into sight, and again when the colour scheme changes

const seen = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(({target}) => {
  seen.unobserve(target);
  show(target);
}), {rootMargin: "300px"});
document.querySelectorAll("[data-figure]").forEach(element => seen.observe(element));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(show));

// A click on a column's title sorts by it, first from the best down

function sort(button) {
  const title = button.closest("th"), table = button.closest("table"), column = title.cellIndex;
  const down = title.getAttribute("aria-sort") !== "descending", body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach(other => other.setAttribute("aria-sort", "none"));
  title.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[column].dataset.sort;
  const compare = column ? (a, b) => key(a) - key(b) : (a, b) => key(b).localeCompare(key(a));
  const rows = [...body.rows], empty = rows.filter(row => key(row) === "");
  const full = rows.filter(row => key(row) !== "").sort((a, b) => down ? compare(b, a) : compare(a, b));
  body.append(...full, ...empty);
}
document.querySelectorAll(".comparison thead button").forEach(button => button.addEventListener("click", () => sort(button)));
