"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
let shownAt = 0;

const theme = {
  background: null,
  font: "system-ui, 'Noto Sans', 'DejaVu Sans', sans-serif",
  view: { stroke: null },
  text: { color: "var(--ink)", fontSize: 12 },
  axis: {
    domainColor: "var(--line)", tickColor: "var(--line)", gridColor: "var(--line)",
    gridOpacity: 0.7, labelColor: "var(--soft)", titleColor: "var(--soft)",
    labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal", titlePadding: 8,
  },
  legend: { labelColor: "var(--ink)", labelFontSize: 12, symbolOpacity: 1 },
};

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function imageDetails(index) {
  const point = data.points[index];
  const parts = [];
  if (point.thumb) {
    parts.push(element("img", null, { src: "data:image/webp;base64," + point.thumb, alt: "" }));
  }
  const label = element("div", null);
  label.append(element("bdi", point.label));
  parts.push(label);
  if (point.guess !== point.label) {
    const guess = element("div", "linear probe predicts ");
    guess.append(element("bdi", point.guess));
    parts.push(guess);
  }
  const path = element("div", null, { class: "soft" });
  path.append(element("bdi", point.path));
  parts.push(path);
  return parts;
}

function showTip(event, value) {
  if (value === null || value === undefined || value === "") { tip.hidden = true; return; }
  if (typeof value === "object" && "image" in value) {
    tip.replaceChildren(...imageDetails(Number(value.image)));
  } else if (typeof value === "object") {
    const list = element("dl", null);
    for (const [key, text] of Object.entries(value)) {
      list.append(element("dt", key), element("dd", String(text)));
    }
    tip.replaceChildren(list);
  } else {
    tip.textContent = String(value);
  }
  tip.hidden = false;
  shownAt = window.scrollY;
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - box.width - 8);
  const below = event.clientY + 14 + box.height < window.innerHeight;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = Math.max(8, below ? event.clientY + 14 : event.clientY - box.height - 14) + "px";
}

async function draw(chart) {
  const place = document.querySelector(`[data-chart="${CSS.escape(chart.name)}"] .draw`);
  const spec = { width: "container", autosize: { type: "fit-x", contains: "padding" }, ...chart.spec };
  const made = await vegaEmbed(place, spec, {
    ast: true, actions: false, renderer: "svg", defaultStyle: false, config: theme,
    mode: "vega-lite", tooltip: (_, event, __, value) => showTip(event, value),
  });
  place.setAttribute("aria-label", chart.heading + ". " + chart.text);
  return made.view;
}

function makeSortable(table) {
  const body = table.tBodies[0];
  for (const button of table.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.parentElement;
      const column = head.cellIndex;
      const rising = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
      };
      const compare = (a, b) =>
        typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)));
      if (!rising) rows.reverse();
      body.append(...rows);
    });
  }
}

function makeMap(view) {
  const hidden = new Set();
  const buttons = [...document.querySelectorAll("[data-class]")];
  const apply = () => {
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.class)));
    }
    view.signal("hidden", [...hidden]).runAsync();
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const name = button.dataset.class;
      if (!hidden.delete(name)) hidden.add(name);
      apply();
    });
  }
  document.getElementById("all").addEventListener("click", () => { hidden.clear(); apply(); });
  document.getElementById("none").addEventListener("click", () => {
    for (const button of buttons) hidden.add(button.dataset.class);
    apply();
  });
  const order = data.points.map((_, i) => i).sort((a, b) => data.points[a].x - data.points[b].x);
  let at = -1;
  const details = document.getElementById("focused-image");
  const plot = document.querySelector('[data-chart="map"] .plot');
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const visible = order.filter((i) => !hidden.has(data.points[i].label));
    if (!visible.length) return;
    at = (at + step + visible.length) % visible.length;
    details.replaceChildren(...imageDetails(visible[at]));
    view.signal("focused", visible[at]).runAsync();
  });
  plot.addEventListener("blur", () => view.signal("focused", -1).runAsync());
}

async function start() {
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  for (const chart of data.charts) {
    const view = await draw(chart);
    if (chart.name === "map") makeMap(view);
  }
  document.documentElement.dataset.ready = "yes";
}
// A scroll event can arrive after the tooltip opened, for a scroll that ended before. Hide it only if
// the page has moved since.
document.addEventListener("scroll", () => {
  if (window.scrollY !== shownAt) tip.hidden = true;
}, { passive: true });
start();
