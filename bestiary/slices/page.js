const data = JSON.parse(document.getElementById("data").textContent);
const [first, second] = data.names;
const two = data.names.length === 2;

// Names.
const modelName = (name) => html("span", { class: "model-name", title: name }, name);
const swatch = (i) => (two ? html("span", { class: `swatch ${i ? "second" : "first"}` }) : null);

// Numbers as text.
const signed = (x) => (x === null ? "–" : `${x <= -0.005 ? "−" : x >= 0.005 ? "+" : ""}${Math.abs(x).toFixed(2)}`);
const nats = (x) => (x === null ? "–" : x.toFixed(2));
const short = (text, most) => (text.length <= most ? text : `${text.slice(0, most)}… (${text.length} characters)`);
function probability(loss) {
  const p = Math.exp(-loss);
  if (p === 0) return "0";
  if (p >= 0.001) return p < 1 && p >= 0.9995 ? "> 0.999" : p.toFixed(3);
  const [digits, power] = p.toExponential(1).split("e-");
  return `${digits} × 10⁻${[...power].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`;
}

// What a passage says: values of its tokens, and means over its hits and its other tokens.
const gap = (a, b) => (a === null || b === null ? null : a - b);
const value = (passage, i, mode) => (mode === "difference" ? gap(passage.losses[0][i], passage.losses[1][i]) : passage.losses[mode][i]);
const MODES = two ? ["difference", 0, 1] : [0];
function mean(passage, mode, hit) {
  const found = passage.pieces.map((_, i) => (hit === null || passage.hits[i] === hit ? value(passage, i, mode) : null)).filter((x) => x !== null);
  return found.length ? found.reduce((a, b) => a + b) / found.length : null;
}
for (const passage of data.passages) {
  passage.means = Object.fromEntries(MODES.map((mode) => [mode, { hit: mean(passage, mode, 1), other: mean(passage, mode, 0), all: mean(passage, mode, null) }]));
  passage.predicted = passage.hits.map((_, i) => passage.losses.every((losses) => losses[i] !== null));
}
const shownMeans = (passage) => passage.means[MODES[0]]; // what the list shows and sorts by
const steps = (x) => Math.min(12, Math.max(0.25, Math.ceil(x * 4) / 4));
function quantile(mode, share) { // the size that so many of all tokens do not exceed
  const sizes = data.passages.flatMap((passage) => passage.pieces.map((_, i) => value(passage, i, mode))).filter((x) => x !== null).map(Math.abs);
  return sizes.length ? Float64Array.from(sizes).sort()[Math.floor(share * (sizes.length - 1))] : 1;
}

const limits = Object.fromEntries(MODES.map((mode) => [mode, steps(quantile(mode, 0.95))]));
if (two) limits[0] = limits[1] = Math.max(limits[0], limits[1]); // so that the two can be compared
const view = { at: 0, mode: MODES[0], only: false, order: [], focused: null, pointed: null };
const passage = () => data.passages[view.at];
const tokens = () => find("text").children;

// One token. What cannot be seen as it is stands in a box.
const SPECIAL = /^(<\|[^|]*\|>|<\/?s>|<(unk|pad|bos|eos|mask)>|\[(UNK|PAD|CLS|SEP|MASK)\])$/;
function token(piece, i) {
  const span = html("span", { class: `token${passage().hits[i] ? " hit" : ""}`, tabindex: -1, "data-i": i });
  const boxed = (text) => html("span", { class: "box" }, text);
  if (piece === "" || SPECIAL.test(piece)) return span.append(boxed(piece || "∅")), span;
  for (const part of piece.split(/([\ufffd\x00-\x09\x0b-\x1f\x7f]|\n)/).filter(Boolean))
    if (part === "\n") span.append(html("span", { class: "break" }), "\n");
    else if (part === "\t") span.append(part);
    else if (/^[\x00-\x1f]$/.test(part)) span.append(boxed(String.fromCharCode(0x2400 + part.charCodeAt(0))));
    else span.append(part === "\ufffd" || part === "\x7f" ? boxed(part === "\x7f" ? "␡" : part) : part);
  return span;
}
const visible = (piece) => (piece === "" ? "∅" : piece.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥")
  .replace(/[\x00-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0))));

// Colours: how far between the paper and the hue, by the style sheet's own mixing.
function paint() {
  const limit = limits[view.mode];
  for (const [i, span] of [...tokens()].entries()) {
    const found = view.only && !passage().hits[i] ? null : value(passage(), i, view.mode);
    span.classList.remove("first", "second", "loss");
    span.style.setProperty("--strength", `${(100 * Math.min(1, Math.abs(found ?? 0) / limit)).toFixed(1)}%`);
    if (found !== null) span.classList.add(view.mode !== "difference" ? "loss" : found < 0 ? "first" : "second");
  }
  find("text").classList.toggle("only", view.only);
  const said = (x) => `${x.toLocaleString("en")} nats`;
  find("limit").value = limit;
  find("limit-said").textContent = (view.mode === "difference" ? "±" : "") + said(limit);
  const ends = (name, ...texts) => html("div", { class: name }, texts.map((text) => html("span", null, text)));
  find("legend").replaceChildren(...(view.mode === "difference"
    ? [html("div", { class: "ramp two" }), ends("ends three", `−${limit}`, "0 nats", `+${limit}`),
      ends("ends", [swatch(0), modelName(first), " better"], [swatch(1), modelName(second), " better"])]
    : [html("div", { class: "ramp one" }), ends("ends three", "0", "nats", String(limit)), ends("ends", "certain", "surprised")]));
}

// The card of a token, and the way to where it occurred before.
function showCard() {
  const i = view.pointed ?? view.focused, card = find("card");
  for (const span of find("text").querySelectorAll(".now, .earlier, .pair")) span.classList.remove("now", "earlier", "pair");
  find("trace").replaceChildren();
  card.hidden = i === null;
  if (i === null) return;
  const earlier = passage().earlier[i];
  tokens()[i].classList.add("now");
  if (earlier >= 0) {
    tokens()[earlier].classList.add("earlier");
    for (const before of [earlier - 1, i - 1]) if (before >= 0 && before !== earlier) tokens()[before].classList.add("pair");
    drawTrace(tokens()[earlier], tokens()[i]);
  }
  card.replaceChildren(...cardContent(i));
  placeCard(card, tokens()[i], tokens()[earlier]?.getBoundingClientRect());
}
function cardContent(i) {
  const { pieces, losses, hits, predicted, distances, counts, earlier } = passage();
  const head = html("div", { class: "head" }, html("code", null, short(visible(pieces[i]), 60)),
    predicted[i] ? html("span", { class: hits[i] ? "badge hit" : "badge" }, hits[i] ? "AR hit" : "other") : null);
  if (!predicted[i]) return [head, html("p", null, "Nothing was predicted here: it begins the context.")];
  const number = (...text) => html("td", { class: "number" }, ...text);
  const row = (name, k) => html("tr", null, html("th", { scope: "row" }, swatch(k), modelName(name)), number(probability(losses[k][i])), number(nats(losses[k][i])));
  const between = two ? gap(losses[0][i], losses[1][i]) : null;
  const verdict = !two ? null : html("tr", { class: "sum" }, html("th", { scope: "row", colspan: 2 },
    Math.abs(between) < 0.005 ? "no difference" : html("span", null, modelName(between < 0 ? first : second), " better by")), number(nats(Math.abs(between))));
  const back = distances[i] <= 0 ? "none" : `${count(distances[i], "token")} back${earlier[i] < 0 ? ", not shown" : ""}`;
  return [head, html("table", null, html("thead", null, html("tr", null, ["Model", "Probability", "Loss, nats"].map((name, k) =>
    html("th", { scope: "col", class: k ? "number" : null }, name)))), html("tbody", null, data.names.map(row), verdict)),
    html("dl", null, html("dt", null, "Earlier in the context"), html("dd", null, back),
      html("dt", null, "Pair was counted"), html("dd", null, counts[i] < 0 ? "not counted" : counts[i] ? count(counts[i], "time") : "never"))];
}
function placeCard(card, span, earlier) {
  const stage = find("stage").getBoundingClientRect(), parts = span.getClientRects(), at = parts[0], last = parts[parts.length - 1];
  const { offsetWidth: width, offsetHeight: height } = card, bar = find("controls").getBoundingClientRect().bottom;
  const inside = (x) => Math.max(stage.left + 8, Math.min(x, stage.right - width - 8));
  const ways = [last.bottom + 8, at.top - height - 8].flatMap((y) => [at.left, at.right - width, stage.left, stage.right - width].map((x) => [inside(x), y]));
  const seen = ([, y]) => y >= bar && y + height + 4 <= innerHeight;
  const clear = ([x, y]) => !earlier || earlier.right < x || earlier.left > x + width || earlier.bottom < y || earlier.top - 20 > y + height;
  const [x, y] = ways.find((way) => seen(way) && clear(way)) ?? ways.find(seen) ?? ways[0];
  card.style.left = `${x - stage.left}px`;
  card.style.top = `${y - stage.top}px`;
  const covered = last.bottom - card.getBoundingClientRect().top + 12; // on a phone the card is at the screen's edge
  if (getComputedStyle(card).position === "fixed" && covered > 0) scrollBy(0, covered);
}
function drawTrace(from, to) {
  const stage = find("stage").getBoundingClientRect(), svg = (tag, attributes) => {
    const drawn = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) drawn.setAttribute(name, value);
    return drawn;
  };
  const [a, b] = [from, to].map((span) => span.getClientRects()[0]).map((box) => [(box.left + box.right) / 2 - stage.left - 1, box.top - stage.top - 1]);
  const lift = Math.min(46, 14 + Math.hypot(a[0] - b[0], a[1] - b[1]) / 8);
  const d = `M${a} C${a[0]},${a[1] - lift} ${b[0]},${b[1] - lift} ${b}`;
  find("trace").replaceChildren(svg("path", { d, class: "under" }), svg("path", { d }), svg("circle", { cx: a[0], cy: a[1], r: 3.5 }));
}

// Moving in the text.
function keyTarget(key) {
  const from = view.focused ?? 0, all = [...tokens()], near = (found) => found.find((i) => passage().hits[i]) ?? from;
  const after = all.map((_, i) => i).slice(from + 1), before = all.map((_, i) => i).slice(0, from).reverse();
  const line = (candidates, sign) => {
    const at = all[from].getClientRects()[0], middle = (at.left + at.right) / 2;
    let best = from, away = Infinity, level = null;
    for (const i of candidates) {
      const box = all[i].getClientRects()[0];
      if (sign * (box.top - at.top) < at.height / 2) continue;
      level ??= box.top;
      if (Math.abs(box.top - level) > at.height / 2) break;
      const far = Math.abs((box.left + box.right) / 2 - middle);
      if (far < away) [best, away] = [i, far];
    }
    return best;
  };
  const ways = { ArrowRight: () => after[0] ?? from, ArrowLeft: () => before[0] ?? from, Home: () => 0, End: () => all.length - 1,
    ArrowDown: () => line(after, 1), ArrowUp: () => line(before, -1), n: () => near(after), p: () => near(before) };
  return ways[key.length === 1 ? key.toLowerCase() : key]?.() ?? null;
}
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") return document.activeElement.blur();
  const to = keyTarget(event.key);
  if (to === null) return;
  event.preventDefault();
  tokens()[to].focus();
}
const index = (event) => {
  const span = event.target.closest(".token");
  return span ? Number(span.dataset.i) : null;
};

// The list of passages.
const ORDERS = two
  ? { second: [`gap on hits, ${second} better first`, (p) => -shownMeans(p).hit], first: [`gap on hits, ${first} better first`, (p) => shownMeans(p).hit], given: ["as given", () => 0] }
  : { most: ["loss on AR hits, highest first", (p) => -shownMeans(p).hit], least: ["loss on AR hits, lowest first", (p) => shownMeans(p).hit], given: ["as given", () => 0] };
const most = Math.max(...data.passages.flatMap((p) => [shownMeans(p).hit, shownMeans(p).other]).map((x) => Math.abs(x ?? 0)), 1e-9);
function meterLine(name, kind, passage) {
  const found = shownMeans(passage)[kind], share = (100 * Math.abs(found ?? 0)) / most;
  const meter = html("span", { class: `meter${two ? ` two ${found < 0 ? "first" : "second"}` : " loss"}`, "aria-hidden": "true" }, html("i"));
  meter.style.setProperty("--size", `${two ? share / 2 : share}%`);
  meter.style.setProperty("--from", `${two ? 50 - (found < 0 ? share / 2 : 0) : 0}%`);
  const numbers = two ? [`${nats(passage.means[0][kind])} / ${nats(passage.means[1][kind])} `, html("b", null, signed(found))] : [html("b", null, nats(found)), " nats"];
  return html("span", { class: "line" }, html("span", null, name), meter, html("span", null, found === null ? "none" : numbers));
}
function buildList() {
  const by = ORDERS[find("sort").value][1], last = (p) => (find("sort").value !== "given" && shownMeans(p).hit === null ? 1 : 0);
  view.order = data.passages.map((_, i) => i).sort((i, j) => {
    const [p, q] = [data.passages[i], data.passages[j]];
    return last(p) - last(q) || by(p) - by(q) || i - j;
  });
  find("list").replaceChildren(...view.order.map((i) => html("div", { role: "option", "data-i": i },
    html("span", { class: "title", title: data.passages[i].title }, data.passages[i].title),
    meterLine("AR hits", "hit", data.passages[i]), meterLine("other", "other", data.passages[i]))));
}
function choose(at, remember = true) {
  Object.assign(view, { at, focused: null, pointed: null });
  for (const option of find("list").children) {
    const chosen = Number(option.dataset.i) === at;
    option.setAttribute("aria-selected", chosen);
    option.tabIndex = chosen ? 0 : -1;
    if (chosen) reveal(option);
  }
  const place = view.order.indexOf(at);
  find("title").textContent = passage().title;
  find("place").textContent = `${place + 1} of ${data.passages.length}`;
  find("previous").disabled = place === 0;
  find("next").disabled = place === view.order.length - 1;
  find("text").replaceChildren(...passage().pieces.map(token));
  tokens()[0]?.setAttribute("tabindex", 0);
  if (remember) history.replaceState(null, "", `#passage-${at + 1}`);
  showMeans();
  paint();
  showCard();
}
function reveal(option) { // within the list alone, so that the page stays where it is
  const box = find("list"), top = option.offsetTop - box.offsetTop;
  if (top < box.scrollTop || top + option.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight / 3;
}
function showMeans() {
  const sizes = { hit: 0, other: 0, all: 0 };
  passage().predicted.forEach((predicted, i) => predicted && (sizes.all++, sizes[passage().hits[i] ? "hit" : "other"]++));
  const heads = two ? ["", "Tokens", [swatch(0), modelName(first)], [swatch(1), modelName(second)], "Difference"] : ["", "Tokens", [modelName(first)]];
  const rows = [["AR hits", "hit"], ["Other", "other"], ["All", "all"]].map(([name, kind]) => html("tr", null, html("th", { scope: "row" }, name),
    [sizes[kind].toLocaleString("en"), ...(two ? [0, 1] : [0]).map((mode) => nats(passage().means[mode][kind])), ...(two ? [signed(passage().means.difference[kind])] : [])]
      .map((text) => html("td", { class: "number" }, text))));
  find("means").replaceChildren(html("caption", null, "Mean loss of this passage, nats"), html("thead", null, html("tr", null, heads.map((head, k) => html(head === "" ? "td" : "th", { scope: head === "" ? null : "col", class: k ? "number" : null }, head)))), html("tbody", null, rows));
}

// Controls.
function buildControls() {
  themed();
  find("modes").hidden = !two;
  find("modes").append(html("span", { class: "segments" }, MODES.map((mode, k) => html("label", null,
    html("input", { type: "radio", name: "mode", value: mode, ...(k ? {} : { checked: "" }) }), mode === "difference" ? "Difference" : modelName(data.names[mode])))));
  find("modes").addEventListener("change", (event) => ((view.mode = event.target.value === "difference" ? "difference" : Number(event.target.value)), paint()));
  find("only").addEventListener("change", (event) => ((view.only = event.target.checked), paint()));
  find("limit").addEventListener("input", (event) => ((limits[view.mode] = Number(event.target.value)), paint()));
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("sort").append(...Object.entries(ORDERS).map(([name, [text]]) => html("option", { value: name }, text)));
  if (two) find("sort").value = data.passages.reduce((sum, p) => sum + (shownMeans(p).hit ?? 0), 0) < 0 ? "first" : "second";
  find("sort").addEventListener("change", () => (buildList(), choose(view.order[0])));
  find("previous").addEventListener("click", () => choose(view.order[view.order.indexOf(view.at) - 1]));
  find("next").addEventListener("click", () => choose(view.order[view.order.indexOf(view.at) + 1]));
}
function listenToText() {
  const text = find("text");
  text.addEventListener("mouseover", (event) => index(event) !== null && ((view.pointed = index(event)), showCard()));
  text.addEventListener("click", (event) => event.target.closest(".token")?.focus());
  addEventListener("pointerdown", (event) => view.focused !== null && !event.target.closest("#text") && document.activeElement.blur());
  text.addEventListener("mouseleave", () => ((view.pointed = null), showCard()));
  text.addEventListener("focusin", (event) => {
    Object.assign(view, { focused: index(event), pointed: null });
    for (const span of text.querySelectorAll("[tabindex='0']")) span.tabIndex = -1;
    event.target.tabIndex = 0;
    showCard();
  });
  text.addEventListener("focusout", () => (Object.assign(view, { focused: null, pointed: null }), showCard()));
  text.addEventListener("keydown", onKey);
  const options = find("list");
  options.addEventListener("click", (event) => event.target.closest("[role=option]") && choose(Number(event.target.closest("[role=option]").dataset.i)));
  options.addEventListener("keydown", (event) => {
    const to = view.order.indexOf(view.at) + ({ ArrowDown: 1, ArrowUp: -1 }[event.key] ?? NaN);
    if (!(to in view.order)) return;
    event.preventDefault();
    choose(view.order[to]);
    options.children[to].focus();
  });
  addEventListener("resize", showCard);
}
function start() {
  buildControls();
  listenToText();
  buildList();
  const named = Number(location.hash.match(/^#passage-(\d+)$/)?.[1]) - 1;
  choose(named in data.passages ? named : view.order[0], false);
}
start();
