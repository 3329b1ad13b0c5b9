// Interactive figures: maps of embeddings, and predicted against true. One choice of colour, filter and row for all.
const data = JSON.parse(document.getElementById("data").textContent);
const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c", "#a89a00"];
const RAMP = [[67, 97, 194], [22, 163, 154], [232, 177, 0]];
const NONE = "#9aa3ae", SHADES = 24, REACH = 14, KEPT = 0.02, OWN = 6.5;
const num = data.model.length;
const state = { colour: 0, filters: new Map(), row: -1 };
const views = [];
const element = (tag, fields = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...children);
  return made;
};
const text = (column, row) => {
  if (column.codes) return column.codes[row] < 0 ? "n/a" : column.values[column.codes[row]];
  return column.numbers[row] === null ? "n/a" : String(column.numbers[row]);
};
const id = (row) => data.models[data.model[row]];

// Colours: a class has one of the palette, with another mark each time it is through; a number one of the ramp.
const shade = (share) => {
  const at = share * (RAMP.length - 1), low = Math.min(Math.floor(at), RAMP.length - 2);
  return `rgb(${RAMP[low].map((value, i) => Math.round(value + (RAMP[low + 1][i] - value) * (at - low)))})`;
};
const spans = data.columns.map((column) => {
  const known = column.numbers ? column.numbers.filter((value) => value !== null).sort((a, b) => a - b) : [];
  const place = (share) => known[Math.round(share * (known.length - 1))];
  // A few outliers would otherwise leave one colour for all others.
  return known.length ? [place(KEPT), place(1 - KEPT)] : null;
});
const look = (row) => {
  const column = data.columns[state.colour];
  if (column.codes) {
    const code = column.codes[row];
    return code < 0 ? [NONE, 0] : [PALETTE[code % PALETTE.length], Math.floor(code / PALETTE.length) % 3];
  }
  const value = column.numbers[row], span = spans[state.colour];
  if (value === null || !span) return [NONE, 0];
  const share = span[1] > span[0] ? (value - span[0]) / (span[1] - span[0]) : 0.5;
  return [shade(Math.round(Math.min(1, Math.max(0, share)) * SHADES) / SHADES), 0];
};
const passes = (row) => {
  for (const [column, code] of state.filters) if (data.columns[column].codes[row] !== code) return false;
  return true;
};
const mark = (context, x, y, size, kind) => {
  context.beginPath();
  if (kind === 1) context.rect(x - size, y - size, 2 * size, 2 * size);
  else if (kind === 2) { context.moveTo(x, y - 1.3 * size); context.lineTo(x + 1.2 * size, y + size); context.lineTo(x - 1.2 * size, y + size); }
  else context.arc(x, y, size, 0, 7);
};

const tip = element("div", { className: "tip", hidden: true });
tip.setAttribute("role", "status");
document.body.append(tip);

class View {
  // A canvas with points: rows[i] of the zoo at (x[i], y[i]), the diagonal where both are in one unit.
  constructor(canvas, diagonal) {
    Object.assign(this, { canvas, diagonal, rows: [], x: [], y: [], links: () => [], hover: -1 });
    canvas.tabIndex = 0;
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => { this.hover = -1; tip.hidden = true; });
    canvas.addEventListener("click", (event) => { this.point(event); if (this.hover >= 0) choose(this.rows[this.hover]); });
    canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
    views.push(this);
  }
  set(rows, x, y) {
    Object.assign(this, { rows, x, y });
    this.order = rows.map((_, i) => i).sort((a, b) => x[a] - x[b]);
    this.scale();
    this.draw();
  }
  scale() {
    const ends = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    this.ends = [ends(this.x), ends(this.y)];
    if (this.diagonal) {
      const both = [Math.min(this.ends[0][0], this.ends[1][0]), Math.max(this.ends[0][1], this.ends[1][1])];
      this.ends = [both, both];
    }
  }
  pixel(i) {
    const margin = this.margin, [a, b] = this.ends[0], [c, d] = this.ends[1];
    const x = (this.x[i] - a) / (b - a || 1), y = (this.y[i] - c) / (d - c || 1);
    return [margin[0] + x * (this.width - margin[0] - margin[1]), this.height - margin[2] - y * (this.height - margin[2] - margin[3])];
  }
  draw() {
    if (!this.rows.length || !this.canvas.clientWidth) return;
    const ratio = window.devicePixelRatio || 1, canvas = this.canvas;
    this.width = canvas.clientWidth;
    this.height = canvas.clientHeight;
    this.margin = this.diagonal ? [46, 10, 24, 10] : [12, 12, 12, 12];
    canvas.width = Math.round(this.width * ratio);
    canvas.height = Math.round(this.height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const ink = getComputedStyle(canvas).color;
    if (this.diagonal) this.axes(context, ink);
    const small = Math.max(1.6, Math.min(3.5, 160 / Math.sqrt(this.rows.length)));
    const size = (row) => (row < data.without_reference && !this.diagonal ? OWN : small);
    context.globalAlpha = 0.75;
    // The rows of the zoo itself are the first, and lie above those of a reference.
    for (let i = this.rows.length - 1; i >= 0; i -= 1) {
      const row = this.rows[i];
      if (!passes(row)) continue;
      const [colour, kind] = look(row);
      context.fillStyle = colour;
      mark(context, ...this.pixel(i), size(row), kind);
      context.fill();
    }
    context.globalAlpha = 1;
    this.rings(context, ink, size);
  }
  rings(context, ink, size) {
    const at = this.rows.indexOf(state.row);
    if (at < 0) return;
    context.strokeStyle = ink;
    for (const row of this.links(state.row)) {
      const i = this.rows.indexOf(row);
      if (i < 0) continue;
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(...this.pixel(at));
      context.lineTo(...this.pixel(i));
      context.stroke();
      mark(context, ...this.pixel(i), size(row) + 2, 0);
      context.stroke();
    }
    context.lineWidth = 2;
    mark(context, ...this.pixel(at), size(state.row) + 3, 0);
    context.stroke();
  }
  axes(context, ink) {
    const [low, high] = this.ends[0], [left, right, bottom, top] = this.margin;
    context.globalAlpha = 0.45;
    context.strokeStyle = context.fillStyle = ink;
    context.strokeRect(left, top, this.width - left - right, this.height - bottom - top);
    context.beginPath();
    context.moveTo(left, this.height - bottom);
    context.lineTo(this.width - right, top);
    context.stroke();
    context.globalAlpha = 1;
    context.font = "11px system-ui, sans-serif";
    const [a, b] = [low, high].map((value) => String(Number(value.toPrecision(2))));
    context.textAlign = "left"; context.fillText(a, left, this.height - 8);
    context.textAlign = "right"; context.fillText(b, this.width - right, this.height - 8);
    context.fillText(b, left - 5, top + 10); context.fillText(a, left - 5, this.height - bottom);
    context.textAlign = "center"; context.fillText("true", (left + this.width - right) / 2, this.height - 8);
    context.save(); context.translate(13, (top + this.height - bottom) / 2); context.rotate(-Math.PI / 2);
    context.fillText("predicted", 0, 0); context.restore();
  }
  point(event) {
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = REACH * REACH;
    this.hover = -1;
    this.rows.forEach((row, i) => {
      if (!passes(row)) return;
      const [a, b] = this.pixel(i), far = (a - x) ** 2 + (b - y) ** 2;
      if (far < best) { best = far; this.hover = i; }
    });
    this.tell();
  }
  tell() {
    tip.hidden = this.hover < 0;
    if (tip.hidden) return;
    const row = this.rows[this.hover], box = this.canvas.getBoundingClientRect(), [x, y] = this.pixel(this.hover);
    tip.replaceChildren(element("strong", { textContent: id(row) }),
      ...data.columns.map((column) => element("div", { textContent: `${column.name}: ${text(column, row)}` })));
    if (this.diagonal) tip.append(element("div", { textContent: `true ${this.x[this.hover]}, predicted ${this.y[this.hover]}` }));
    const left = Math.min(box.left + x + 12, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left) + scrollX}px`;
    tip.style.top = `${box.top + y + 14 + scrollY}px`;
  }
  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Enter" && this.hover >= 0) choose(this.rows[this.hover]);
    if (event.key === "Escape") { this.hover = -1; this.tell(); }
    if (!step) return;
    event.preventDefault();
    const allowed = this.order.filter((i) => passes(this.rows[i]));
    if (!allowed.length) return;
    const now = allowed.indexOf(this.hover);
    this.hover = allowed[now < 0 ? 0 : (now + step + allowed.length) % allowed.length];
    this.tell();
  }
}
