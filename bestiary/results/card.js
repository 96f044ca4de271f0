const data = JSON.parse(find("data").textContent);
const view = { hidden: new Set(), sort: { name: data.columns[0], down: true } };
const share = (x) => (x === null || x === undefined ? "–" : x.toFixed(2));
const times = (x) => (x === null || x === undefined ? "–" : x < 10 ? x.toFixed(1) : Math.round(x).toLocaleString("en"));
const whole = (x) => (x === null || x === undefined ? "–" : Math.round(x).toLocaleString("en"));
const diverged = ([value, , high]) => value === 0 && high === 1; // all runs: without an answer the interval is from 0 to 1
const text = (column, s) => (column === data.rates ? (s[0] === null ? "none" : s[0].toFixed(1)) : diverged(s) ? "diverged" : share(s[0]));
const spoken = (s) => (diverged(s) ? "diverged" : `${share(s[0])} (${share(s[1])} to ${share(s[2])})`);
const shown = () => data.mixers.filter((m) => m.own || !view.hidden.has(m.family));
const colour = (m) => (m.own ? "var(--ink)" : `var(--c${1 + data.families.indexOf(m.family) % 11})`);

function dot(x, y, m) { // own ones are stars
  const r = m.own ? 8 : 4;
  const corner = (i) => `${x + r * (i % 2 ? 0.45 : 1) * Math.sin((Math.PI * i) / 5)},${y - r * (i % 2 ? 0.45 : 1) * Math.cos((Math.PI * i) / 5)}`;
  const d = m.own ? `M${Array.from({ length: 10 }, (_, i) => corner(i)).join("L")}z` : `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`;
  return svg("path", { class: "mark", d, fill: colour(m), "fill-opacity": m.own || m.near ? 1 : 0.65 });
}
function point(said, node) {
  const made = svg("g", { class: "point", tabindex: 0, role: "img", "aria-label": said.replaceAll("\n", ", ") }, node);
  const tell = () => {
    const tip = find("tip"), box = node.getBoundingClientRect();
    tip.textContent = said;
    tip.hidden = false;
    tip.style.left = `${Math.max(8, Math.min(box.right + 6, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${box.top - tip.offsetHeight - 6 > 4 ? box.top - tip.offsetHeight - 6 : box.bottom + 8}px`;
  };
  const hide = () => (find("tip").hidden = true);
  for (const [name, act] of [["pointerenter", tell], ["pointerleave", hide], ["focus", tell], ["blur", hide]]) made.addEventListener(name, act);
  return made;
}
function canvas(width, height, label) {
  return svg("svg", { role: "group", "aria-label": label, viewBox: `0 0 ${width} ${height}`, width, height });
}

// Accuracy upwards against a number on a logarithmic axis; points of a mixer are joined.
function scatter(host, label, x, series) {
  const width = Math.max(280, host.clientWidth), height = width < 520 ? 330 : 420, [left, right, top, base] = [46, width - 16, 12, height - 44];
  const values = series.flatMap((s) => s.points.map((p) => p.x));
  if (!values.length) return html("p", { class: "empty" }, "Nothing to show of the chosen families.");
  const [low, high] = [Math.log(Math.min(...values) / 1.3), Math.log(Math.max(...values) * 1.3)];
  const across = (v) => left + 6 + ((Math.log(v) - low) / (high - low)) * (right - left - 12), up = (v) => base - v * (base - top);
  const drawing = canvas(width, height, label);
  for (const v of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    drawing.append(svg("path", { class: "grid", d: `M${left},${up(v)}H${right}` }), svg("text", { class: "soft", x: left - 7, y: up(v) + 4, "text-anchor": "end" }, v.toFixed(1)));
  }
  const wide = (high - low) / Math.LN10 > 2.2, steps = wide ? [1] : [1, 2, 5];
  const round = Array.from({ length: 12 }, (_, i) => steps.map((step) => step * 10 ** (i - 3))).flat().filter((at) => Math.log(at) >= low && Math.log(at) <= high);
  const exact = [...new Set(values)].sort((a, b) => a - b).filter((v, i, all) => !i || across(v) - across(all[i - 1]) > 48);
  for (const at of round.length > 1 ? round : exact) {
    drawing.append(svg("path", { class: "axis", d: `M${across(at)},${base}v5` }), svg("text", { class: "soft", x: across(at), y: base + 18, "text-anchor": "middle" }, at < 10 ? String(Number(at.toPrecision(2))) : whole(at)));
  }
  drawing.append(svg("path", { class: "axis", d: `M${left},${top}V${base}H${right}` }), svg("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, x),
    svg("text", { x: 12, y: (top + base) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(top + base) / 2})` }, "Accuracy"));
  for (const { mixer: m, points } of series) {
    const path = points.map((p, i) => `${i ? "L" : "M"}${across(p.x).toFixed(1)},${up(p.y).toFixed(1)}`).join("");
    drawing.append(svg("path", { class: "line", d: path, stroke: colour(m), "stroke-width": m.own ? 2.2 : 1, opacity: m.own ? 1 : m.near ? 0.8 : 0.2 }));
    for (const p of points) {
      if (m.own) drawing.append(svg("path", { class: "bar", stroke: colour(m), d: `M${across(p.x)},${up(p.low)}V${up(p.high)}` }));
      drawing.append(point(`${m.name}\n${p.text}`, dot(across(p.x), up(p.y), m)));
    }
  }
  const taken = []; // names of own and near mixers, where they do not lie on each other
  for (const { mixer: m, points } of series) {
    if (!(m.own || m.near) || !points.length) continue;
    const last = points.at(-1), end = across(last.x) > (left + right) / 2;
    let y = up(last.y) - 9;
    while (taken.some((t) => Math.abs(t - y) < 13)) y += 13;
    taken.push(y);
    drawing.append(svg("text", { class: "halo", x: across(last.x) + (end ? -9 : 9), y, "text-anchor": end ? "end" : "start", "font-weight": m.own ? 700 : 400 }, m.name));
  }
  return drawing;
}
const accuracy = (s) => ({ y: s[0], low: diverged(s) ? 0 : s[1], high: diverged(s) ? 0 : s[2] });
const ordered = () => [...shown()].sort((a, b) => a.own - b.own || a.near - b.near);
function recall() {
  const series = ordered().map((m) => ({ mixer: m, points: data.widths.filter((w) => m.scores[`recall ${w}`] && m.facts[`state ${w}`]).map((w) => {
    const score = m.scores[`recall ${w}`], state = m.facts[`state ${w}`];
    return { x: state, ...accuracy(score), text: `width ${w}, state ${whole(state)} numbers\naccuracy ${spoken(score)}` };
  }) }));
  const host = document.querySelector("#recall figure");
  host.replaceChildren(scatter(host, "Recall against state", "State in numbers, after the longest test", series));
}
function cost() {
  const widest = Math.max(...data.widths), series = ordered().filter((m) => m.scores[`recall ${widest}`] && m.facts["train beside attention"]).map((m) => {
    const score = m.scores[`recall ${widest}`], ratio = m.facts["train beside attention"];
    return { mixer: m, points: [{ x: ratio, ...accuracy(score), text: `${times(ratio)} times attention's training pass\naccuracy ${spoken(score)}` }] };
  });
  const host = document.querySelector("#cost figure");
  host.replaceChildren(scatter(host, "Recall against cost", "Training pass, times attention's", series));
}
function strips() {
  const host = document.querySelector("#scores figure");
  if (!host) return; // on the board
  const width = Math.max(280, host.clientWidth), narrow = width < 640;
  const rows = data.columns.filter((c) => data.mixers.some((m) => m.own && m.scores[c])), owns = data.mixers.filter((m) => m.own);
  const several = owns.length > 1, lines = several ? 16 * owns.length : 0; // a named line for each, if there are several
  const tall = narrow ? 58 + lines : Math.max(34, lines + 18);
  const [left, right] = [narrow ? 8 : 170, narrow ? width - 8 : width - (several ? 320 : 190)], drawing = canvas(width, rows.length * tall + 8, "Every score");
  rows.forEach((column, i) => {
    const scale = column === data.rates ? 2.6 : 1, at = (v) => left + (Math.max(0, v ?? 0) / scale) * (right - left);
    const y = i * tall + (narrow ? 40 + lines : several ? tall / 2 : 20), first = narrow ? y - 20 - lines : y + 4;
    const own = owns.filter((m) => m.scores[column]), [, , , chance] = own[0].scores[column], all = data.mixers.filter((m) => m.scores[column]);
    drawing.append(svg("text", { x: narrow ? left : left - 10, y: first, "text-anchor": narrow ? "start" : "end" }, column),
      svg("path", { class: "grid", d: `M${left},${y}H${right}` }));
    own.forEach((m, n) => {
      const [value] = m.scores[column], rank = 1 + all.filter((other) => (other.scores[column][0] ?? -1) > (value ?? -1)).length;
      const said = column === data.rates ? `${text(column, m.scores[column])} decades` : spoken(m.scores[column]);
      const line = narrow ? first + (several ? 16 * (n + 1) : 0) : first + 16 * (n - (own.length - 1) / 2);
      const long = m.name.length > 18, name = long ? `${m.name.slice(0, 17)}…` : m.name;
      drawing.append(svg("text", { class: "soft", x: narrow ? right : width - 4, y: line, "text-anchor": "end" }, long ? svg("title", null, m.name) : null,
        `${several ? `${name}: ` : ""}${said}, ${rank} of ${all.length}`));
    });
    if (chance) drawing.append(svg("path", { class: "axis", d: `M${at(chance)},${y - 8}v16` }));
    for (const m of ordered().filter((one) => one.scores[column])) {
      const [v] = m.scores[column];
      drawing.append(point(`${m.name}\n${column}: ${text(column, m.scores[column])}`, dot(at(v), y, m)));
    }
  });
  host.replaceChildren(drawing);
}
const FACTS = { "state 64": whole, parameters: whole, "train beside attention": times, "decode beside attention": times, growth: (x) => (x === null || x === undefined ? "–" : x.toFixed(2)) };
function table() {
  const names = [...data.columns, ...Object.keys(FACTS)], value = (m, c) => (c in FACTS ? m.facts[c] : m.scores[c]?.[0]) ?? null;
  const by = view.sort.name, none = (m) => (m.scores[by] ? -1 : null); // no rate that works is the least, what is missing the last
  const key = (m) => (by === "mixer" ? m.name : by === "family" ? m.family : value(m, by) ?? none(m));
  const rows = [...shown()].map((m) => [key(m), m]).sort(([a], [b]) =>
    a === b ? 0 : a === null ? 1 : b === null ? -1 : (a < b ? -1 : 1) * (view.sort.down ? -1 : 1)).map(([, m]) => m);
  const head = (name) => html("th", { scope: "col", class: ["mixer", "family"].includes(name) ? null : "number", "aria-sort": view.sort.name === name ? (view.sort.down ? "descending" : "ascending") : null },
    html("button", { type: "button", onclick: () => sort(name) }, name));
  find("table").replaceChildren(html("thead", null, html("tr", null, ["mixer", "family", ...names].map(head))),
    html("tbody", null, rows.map((m) => html("tr", { class: m.own ? "own" : null }, html("td", null, html("span", { class: "name", title: m.name }, m.name)), html("td", null, m.family),
      names.map((c) => html("td", { class: "number" }, c in FACTS ? FACTS[c](value(m, c)) : m.scores[c] ? text(c, m.scores[c]) : "–"))))));
}
function sort(name) {
  view.sort = { name, down: view.sort.name === name ? !view.sort.down : !["mixer", "family"].includes(name) };
  table();
  [...find("table").querySelectorAll("th button")].find((button) => button.textContent === name).focus();
}
function draw() {
  recall();
  strips();
  cost();
  table();
}
find("families").append(...data.families.map((family) => {
  const box = html("input", { type: "checkbox", checked: true, onchange: (event) => { view.hidden[event.target.checked ? "delete" : "add"](family); draw(); } });
  const key = svg("svg", { width: 12, height: 12, "aria-hidden": "true" }, dot(6, 6, { family }));
  return html("label", null, box, key, family);
}));
themed();
draw();
let last = innerWidth;
addEventListener("resize", () => { if (innerWidth !== last) { last = innerWidth; draw(); } });
