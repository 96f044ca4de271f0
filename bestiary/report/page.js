const data = JSON.parse(document.getElementById("data").textContent);
data.runs = unpack(data.runs);
const ROWS = 300; // of the table drawn at first
const view = { task: 0, dim: null, hidden: new Set(), chosen: null, sort: { name: "Accuracy", down: true }, all: false };

function unpack({ columns, commands }) { // runs are stored by columns
  const names = Object.keys(columns);
  return columns.key.map((_, i) => {
    const run = Object.fromEntries(names.map((name) => [name, columns[name][i]]));
    return { ...run, command: run.command === null ? null : commands[run.command].join(` seed=${run.seed}`) };
  });
}

// Numbers as text.
const whole = (x) => (x === null ? "–" : Math.round(x).toLocaleString("en"));
const share = (x) => (x === null ? "–" : x.toFixed(3));
const plain = (x) => (x === null ? "–" : Math.abs(x) >= 1e6 || (x !== 0 && Math.abs(x) < 1e-3) ? x.toExponential().replace("e+", "e") : String(x));
const seconds = (x) => (x === null ? "–" : x < 100 ? x.toFixed(1) : whole(x));
const short = (text, most) => (text.length <= most ? text : text.slice(0, most - 1) + "…");

// What is shown now.
const task = () => data.tasks[view.task];
const visible = () => data.cells.filter((cell) => cell.task === view.task && !view.hidden.has(cell.family));
const wide = () => visible().filter((cell) => cell.dim === view.dim);
const place = (cell) => task().mixers.indexOf(cell.mixer);
const runsOf = (cell) => data.runs.filter((run) => data.cells[run.cell] === cell);

// Copying: by the clipboard, or else by selecting.
async function copy(text, button) {
  const before = button.dataset.text ?? button.textContent;
  button.dataset.text = before;
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = html("textarea", { readonly: true, style: "position:fixed;opacity:0" });
    area.value = text;
    (button.closest("dialog") ?? document.body).append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  button.textContent = done ? "Copied" : "Could not copy";
  setTimeout(() => (button.textContent = before), 1500);
}
const copier = (text, label) => html("button", { type: "button", class: "copy", onclick: (event) => copy(text, event.currentTarget) }, label);

// Drawing.
function mark(kind, x, y, r) {
  const corner = (size, turn) => `${x + size * Math.cos(turn)},${y + size * Math.sin(turn)}`;
  const star = Array.from({ length: 10 }, (_, i) => corner(r * (i % 2 ? 0.55 : 1.35), (Math.PI * i) / 5 - Math.PI / 2)).join("L");
  const t = r * 0.45;
  const plus = `M${x - t},${y - r}h${2 * t}v${r - t}h${r - t}v${2 * t}h${t - r}v${r - t}h${-2 * t}v${t - r}h${t - r}v${-2 * t}h${r - t}z`;
  const regular = (sides, turn) => `M${Array.from({ length: sides }, (_, i) => corner(r * 1.15, turn + (2 * Math.PI * i) / sides)).join("L")}z`;
  const shapes = { // by the names that matplotlib has for them
    o: `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
    s: `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    "^": regular(3, -Math.PI / 2), v: regular(3, Math.PI / 2), "<": regular(3, Math.PI), ">": regular(3, 0),
    D: regular(4, 0), p: regular(5, -Math.PI / 2), h: regular(6, -Math.PI / 2), "*": `M${star}z`, P: plus, X: plus,
  };
  return svg("path", { class: "mark", d: shapes[kind] ?? shapes.o, transform: kind === "X" ? `rotate(45 ${x} ${y})` : null });
}
function look(at) {
  const n = data.looks.length; // those beyond the colours get another mark
  return { colour: `var(--c${at % n})`, kind: data.looks[(at + Math.floor(at / n)) % n][0], dash: data.looks[at % n][1] };
}
function ticks(low, high, base, room) {
  if (!base) {
    const rough = (high - low) / room, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    return Array.from({ length: Math.floor(high / step) + 1 }, (_, i) => i * step).filter((t) => t >= low);
  }
  const log = (x) => Math.log(x) / Math.log(base);
  const powers = Array.from({ length: Math.ceil(log(high)) - Math.floor(log(low)) + 2 }, (_, i) => base ** (Math.floor(log(low)) + i));
  const within = (all) => all.map((t) => Number(t.toPrecision(6))).filter((t) => t >= low * 0.999 && t <= high * 1.001);
  const fine = base === 10 ? within(powers.flatMap((p) => [p, 2 * p, 5 * p])) : [];
  const shown = fine.length && fine.length <= room ? fine : within(powers);
  const every = Math.ceil(shown.length / room);
  return shown.filter((_, i) => i % every === 0);
}
// Those of sorted values that can be written beside each other: where no round number lies on an axis.
function spaced(values, at) {
  return values.reduce((kept, v) => (kept.length && at(v) - at(kept.at(-1)) <= 48 ? kept : [...kept, v]), []);
}
function scale(values, base, from, to) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  [low, high] = base ? [low / 1.3, high * 1.3] : [0, high || 1];
  const f = base ? Math.log : (x) => x;
  return { low, high, at: (x) => from + ((f(x) - f(low)) / (f(high) - f(low))) * (to - from) };
}
function legend(series, width, top) {
  const group = svg("g");
  let [x, y] = [46, top];
  for (const { name, at } of series) {
    const text = short(name, Math.floor((width - 90) / 6.4)), wanted = text.length * 6.4 + 52;
    if (x + wanted > width && x > 46) [x, y] = [46, y + 20];
    const { colour, kind, dash } = look(at);
    const key = mark(kind, x + 13, y, 4);
    key.setAttribute("fill", colour);
    group.append(svg("path", { class: "line", d: `M${x},${y}h26`, stroke: colour, "stroke-dasharray": dash }), key,
      svg("text", { x: x + 33, y: y + 4 }, text));
    x += wanted;
  }
  return { group, bottom: y + 16 };
}
function plot(host, { series, x, y, bounds = [], levels = [], dodge = 0, label }) {
  const width = Math.max(280, host.clientWidth), narrow = width < 520, height = narrow ? 330 : Math.min(360, width * 0.42);
  const [left, right, top] = [46, width - 14, bounds.length ? 40 : 14];
  const values = series.flatMap((s) => [...s.points, ...(s.seeds ?? []).flat()].map((p) => p.x)).concat(bounds.map((b) => b.state));
  const across = scale(values, x.base, left + 6, right - 6), up = (v) => height - v * (height - top);
  const drawing = svg("svg", { role: "group", "aria-label": label }), hits = [];
  for (const v of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    drawing.append(svg("path", { class: "grid", d: `M${left},${up(v)}H${right}` }),
      svg("text", { class: "soft", x: left - 7, y: up(v) + 4, "text-anchor": "end" }, v.toFixed(1)));
  }
  const room = Math.floor(width / 75), exact = [...new Set(values)].sort((a, b) => a - b);
  const apart = x.exact && spaced(exact, across.at).length === exact.length;
  const found = apart ? exact : ticks(across.low, across.high, x.base, room);
  for (const t of found.length > 1 ? found : spaced(exact, across.at)) {
    drawing.append(svg("path", { class: "axis", d: `M${across.at(t)},${height}v5` }),
      svg("text", { class: "soft", x: across.at(t), y: height + 18, "text-anchor": "middle" }, x.format(t)));
  }
  if (data.smoke) drawing.append(svg("text", { class: "smoke", x: (left + right) / 2, y: (height + top) / 2, "text-anchor": "middle" }, "smoke scale: not a result"));
  levels.forEach((level) => drawing.append(svg("path", { class: "bound", d: `M${left},${up(level.at)}H${right}` }),
    svg("text", { class: "soft halo", x: right, y: up(level.at) - 4, "text-anchor": "end" }, level.text)));
  bounds.forEach((bound, i) => {
    const at = across.at(bound.state), end = at > (left + right) / 2;
    drawing.append(svg("path", { class: "bound", d: `M${at},${top - 22 + 14 * i}V${height}` }),
      svg("text", { class: "soft", x: at + (end ? -5 : 5), y: top - 14 + 14 * i, "text-anchor": end ? "end" : "start" }, bound.text));
  });
  drawing.append(svg("path", { class: "axis", d: `M${left},${top}V${height}H${right}` }),
    svg("text", { x: (left + right) / 2, y: height + 38, "text-anchor": "middle" }, x.label),
    svg("text", { x: 12, y: (height + top) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(height + top) / 2})` }, y));
  series.forEach((s, i) => {
    const { colour, kind, dash } = look(s.at), aside = dodge * (i - (series.length - 1) / 2);
    const path = (points) => points.map((p, n) => `${n ? "L" : "M"}${(across.at(p.x) + aside).toFixed(1)},${up(p.y).toFixed(1)}`).join("");
    for (const seed of s.seeds ?? []) drawing.append(svg("path", { class: "seed", d: path(seed), stroke: colour }));
    drawing.append(svg("path", { class: "line", d: path(s.points), stroke: colour, "stroke-dasharray": dash }));
    if (s.bare) return;
    for (const p of s.points) {
      const [px, py] = [across.at(p.x) + aside, up(p.y)];
      const whisker = `M${px},${up(p.low)}V${up(p.high)}M${px - 3},${up(p.low)}h6M${px - 3},${up(p.high)}h6`;
      const key = mark(kind, px, py, 4.6);
      key.setAttribute("fill", colour);
      const node = point(p, svg("path", { class: "bar", d: whisker, stroke: colour }), key);
      hits.push({ px, py, p, node });
      drawing.append(node);
    }
  });
  drawing.append(...drawing.querySelectorAll(".halo"), ...drawing.querySelectorAll(".chosen"));
  const names = legend(series, width, height + 62);
  drawing.append(names.group);
  drawing.setAttribute("viewBox", `0 0 ${width} ${names.bottom}`);
  drawing.setAttribute("width", width);
  drawing.setAttribute("height", names.bottom);
  nearest(drawing, hits);
  return drawing;
}
function nearest(drawing, hits) { // the pointer means the point nearest to it, as points may lie on each other
  let at = null;
  const move = (event) => {
    const box = drawing.getBoundingClientRect(), far = (h) => Math.hypot(h.px - event.clientX + box.left, h.py - event.clientY + box.top);
    const found = hits.reduce((a, b) => (far(b) < (a ? far(a) : 18) ? b : a), null);
    if (found === at) return;
    at?.node.classList.remove("near");
    at = found;
    at?.node.classList.add("near");
    if (at) tell(at.p.text, at.node.lastChild);
    else find("tip").hidden = true;
    drawing.style.cursor = at?.p.pick ? "pointer" : "";
  };
  drawing.addEventListener("pointermove", move);
  drawing.addEventListener("pointerleave", () => move({ clientX: -1e9, clientY: -1e9 }));
  drawing.addEventListener("click", (event) => (move(event), at?.p.pick?.()));
}
function point(p, ...parts) {
  const pick = p.pick ? { onkeydown: (event) => ["Enter", " "].includes(event.key) && (event.preventDefault(), p.pick()) } : {};
  const chosen = p.cell && p.cell === view.chosen && p.pick ? " chosen" : "";
  const made = svg("g", { class: `point${p.pick ? " pick" : ""}${chosen}`, tabindex: 0, role: p.pick ? "button" : "img",
    "aria-label": p.text.replaceAll("\n", ", "), ...pick }, ...parts);
  made.addEventListener("focus", () => tell(p.text, made.lastChild));
  made.addEventListener("blur", () => (find("tip").hidden = true));
  return made;
}
function tell(text, near) {
  const tip = find("tip"), box = near.getBoundingClientRect();
  tip.textContent = text;
  tip.hidden = false;
  const left = Math.min(box.right + 6, innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${box.top - tip.offsetHeight - 6 > 4 ? box.top - tip.offsetHeight - 6 : box.bottom + 8}px`;
}

// A figure with what belongs to it: downloads, and its numbers as a table.
function figure(name, draw, columns, rows, empty) {
  const host = document.querySelector(`#${name} figure`);
  if (!rows.length) return host.replaceChildren(html("p", { class: "empty" }, empty));
  const open = host.querySelector("details")?.open;
  host.replaceChildren();
  const drawing = draw(host), pdf = data.pdf[view.task]?.[name];
  const save = html("button", { type: "button", onclick: () => download(drawing, `${name}.svg`) }, "SVG");
  const at = name === "frontier" || task().dims.length < 2 ? "" : ` (width ${task().dims.at(-1)})`;
  const link = pdf ? html("a", { download: `${name}.pdf`, href: `data:application/pdf;base64,${pdf}` }, `PDF${at}`)
    : view.task < data.pdf.length ? null : html("span", null, "PDFs are in reports of fewer tasks");
  host.append(drawing, html("div", { class: "tools" }, save, link), html("details", { open }, html("summary", null, "Numbers"),
    html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Numbers" }, grid(columns, rows))));
}
function grid(columns, rows) {
  const cell = (tag, value, i) => html(tag, { class: i && typeof rows[0][i] !== "object" && columns[i].number ? "number" : null, scope: tag === "th" ? "col" : null }, value);
  return html("table", null, html("thead", null, html("tr", null, columns.map((c, i) => cell("th", c.name, i)))),
    html("tbody", null, rows.map((row) => html("tr", null, row.map((value, i) => cell("td", value, i))))));
}
function download(drawing, name) {
  const twin = drawing.cloneNode(true), kept = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "paint-order", "font-family", "font-size"];
  const [from, to] = [drawing, twin].map((root) => [root, ...root.querySelectorAll("*")]);
  from.forEach((original, i) => {
    const style = getComputedStyle(original);
    for (const property of kept) to[i].setAttribute(property, style.getPropertyValue(property));
    for (const attribute of ["class", "tabindex", "role", "style"]) to[i].removeAttribute(attribute);
  });
  twin.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  twin.prepend(svg("rect", { width: "100%", height: "100%", fill: getComputedStyle(document.body).backgroundColor }));
  const href = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(twin)], { type: "image/svg+xml" }));
  html("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}
const col = (name, number = true) => ({ name, number }), interval = (low, high) => `${share(low)} to ${share(high)}`;
const ends = (c, low, high) => (c.answers ? interval(low, high) : "diverged"); // of all runs, which leaves no answers
function lines(cells, points) {
  const found = new Map();
  for (const cell of cells) {
    const own = points(cell), s = found.get(cell.mixer) ?? { name: cell.mixer, at: place(cell), points: [] };
    s.points.push(...own);
    if (own.length) found.set(cell.mixer, s);
  }
  for (const s of found.values()) s.points.sort((a, b) => a.x - b.x);
  return [...found.values()].sort((a, b) => a.at - b.at);
}
const flat = (series, row) => series.flatMap((s) => s.points.map((p) => row(s.name, p)));
const NOTHING = "Nothing to show: no mixer of the chosen families and width. ";

// The figures.
function frontier() {
  const series = lines(visible().filter((c) => c.state !== null), (c) => [{
    x: Math.max(1, c.state), y: c.accuracy, low: c.answers ? c.low : c.accuracy, high: c.answers ? c.high : c.accuracy, cell: c, pick: () => pick(c),
    text: `${c.mixer}\nwidth ${c.dim}, state ${c.state === 1 ? "1 number" : `${whole(c.state)} numbers`}\naccuracy ${share(c.accuracy)} (${ends(c, c.low, c.high)})\n`
      + `${count(c.seeds, "seed")}, ${count(c.answers, "answer")}\nrate ${plain(c.rate)} of ${c.rates.length} tried`,
  }]);
  const bounds = task().bounds.map((b) => ({ ...b, text: `${b.label}: ${b.sure === "law" ? b.state.toFixed(1) : whole(b.state)}` }));
  const { chance, plateau } = task().levels, levels = chance === undefined ? [] : [{ at: chance, text: "chance" }];
  if (plateau > chance) levels.push({ at: plateau, text: "plateau" });
  const hard = task().bounds[0];
  const guess = plateau > chance ? ` The plateau, ${share(plateau)}, is a guess among the answers that occur.` : "";
  find("frontier-note").textContent = guess + (hard ? ` Dashed, for the hardest test segment (${count(hard.pairs, "pair")} of a vocabulary of ${hard.vocab}): the numbers of 32 bits `
    + "that hold the answers, which no model goes below; the n log n of an argmax read-out, a law that leaves out a constant; and the least square "
    + "memory of random keys that recalls 0.99 by least squares, simulated." : "");
  figure("frontier", (host) => plot(host, { series, bounds, levels, y: "Accuracy", label: "Accuracy against state",
    x: { label: "State in numbers", base: 10, format: whole } }),
    [col("Mixer", false), col("Width"), col("State"), col("Accuracy"), col("95 % interval"), col("Seeds"), col("Rate")],
    flat(series, (name, { cell: c }) => [name, String(c.dim), whole(c.state), share(c.accuracy), ends(c, c.low, c.high), String(c.seeds), plain(c.rate)]),
    NOTHING + "A mixer also needs a state that can be measured: one made from a file that is gone or has changed has none here.");
}
function heat() {
  const parts = task().segments, loads = [...new Set(parts.map((p) => p.pairs))].sort((a, b) => a - b);
  const lengths = [...new Set(parts.map((p) => p.length))].sort((a, b) => a - b);
  const able = parts.length > 1 && loads.length * lengths.length > 1 && !loads.includes(null) && !lengths.includes(null);
  const cells = able ? wide() : [];
  const at = (c, load, length) => {
    const found = c.segments.filter((_, i) => parts[i].pairs === load && parts[i].length === length).map((s) => s[0]);
    return found.length ? found.reduce((a, b) => a + b) / found.length : null;
  };
  const rows = cells.flatMap((c) => parts.map((p, i) => [c.mixer, String(p.pairs), String(p.length), share(c.segments[i][0]), ends(c, ...c.segments[i].slice(1))]));
  figure("load", (host) => maps(host, cells, loads, lengths, at),
    [col("Mixer", false), col("Pairs"), col("Length"), col("Accuracy"), col("95 % interval")], rows,
    able ? NOTHING : "Nothing to show: the runs of this task were tested at one load and length, or the task has no pairs.");
}
function maps(host, cells, loads, lengths, at) {
  const width = Math.max(280, host.clientWidth), [w, h] = [46, 27], left = 34, one = Math.max(left + w * lengths.length + 18, 170);
  const columns = Math.max(1, Math.floor((width - 20) / one)), tall = h * loads.length + 54;
  const drawing = svg("svg", { role: "group", "aria-label": "Accuracy by pairs and length, a map for each mixer" }), hits = [];
  cells.forEach((c, i) => {
    const [x, y] = [20 + (i % columns) * one, 4 + Math.floor(i / columns) * tall];
    drawing.append(svg("text", { x: x + left, y: y + 14 }, svg("title", null, c.mixer), short(c.mixer, Math.floor((one - left) / 6.4))));
    loads.forEach((load, row) => {
      const top = y + 22 + (loads.length - 1 - row) * h;
      drawing.append(svg("text", { class: "soft", x: x + left - 6, y: top + 18, "text-anchor": "end" }, String(load)));
      lengths.forEach((length, column) => {
        const value = at(c, load, length), [cx, text] = [x + left + column * w, `${c.mixer}\n${count(load, "pair")} at length ${length}: ${share(value)}`];
        const shade = value > 0.75 ? "deep" : value > 0.5 ? "mid" : null;
        const node = point({ text }, svg("rect", { class: "heat", x: cx, y: top, width: w - 1, height: h - 1, "fill-opacity": value ?? 0 }),
          svg("rect", { class: "frame", x: cx, y: top, width: w - 1, height: h - 1 }),
          svg("text", { class: shade, x: cx + w / 2, y: top + 18, "text-anchor": "middle" }, value === null ? "" : value.toFixed(2)));
        hits.push({ px: cx + w / 2, py: top + h / 2, p: { text }, node });
        drawing.append(node);
      });
    });
    lengths.forEach((length, column) => drawing.append(svg("text", { class: "soft", x: x + left + (column + 0.5) * w, y: y + 38 + loads.length * h, "text-anchor": "middle" }, String(length))));
  });
  const bottom = 4 + Math.ceil(cells.length / columns) * tall;
  drawing.append(svg("text", { x: 20 + left, y: bottom + 12 }, "Length"), svg("text", { x: 12, y: 60, "text-anchor": "middle", transform: "rotate(-90 12 60)" }, "Pairs"));
  for (const [name, value] of Object.entries({ width, height: bottom + 18, viewBox: `0 0 ${width} ${bottom + 18}` })) drawing.setAttribute(name, value);
  nearest(drawing, hits);
  return drawing;
}
function rates() {
  const series = lines(wide().filter((c) => c.rates.length > 1), (c) => c.rates.filter(([rate]) => rate > 0).map(([rate, mean, low, high, seeds]) => ({
    x: rate, y: mean, low, high, text: `${c.mixer}\nrate ${plain(rate)}: ${share(mean)} (${interval(low, high)} over ${count(seeds, "seed")})`,
    seeds, window: c.window })));
  figure("rates", (host) => plot(host, { series, y: "Selection accuracy", label: "Selection accuracy against learning rate", dodge: 4,
    x: { label: "Learning rate", base: 10, format: plain, exact: true } }),
    [col("Mixer", false), col("Rate"), col("Mean"), col("Lowest to highest seed"), col("Seeds"), col("Window in decades")],
    flat(series, (name, p) => [name, plain(p.x), share(p.y), interval(p.low, p.high), String(p.seeds), p.window === null ? "none works" : p.window.toFixed(2)]),
    "Nothing to show: one learning rate was tried for each of these mixers at this width.");
}
function distance() {
  const series = lines(wide(), (c) => c.distances.map(([from, y, low, high, asked]) => ({ x: from, y, low, high, asked,
    text: `${c.mixer}\ndistance ${from} to ${2 * from - 1}: ${share(y)} (${interval(low, high)})\n${count(asked, "answer")}` })));
  figure("distance", (host) => plot(host, { series, y: "Accuracy", label: "Accuracy against distance", dodge: 4,
    x: { label: "Distance in tokens (start of bin)", base: 2, format: whole } }),
    [col("Mixer", false), col("Distance"), col("Accuracy"), col("95 % interval"), col("Answers")],
    flat(series, (name, p) => [name, `${p.x} to ${2 * p.x - 1}`, share(p.y), interval(p.low, p.high), whole(p.asked)]),
    "Nothing to show: the task does not say how far back an answer lies, or no run of this width got as far as its test.");
}
function learning() {
  const series = lines(wide(), (c) => c.mean.map(([x, y]) => ({ x, y })));
  for (const s of series) {
    s.bare = true;
    s.all = wide().filter((c) => c.mixer === s.name).reduce((sum, c) => sum + c.seeds, 0);
    s.seeds = wide().filter((c) => c.mixer === s.name).flatMap((c) => c.curves.map((seed) => seed.map(([x, y]) => ({ x, y }))));
  }
  const ends = series.map((s) => [s.name, whole(s.points.at(-1).x), share(s.points.at(-1).y), String(s.all)]);
  const some = series.some((s) => s.seeds.length < s.all);
  find("learning-note").textContent = some ? " Of very many seeds, a few are drawn, evenly from the lowest to the highest." : "";
  figure("learning", (host) => plot(host, { series, y: "Selection accuracy", label: "Selection accuracy against step",
    x: { label: "Step", base: 0, format: whole } }), [col("Mixer", false), col("Last step"), col("Mean at the last step"), col("Seeds")], ends,
    "Nothing to show: no run of this width looked at the selection stream.");
}

// The runs of a point, and one run.
const key = (run) => html("a", { href: `#run-${run.key}` }, html("code", null, run.key));
const again = (run) => (run.command ? copier(run.command, "Copy command") : "no command says it");
function pick(cell) {
  view.chosen = cell;
  const rows = runsOf(cell).sort((a, b) => a.rate - b.rate || a.seed - b.seed)
    .map((run) => [key(run), plain(run.rate), String(run.seed), run.outcome, share(run.accuracy), whole(run.steps), seconds(run.seconds), again(run)]);
  const columns = [col("Run", false), col("Rate"), col("Seed"), col("Outcome", false), col("Accuracy"), col("Steps"), col("Seconds"), col("Redo", false)];
  find("point").replaceChildren(html("div", null, html("h3", null, `${cell.mixer}, width ${cell.dim}`),
    html("p", { class: "caption" }, `${count(rows.length, "run")}; the point is those at rate ${plain(cell.rate)}. ${cell.parameters === null ? "" : `${whole(cell.parameters)} parameters.`}`),
    html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Runs of the point" }, grid(columns, rows))));
  frontier();
  document.querySelector("#frontier .chosen")?.focus({ preventScroll: true });
}
function diagnosis(causes) {
  if (!causes.length) return [];
  return [html("h3", null, "Why it may not have learnt the task"), html("ol", null, causes.map(([name, sentence, seen, command]) =>
    html("li", null, html("strong", null, name), `: ${sentence} Seen: ${seen}.`, command ? html("pre", { class: "wrap" }, command) : null)))];
}
function dialog() {
  const run = data.runs.find((r) => `#run-${r.key}` === location.hash), box = find("run");
  if (!run) return;
  const cell = data.cells[run.cell], recipe = { ...cell.recipe, rate: run.rate, seed: run.seed };
  const json = (value) => html("pre", { class: "wrap" }, JSON.stringify(value, null, 1));
  box.replaceChildren(html("button", { type: "button", class: "close", onclick: () => box.close() }, "Close"),
    html("h2", { id: "run-title" }, `Run ${run.key}`),
    html("p", null, `${cell.mixer}, width ${cell.dim}, rate ${plain(run.rate)}, seed ${run.seed}: ${run.outcome}, accuracy ${share(run.accuracy)}.`),
    ...diagnosis(data.causes?.[run.key] ?? []),
    html("h3", null, "Redo"), run.command ? html("pre", { class: "wrap" }, run.command)
      : html("p", null, "No command line says this recipe: a file it was made from is gone or has changed, or has a name that cannot stand in a pattern."),
    run.command ? copier(run.command, "Copy command") : null,
    html("h3", null, "Recipe"), json(recipe), html("h3", null, "Origin"), json({ begun: run.begun, ...data.origins[run.origin] }));
  if (!box.open) box.showModal();
}

// The table of runs.
const COLUMNS = [
  ["Run", (r) => r.key, key], ["Mixer", (r, c) => c.mixer, (r, c) => html("span", { class: "name", title: c.mixer }, c.mixer)], ["Family", (r, c) => c.family],
  ["Width", (r, c) => c.dim, String], ["State", (r, c) => c.state, whole], ["Rate", (r) => r.rate, plain], ["Seed", (r) => r.seed, String],
  ["Outcome", (r) => r.outcome], ["Accuracy", (r) => r.accuracy, share], ["Selection", (r) => r.selection, share], ["Solved at", (r) => r.solved, whole],
  ["Steps", (r) => r.steps, whole], ["Seconds", (r) => r.seconds, seconds], ["Task", (r, c) => data.tasks[c.task].label, (r, c) => html("span", { class: "name", title: data.tasks[c.task].label }, data.tasks[c.task].label)],
  ["Redo", null, again],
].map(([name, value, show]) => ({ name, value, number: [String, whole, plain, share, seconds].includes(show),
  show: (r, c) => ([String, whole, plain, share, seconds].includes(show) ? show(value(r, c)) : show ? show(r, c) : value(r, c)) }));
function table() {
  const words = (text) => text.toLowerCase().split(/[\s,;()]+/).filter(Boolean), wanted = words(find("filter").value);
  const lines = data.runs.map((r) => ({ r, c: data.cells[r.cell] })).filter(({ r, c }) => {
    const text = [r.key, c.mixer, c.family, r.outcome, data.tasks[c.task].label, `width=${c.dim}`, `rate=${plain(r.rate)}`, `seed=${r.seed}`].join(" ");
    const said = new Set(words(text));
    return wanted.every((word) => (word.includes("=") ? said.has(word) : text.toLowerCase().includes(word)));
  });
  const { value } = COLUMNS.find((column) => column.name === view.sort.name), sign = view.sort.down ? -1 : 1;
  const sorted = lines.map((line) => ({ ...line, by: value(line.r, line.c) })).sort((a, b) =>
    a.by === b.by ? 0 : a.by === null ? 1 : b.by === null ? -1 : sign * (typeof a.by === "number" ? a.by - b.by : a.by.localeCompare(b.by, "en", { numeric: true })));
  const shown = view.all ? sorted : sorted.slice(0, ROWS);
  const head = COLUMNS.map((column) => html("th", { scope: "col", class: column.number ? "number" : null,
    "aria-sort": column.name === view.sort.name ? (view.sort.down ? "descending" : "ascending") : null },
    column.value ? html("button", { type: "button", onclick: () => sort(column) }, column.name) : column.name));
  find("table").replaceChildren(html("thead", null, html("tr", null, head)), html("tbody", null, shown.map(({ r, c }) =>
    html("tr", null, COLUMNS.map((column) => html("td", { class: column.number ? "number" : null }, column.show(r, c)))))));
  find("count").textContent = `${count(sorted.length, "run")}${shown.length < sorted.length ? `, ${shown.length} shown` : ""}`;
  find("more").hidden = shown.length === sorted.length;
}
function sort(column) {
  view.sort = { name: column.name, down: view.sort.name === column.name ? !view.sort.down : column.number };
  table();
  [...find("table").querySelectorAll("th button")].find((button) => button.textContent === column.name).focus();
}

// Controls.
function draw() {
  for (const part of [frontier, heat, rates, distance, learning]) part();
}
function choose(at) {
  view.task = at;
  view.chosen = null;
  find("point").replaceChildren();
  view.dim = task().dims.at(-1);
  find("dim").replaceChildren(...task().dims.map((dim) => html("option", { value: dim, selected: dim === view.dim }, String(dim))));
  find("dim-control").hidden = task().dims.length < 2;
  draw();
}
function start() {
  themed();
  find("task").replaceChildren(...data.tasks.map((t, i) => html("option", { value: i }, t.label)));
  find("task-control").hidden = data.tasks.length < 2;
  find("task").addEventListener("change", (event) => choose(Number(event.target.value)));
  find("dim").addEventListener("change", (event) => ((view.dim = Number(event.target.value)), draw()));
  const families = [...new Set(data.cells.map((cell) => cell.family))].sort();
  find("families").replaceChildren(...families.map((name) => html("label", null, html("input", { type: "checkbox", checked: true,
    onchange: (event) => (view.hidden[event.target.checked ? "delete" : "add"](name), draw()) }), name)));
  find("filter").addEventListener("input", table);
  find("more").addEventListener("click", () => ((view.all = true), table()));
  find("copy-latex").addEventListener("click", (event) => copy(find("tex").textContent, event.currentTarget));
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("run").addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
  find("runs-note").textContent = (data.runs.length < data.total ? `Of ${count(data.total, "run")}, those at the best rate of each point. ` : "")
    + "A click on a column’s head sorts by it; a run’s key opens its recipe and origin.";
  addEventListener("hashchange", dialog);
  let width = innerWidth;
  addEventListener("resize", () => innerWidth !== width && ((width = innerWidth), requestAnimationFrame(draw)));
  choose(0);
  table();
  dialog();
  const served = document.querySelector("meta[name=bestiary-version]");
  if (served) setInterval(async () => {
    const answer = await fetch("version").catch(() => null);
    if (answer?.ok && (await answer.text()) !== served.content) location.reload();
  }, 2000);
}
start();
