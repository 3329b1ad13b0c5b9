// Choices, legends, and the table of neighbours.
const select = (label, options, chosen, change) => {
  const list = element("select", {}, ...options.map(([value, words]) => element("option", { value, textContent: words })));
  list.value = chosen;
  list.addEventListener("change", () => change(list.value));
  return element("label", {}, `${label} `, list);
};
const redraw = () => {
  for (const bar of document.querySelectorAll("[data-controls]")) controls(bar);
  for (const legend of document.querySelectorAll("[data-legend]")) drawLegend(legend);
  for (const view of views) view.draw();
};
const controls = (bar) => {
  const made = [select("Colour", data.columns.map((column, i) => [String(i), column.name]), String(state.colour), (value) => {
    state.colour = Number(value);
    redraw();
  })];
  data.columns.forEach((column, i) => {
    if (!column.codes || column.values.length < 2) return;
    const options = [["", "all"], ...column.values.map((value, code) => [String(code), value])];
    made.push(select(column.name, options, String(state.filters.get(i) ?? ""), (value) => {
      if (value === "") state.filters.delete(i);
      else state.filters.set(i, Number(value));
      redraw();
    }));
  });
  // The list that was used keeps the focus.
  const focused = [...bar.querySelectorAll("select")].indexOf(document.activeElement);
  bar.replaceChildren(...made);
  if (focused >= 0) bar.querySelectorAll("select")[focused].focus();
};
const drawLegend = (legend) => {
  const column = data.columns[state.colour], span = spans[state.colour];
  if (column.codes) {
    const shapes = ["50%", "0", "50% 50% 0 0"];
    legend.replaceChildren(...column.values.map((value, code) => {
      const swatch = element("i", { className: "swatch" });
      swatch.style.background = PALETTE[code % PALETTE.length];
      swatch.style.borderRadius = shapes[Math.floor(code / PALETTE.length) % 3];
      return element("span", {}, swatch, value);
    }));
    return;
  }
  const ramp = element("i", { className: "ramp" });
  ramp.style.background = `linear-gradient(to right, ${RAMP.map((colour) => `rgb(${colour})`)})`;
  const [low, high] = span ?? ["n/a", "n/a"];
  legend.replaceChildren(element("span", {}, `${column.name}: ${low} `, ramp, ` ${high}`), element("span", { className: "soft" }, "grey: no such label"));
};

const choose = (row) => {
  state.row = row;
  tip.hidden = true;
  showNeighbours();
  for (const view of views) view.draw();
};
let shownMap = data.maps[0];
const near = (row) => (shownMap ? shownMap.neighbours[row].filter((other) => other >= 0) : []);
const panel = document.getElementById("neighbours");
const showNeighbours = () => {
  if (!panel || state.row < 0) return;
  const rows = [state.row, ...near(state.row)];
  const head = element("tr", {}, ...["", "model", ...data.columns.map((column) => column.name)].map((name) => element("th", { textContent: name, scope: "col" })));
  const body = rows.map((row, rank) => element("tr", {},
    element("td", { textContent: rank ? String(rank) : "chosen" }),
    element("td", {}, element("button", { type: "button", className: "plain", textContent: id(row), onclick: () => choose(row) })),
    ...data.columns.map((column) => element("td", { textContent: text(column, row) }))));
  panel.replaceChildren(
    element("p", { textContent: `${id(state.row)} and its nearest rows of other models in ${shownMap.name}, all dimensions counted:` }),
    element("div", { className: "scroll" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...body))));
};

const mapCanvas = document.getElementById("map-canvas");
if (mapCanvas && data.maps.length) {
  const view = new View(mapCanvas, false);
  view.links = near;
  const show = (number) => {
    shownMap = data.maps[number];
    mapCanvas.setAttribute("aria-label", `${shownMap.name}, trained for ${shownMap.of}: ${num} rows on two principal components. Arrow keys walk along the points, Enter shows neighbours.`);
    view.set(data.model.map((_, row) => row), shownMap.x, shownMap.y);
    showNeighbours();
  };
  const bar = document.getElementById("map-choice");
  bar.append(select("Embedding", data.maps.map((map, i) => [String(i), `${map.name} (${map.of})`]), "0", (value) => show(Number(value))));
  const find = element("input", { type: "search", placeholder: "model id", autocomplete: "off" });
  find.setAttribute("aria-label", "Find a model by a part of its id");
  const found = element("span", { className: "soft" });
  found.setAttribute("role", "status");
  const button = element("button", { type: "submit", textContent: "Find" });
  const form = element("form", {}, find, button, found);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const row = find.value ? data.model.findIndex((_, i) => i > state.row && id(i).includes(find.value)) : -1;
    const first = row < 0 && find.value ? data.model.findIndex((_, i) => id(i).includes(find.value)) : row;
    found.textContent = first < 0 ? " no such model" : "";
    if (first >= 0) choose(first);
  });
  bar.append(form);
  show(0);
}

const judged = document.getElementById("judged-panels");
if (judged && data.questions.length) {
  const METRICS = { r2_within_cell: "minus cell mean", r2: "as it is", kendall_tau: "minus cell mean" };
  const show = (number) => {
    const question = data.questions[number];
    // Views of an earlier question leave with their canvases.
    for (let i = views.length - 1; i >= 0; i -= 1) if (views[i].diagonal) views.splice(i, 1);
    judged.replaceChildren();
    for (const one of question.panels) {
      const canvas = element("canvas", { className: "square" });
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${one.features}, ${one.probe}: predicted against true ${question.target} of ${question.rows.length} test rows.`);
      judged.append(element("figure", {}, element("figcaption", {}, element("strong", { textContent: one.features }), ` ${one.probe}`), canvas));
      new View(canvas, true).set(question.rows, question.true, one.predicted);
    }
  };
  const options = data.questions.map((question, i) => [String(i), `${question.target}, ${question.split.replaceAll("_", " ")}, ${METRICS[question.metric]}`]);
  document.getElementById("judged-choice").append(select("Question", options, "0", (value) => show(Number(value))));
  show(0);
}
if (data.row >= 0 && data.maps.length) choose(data.row);
window.addEventListener("themechange", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
redraw();
