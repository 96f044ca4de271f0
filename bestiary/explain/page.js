const models = JSON.parse(find("data").textContent);

// The matrix of each head after a token: blue where positive, red where negative.
function draw(canvas, matrix) {
  const rows = matrix.length, columns = matrix[0].length, scale = Math.max(2, Math.floor(160 / Math.max(rows, columns)));
  canvas.width = columns * scale;
  canvas.height = rows * scale;
  const pen = canvas.getContext("2d");
  matrix.forEach((row, i) => row.forEach((cell, j) => {
    pen.fillStyle = `rgba(${cell > 0 ? "8,81,156" : "178,58,38"},${Math.abs(cell) / 99})`;
    pen.fillRect(j * scale, i * scale, scale, scale);
  }));
}

// Arrows from a token to the earlier ones that are read most, as thick as what is read.
const ARROWS = 3, LEAST = 0.05;
function drawArrows(svg, buttons, now, shares) {
  const top = shares.slice(0, now).map((share, j) => [share, j]).sort((a, b) => b[0] - a[0]).slice(0, ARROWS).filter(([share]) => share >= LEAST);
  const middle = (button) => button.offsetLeft + button.offsetWidth / 2;
  svg.replaceChildren(...top.map(([share, j]) => {
    const [from, to] = [buttons[now], buttons[j]], [x, y, u, v] = [middle(from), from.offsetTop, middle(to), to.offsetTop];
    const lift = Math.min(24, 8 + Math.hypot(x - u, y - v) / 10), path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", `M${x},${y} C${x},${y - lift} ${u},${v - lift} ${u},${v} m-3,-5 l3,5 l3,-5`);
    path.setAttribute("stroke-width", (0.6 + 2.4 * share).toFixed(2));
    path.setAttribute("opacity", (0.35 + 0.65 * share).toFixed(2));
    return path;
  }));
}

function player({ name, row }) {
  if (!row) return html("p", { class: "empty" }, `${name}: its rows are too long to be played.`);
  const word = (token) => row.words[token] ?? String(token);
  const tokens = row.tokens.map((token, i) => html("button", { type: "button", class: i === row.key || i === row.key + 1 ? "key" : null, title: `position ${i}`, onclick: () => show(i) }, word(token)));
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const said = html("p", { "aria-live": "polite" });
  const heads = row.matrices ? row.matrices.cells[0].map((_, h) => html("canvas", { role: "img", "aria-label": `memory of head ${h}` })) : [];
  let now = row.at;
  function show(i) {
    now = Math.max(0, Math.min(row.tokens.length - 1, i));
    tokens.forEach((button, j) => {
      button.toggleAttribute("aria-current", j === now);
      button.classList.toggle("later", j > now);
      button.style.setProperty("--w", row.weights && j <= now ? Math.min(1, 2 * row.weights.shares[now][j]) : 0);
    });
    const most = row.weights ? row.weights.shares[now].slice(0, now + 1).map((w, j) => [w, j]).sort((a, b) => b[0] - a[0])[0] : null;
    const reads = most ? ` Layer ${row.weights.layer} reads most from position ${most[1]} (${word(row.tokens[most[1]])}), ${most[0].toFixed(2)}.` : "";
    const asked = now === row.at ? ` This is the question; right is ${word(row.right)}.` : "";
    said.textContent = `Position ${now}, token ${word(row.tokens[now])}: the model says ${word(row.says[now])}; probability of ${word(row.right)}: ${row.chance[now].toFixed(2)}.${asked}${reads}`;
    heads.forEach((canvas, h) => draw(canvas, row.matrices.cells[now][h]));
    arrows();
  }
  const made = html("div", { class: "play" }, html("h3", null, name), html("div", { class: "tokens" }, tokens, svg), said, html("div", null, heads));
  made.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) {
      event.preventDefault();
      show(now + step);
      tokens[now].focus();
    }
  });
  const arrows = () => row.weights && drawArrows(svg, tokens, now, row.weights.shares[now]);
  show(now);
  addEventListener("resize", arrows);
  requestAnimationFrame(arrows); // once it stands in the page and has a size
  return made;
}

find("players").replaceChildren(...models.map(player));
themed();
