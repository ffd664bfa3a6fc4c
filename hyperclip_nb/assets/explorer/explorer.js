// The explorer's page: draws what it is sent and says what a person does. It computes nothing about networks.
//
// `mount(el, source)` draws into an element. A source is a kernel behind anywidget, or answers computed beforehand
// (the documentation's page). It has: get(name) and on(name, call) for "world", "dots", "choice", "shown", "more",
// "said", "work", "pictures", "sprite", "own", "own_sprite" and "matrices"; ask(choice); send(message, buffers) and
// heard(call) for the rest; `address`, whether the page's address holds the choice; `live`, whether there is a kernel;
// without one `knows(question)`, whether its answers are there, and `step`, of γ. What shared.js has stands before this.

const COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "INK", "#B59B00", "#8700F0", "#8A5A2B", "#4454C8", "#6E9E3F"];
const SHAPES = [ // of groups, within a circle of radius 1
  "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0Z", "M-.85-.85H.85V.85H-.85Z", "M0-1.05L1 .8H-1Z", "M0-1.2L1 0L0 1.2L-1 0Z",
  "M0 1.05L1-.8H-1Z", "M-.35-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
  "M-1-.6L-.6-1L0-.4L.6-1L1-.6L.4 0L1 .6L.6 1L0 .4L-.6 1L-1 .6L-.4 0Z",
  "M0-1.2L.32-.4L1.15-.37L.5.15L.71 1L0 .5L-.71 1L-.5.15L-1.15-.37L-.32-.4Z", "M-1.05 0L.8-1V1Z",
  "M0-1.1L1.05-.34L.65.9H-.65L-1.05-.34Z", "M1.05 0L-.8-1V1Z", "M.95-.55V.55L0 1.1L-.95.55V-.55L0-1.1Z",
];
const NONE = "M0-1.3L.35-.35L1.3 0L.35.35L0 1.3L-.35.35L-1.3 0L-.35-.35Z"; // a question of no family
const WIDE = 440, HIGH = 340; // of the map, in its own pixels
const OPTIONS = {
  kind: ["Generator", [["hvae", "HVAE"], ["hnet", "HNet"]], "which network turns latents into weights"],
  guidance: ["Guidance", [["hyperldm", "HyperLDM (diffusion)"], ["hyperclip", "HyperCLIP (descent)"]], "how the words choose a latent"],
  sampler: ["Sampler", [["ddpm", "DDPM"], ["ddim", "DDIM"], ["dpm", "DPM-Solver++"]], "how noise becomes a latent"],
};
const SLIDERS = { // name: label, least, largest, step, what it is
  prior: ["λ", 0, 0.3, 0.01, "HyperCLIP's pull towards the start"], steps: ["Steps", 2, 100, 1, "of the sampler or the descent"],
  networks: ["Networks", 1, 20, 1, "samples whose answers are averaged"],
  shots: ["Examples of every answer", 0, 10, 1, "labelled pictures that the networks are adapted to"],
  seed: ["Seed", 0, 99, 1, "of the noise and of the examples"],
};

const color = (index) => (COLORS[index % 12] === "INK" ? "var(--hn-ink)" : COLORS[index % 12]);

export function mount(el, source) { // returns what ends it
  let end = begin(el, source), closed = source.get("world").closed;
  const off = source.on("world", () => { // a run that was not there has been trained: everything is another
    if (!closed || source.get("world").closed) return;
    closed = false;
    end();
    el.replaceChildren();
    end = begin(el, source);
  });
  return () => { if (off) off(); end(); };
}

function begin(el, source) {
  const id = (name) => `hn-${page}-${name}`, page = ++pages;
  const knows = (text) => source.live || source.knows(text);
  let choice = { ...source.get("world").usual, ...source.get("choice") };
  let turn = choice.turn || 0, asked = 0, said = "";
  let shown = null, more = null, pinned = null, hovered = null, zoomed = true, found = [];
  let view = { step: null, place: null, line: "embedding" }, playing = null, trail = [], at = -1;
  const forget = [];

  // --- what is said, and what is asked -------------------------------------------------------------------------
  const live = h("div", { class: "hn-hidden", role: "status", "aria-live": "polite" });
  const busy = h("span", { class: "hn-busy", hidden: true }, "working …");
  const note = h("div", { class: "hn-note" });
  let announced;
  function announce(text) {
    clearTimeout(announced);
    announced = setTimeout(() => { live.textContent = text; }, 400); // not at every tick of a slider
  }

  function ask(change, how = {}) {
    choice = { ...choice, ...change };
    delete choice.address;
    if (how.address) choice = { ...source.get("world").usual, address: how.address };
    if (change.question !== undefined || how.address) { view.place = null; }
    stop();
    view.step = null;
    turn += 1;
    choice.turn = turn;
    choice.fresh = !!how.fresh;
    asked = Date.now();
    kernel.wait();
    root.classList.add("hn-stale");
    saver.disabled = true;
    setTimeout(() => { busy.hidden = !root.classList.contains("hn-stale"); }, 200);
    try { source.ask(choice); } catch { lost(); }
  }
  function lost() {
    busy.hidden = true;
    root.classList.add("hn-stale");
    say(GONE,
      source.address && h("button", { type: "button", onclick: () => location.reload() }, "Load the page again"));
  }
  function answered(of) {
    if (of < turn) return false;
    kernel.calm();
    busy.hidden = true;
    return true;
  }
  function say(text, ...extra) {
    said = text;
    note.replaceChildren(h("div", { class: "hn-say", role: "alert" }, text, " ", ...extra));
  }

  // --- the question --------------------------------------------------------------------------------------------
  const record = h("div", { class: "hn-record" });
  const chips = h("div", { class: "hn-chips", role: "group", "aria-label": "Examples to begin with" });
  const question = source.live ? h("input", { type: "text", id: id("q"), autocomplete: "off", maxlength: 300, list: id("list"), placeholder: "any question about a picture" })
    : h("select", { id: id("q"), onchange: () => askFor(question.value) }, source.get("world").held.map(([text]) => h("option", {}, text)));
  const answers = h("input", { type: "text", id: id("a"), autocomplete: "off", readonly: !source.live, placeholder: "at least two, with commas between them" });
  const list = h("datalist", { id: id("list") });
  const related = h("div", { class: "hn-chips hn-small", role: "group", "aria-label": "Related questions" });
  const back = h("button", { type: "button", title: "back", "aria-label": "Back to the earlier choice", onclick: () => travel(-1) }, "◀");
  const forth = h("button", { type: "button", title: "forward", "aria-label": "Forward to the later choice", onclick: () => travel(1) }, "▶");
  const form = h("form", { class: "hn-ask", onsubmit: (event) => { event.preventDefault(); submit(); } },
    h("div", {}, h("label", { for: id("q") }, "Question"), question, list),
    h("div", {}, h("label", { for: id("a") }, "Answers"), answers),
    h("div", { class: "hn-go" }, source.live && h("button", { type: "submit", class: "hn-main-button" }, "Ask"), !source.address && back, !source.address && forth, busy));
  function submit() {
    const fresh = question.value.trim() !== (shown ? shown.choice.question : "");
    ask({ question: question.value, answers: answers.value }, { fresh: fresh && answers.value === (shown ? shown.choice.answers : "") });
  }
  const askFor = (text) => { question.value = text; ask({ question: text, answers: "" }, { fresh: true }); };

  // --- γ, and the settings -------------------------------------------------------------------------------------
  const gammaOut = h("output", { for: id("gamma") });
  const gamma = h("input", { type: "range", id: id("gamma"), min: 0, max: 4, step: source.step || 0.1, "aria-describedby": id("gamma-what"),
    oninput: () => { gammaOut.textContent = (+gamma.value).toFixed(1); mark(); ask({ gamma: +gamma.value }); } });
  const strip = h("div", { class: "hn-strip" });
  const gammaBox = h("div", { class: "hn-gamma" },
    h("div", { class: "hn-name" }, h("label", { for: id("gamma") }, h("b", {}, "γ"), " guidance"), " ", gammaOut),
    h("div", { class: "hn-over" }, strip, gamma),
    h("div", { class: "hn-now" }));
  const now = gammaBox.lastChild;
  const fields = {};
  const settings = h("details", { class: "hn-settings", hidden: !source.live }, h("summary", {}, "Settings"), h("div", { class: "hn-fields" }));
  for (const [name, [label, pairs, tip]] of Object.entries(OPTIONS)) {
    const field = h("select", { id: id(name), title: tip, onchange: () => ask({ [name]: field.value }) },
      pairs.map(([value, text]) => h("option", { value }, text)));
    fields[name] = field;
    settings.lastChild.append(h("div", { "data-for": name }, h("label", { for: id(name) }, label), field));
  }
  for (const [name, [label, min, max, step, tip]] of Object.entries(SLIDERS)) {
    const out = h("output", { for: id(name) });
    const field = h("input", { type: "range", id: id(name), min, max, step, title: tip,
      oninput: () => { out.textContent = field.value; ask({ [name]: +field.value }); } });
    fields[name] = field;
    settings.lastChild.append(h("div", { "data-for": name }, h("label", { for: id(name) }, label), " ", out, field));
  }
  function fill() { // fields from the choice
    gamma.value = choice.gamma;
    gammaOut.textContent = (+choice.gamma).toFixed(1);
    for (const [name, field] of Object.entries(fields)) {
      field.value = choice[name];
      const out = field.parentNode.querySelector("output");
      if (out) out.textContent = choice[name];
    }
    const diffusion = choice.guidance === "hyperldm";
    gammaBox.hidden = !diffusion;
    for (const name of ["sampler", "networks", "prior"]) {
      settings.querySelector(`[data-for=${name}]`).hidden = (name !== "prior") !== diffusion;
    }
    if (document.activeElement !== question || shown) question.value = choice.question;
    answers.value = choice.answers || "";
  }
  function scorePlot(xs, lines, present, label) { // accuracies over something, as SVG as wide as its place
    const x = (v) => 1000 * (v - xs[0]) / (xs[xs.length - 1] - xs[0] || 1), y = (v) => 100 - v;
    const parts = lines.flatMap(({ scores, stroke, dash }) => [
      s("path", { d: `M${scores.map((one, i) => `${x(xs[i])} ${y(one.high)}`).join("L")}L${scores.map((one, i) => `${x(xs[i])} ${y(one.low)}`).reverse().join("L")}Z`, fill: stroke, opacity: 0.13 }),
      s("path", { d: `M${scores.map((one, i) => `${x(xs[i])} ${y(one.percent)}`).join("L")}`, fill: "none", stroke, "stroke-width": 2, "stroke-dasharray": dash, "vector-effect": "non-scaling-stroke" }),
    ]);
    return s("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img", "aria-label": label }, parts,
      s("line", { class: "hn-present", x1: x(present), x2: x(present), y1: 0, y2: 100, stroke: "var(--hn-ink)", "stroke-width": 2, "vector-effect": "non-scaling-stroke" }));
  }
  function mark() { // the present γ
    const line = strip.querySelector(".hn-present");
    if (line) for (const end of ["x1", "x2"]) line.setAttribute(end, 250 * gamma.value);
  }
  function drawStrip() {
    const over = more && more.strip;
    if (!over || !over.scores.length) return strip.replaceChildren();
    const words = over.gammas.map((g, i) => `γ ${g}: ${percent(over.scores[i].percent)}`).join(", ");
    strip.replaceChildren(scorePlot(over.gammas, [{ scores: over.scores, stroke: "var(--hn-right)" }], +gamma.value, `Right answers for every γ: ${words}`));
    strip.title = words;
  }

  // --- the map -------------------------------------------------------------------------------------------------
  const world = source.get("world");
  const canvas = s("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, tabindex: 0, role: "application", class: "hn-map",
    "aria-label": `Map of the training questions. Arrow keys go from dot to dot, ${source.live ? "Enter asks, " : ""}Escape leaves.` });
  const tip = h("div", { class: "hn-tip", hidden: true });
  const search = h("input", { type: "search", id: id("search"), placeholder: "a word, such as cat", oninput: () => { seek(); } });
  const hits = h("span", { class: "hn-soft" });
  const zoom = h("button", { type: "button", "aria-pressed": "true", onclick: () => { zoomed = !zoomed; zoom.setAttribute("aria-pressed", zoomed); drawMap(); } }, "Zoom to the walk");
  const legend = h("div", { class: "hn-legend" }, world.families.map((name, i) => h("span", {}, icon(i), name)));
  const layers = {};
  let frame = null, places = [];
  function icon(index) {
    return s("svg", { viewBox: "-1.4 -1.4 2.8 2.8", "aria-hidden": "true" }, s("path", { d: index < 0 ? NONE : SHAPES[index % 12], fill: index < 0 ? "var(--hn-ink)" : color(index) }));
  }
  const dot = (index, [x, y], radius, props) => s("path", { d: index < 0 ? NONE : SHAPES[index % 12],
    transform: `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${radius})`, fill: index < 0 ? "var(--hn-ink)" : color(index), ...props });
  function around(points) {
    const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
    const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const scale = Math.min(WIDE / (1.16 * (x1 - x0) || 1), HIGH / (1.16 * (y1 - y0) || 1));
    return { x: (x0 + x1) / 2, y: (y0 + y1) / 2, scale };
  }
  const pixel = (p) => [WIDE / 2 + (p[0] - frame.x) * frame.scale, HIGH / 2 - (p[1] - frame.y) * frame.scale];
  const inside = ([x, y]) => x >= 0 && y >= 0 && x <= WIDE && y <= HIGH;
  function arrow(p, what) { // at the edge, towards something that lies outside
    const [x, y] = pixel(p), at = [Math.min(Math.max(x, 12), WIDE - 12), Math.min(Math.max(y, 12), HIGH - 12)];
    const turn = (180 / Math.PI) * Math.atan2(y - at[1], x - at[0]);
    return s("path", { class: "hn-arrow", d: "M-9-6L3 0L-9 6Z", transform: `translate(${at[0]} ${at[1]}) rotate(${turn})` }, s("title", {}, `${what} lies outside`));
  }
  function drawMap() {
    if (!shown || !places.length) return;
    const ends = shown.more[shown.more.length - 1], target = more && more.target;
    const around_ = [...shown.near.map((row) => places[row]), ...ends, ...(target ? [target] : [])];
    frame = around(zoomed ? [...around_, ...shown.walk.slice(Math.floor(shown.walk.length / 3)).map((step) => step[0])] : places);
    const matches = new Set(found), own = shown.family;
    layers.dots = s("g", {}, places.map((p, row) => {
      const index = world.training[row][1], on = matches.has(row);
      const at = pixel(p);
      if (!inside(at)) return null;
      return dot(index, at, on ? 5 : 3, { opacity: on ? 1 : matches.size ? 0.12 : index === own ? 0.6 : 0.25, stroke: on ? "var(--hn-ink)" : null, "stroke-width": on ? 0.25 : null });
    }));
    layers.walk = drawWalk(ends, target);
    layers.scrub = s("g", {});
    layers.hover = s("g", {});
    canvas.replaceChildren(layers.dots, layers.walk, layers.scrub, layers.hover);
    drawScrub();
    hover(hovered);
  }
  function drawWalk(ends, target) {
    const group = s("g", {}), last = shown.walk.length - 1, stroke = shown.family < 0 ? "var(--hn-ink)" : color(shown.family);
    const line = (points, props) => s("polyline", { points: points.map((p) => pixel(p).map((v) => v.toFixed(1)).join(",")).join(" "), fill: "none", ...props });
    const of = (k) => shown.walk.map((step) => step[k]);
    for (let k = 1; k < ends.length; k++) group.append(line(of(k), { stroke: "var(--hn-ink)", "stroke-width": 0.6, opacity: 0.15 }));
    group.append(line(of(0), { stroke: "var(--hn-paper)", "stroke-width": 4.5, opacity: 0.8 }), line(of(0), { stroke, "stroke-width": 2.2 }));
    if (shown.more.length > 1) for (let k = 0; k < ends.length; k++) group.append(line(shown.more.map((step) => step[k]), { stroke: "var(--hn-ink)", "stroke-width": 1.4, "stroke-dasharray": "3 2" }));
    ends.forEach((p, k) => group.append(inside(pixel(p)) ? dot(shown.family, pixel(p), k ? 4 : 7, { stroke: "var(--hn-ink)", "stroke-width": 0.16, opacity: k ? 0.8 : 1 }) : k ? "" : arrow(p, "The network")));
    const start = pixel(shown.walk[0][0]);
    group.append(inside(start) ? s("circle", { cx: start[0], cy: start[1], r: 4, fill: "var(--hn-paper)", stroke: "var(--hn-ink)", "stroke-width": 1.5 }) : arrow(shown.walk[0][0], "The noise where the walk begins"));
    shown.near.forEach((row, i) => {
      const p = pixel(places[row]);
      if (!inside(p)) return group.append(arrow(places[row], `Neighbour ${i + 1}`));
      group.append(s("g", { transform: `translate(${p[0]} ${p[1]})` }, s("circle", { r: 7.5, fill: "var(--hn-paper)", stroke: "var(--hn-ink)" }), s("text", { "text-anchor": "middle", y: 3.6, "font-size": 10, "font-weight": 600, fill: "var(--hn-ink)" }, String(i + 1))));
    });
    if (target) {
      const p = pixel(target);
      if (!inside(p)) group.append(arrow(target, "The latent adapted to labelled pictures"));
      else for (const [stroke_, width] of [["var(--hn-paper)", 5], ["var(--hn-ink)", 2.4]]) group.append(s("path", { d: "M-6-6L6 6M-6 6L6-6", transform: `translate(${p[0]} ${p[1]})`, "stroke-linecap": "round", stroke: stroke_, "stroke-width": width }));
    }
    return group;
  }
  const pictures_ = new Map(); // thumbnails: row -> address
  function hover(row) {
    if (!layers.hover) return;
    hovered = row;
    if (row == null) { layers.hover.replaceChildren(); tip.hidden = true; return; }
    const p = pixel(places[row]), [text, index] = world.training[row];
    layers.hover.replaceChildren(dot(index, p, 6, { stroke: "var(--hn-ink)", "stroke-width": 0.3 }));
    const picture = pictures_.get(row);
    tip.replaceChildren(picture ? h("img", { src: picture, alt: "", width: 64, height: 64 }) : h("span", { class: "hn-blank" }), h("span", {}, text, h("small", {}, world.families[index], knows(text) ? "; click to ask" : "")));
    tip.hidden = false;
    const left = (100 * p[0]) / WIDE, top = (100 * p[1]) / HIGH;
    tip.style.cssText = `${left < 50 ? `left: ${left + 2}%` : `right: ${102 - left}%`}; ${top < 55 ? `top: ${top + 3}%` : `bottom: ${103 - top}%`}`;
    if (!picture && source.live) source.send({ kind: "thumbnail", row });
  }
  function nearest(event) {
    const box = canvas.getBoundingClientRect(), x = ((event.clientX - box.left) * WIDE) / box.width, y = ((event.clientY - box.top) * HIGH) / box.height;
    let best = null, least = 14 ** 2;
    places.forEach((place, row) => { const p = pixel(place), d = (p[0] - x) ** 2 + (p[1] - y) ** 2; if (d < least) { least = d; best = row; } });
    return best;
  }
  canvas.addEventListener("pointermove", (event) => { if (frame) { const row = nearest(event); if (row !== hovered) hover(row); canvas.style.cursor = row == null || !knows(world.training[row][0]) ? "default" : "pointer"; } });
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("click", (event) => { const row = frame && nearest(event); if (row != null && knows(world.training[row][0])) { hover(null); askFor(world.training[row][0]); } });
  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") hover(null);
    else if (event.key === "Enter" && hovered != null && knows(world.training[hovered][0])) askFor(world.training[hovered][0]);
    else if (way && frame) {
      event.preventDefault();
      const from = hovered == null ? pixel(places[shown.near[0]]) : pixel(places[hovered]);
      let best = hovered == null ? shown.near[0] : hovered, least = Infinity;
      if (hovered != null) places.forEach((place, row) => {
        const p = pixel(place), along = (p[0] - from[0]) * way[0] + (p[1] - from[1]) * way[1], across = Math.abs((p[0] - from[0]) * way[1]) + Math.abs((p[1] - from[1]) * way[0]);
        if (row !== hovered && inside(p) && along > 0.5 && along + 2 * across < least) { least = along + 2 * across; best = row; }
      });
      hover(best);
      announce(`${world.training[best][0]} ${world.families[world.training[best][1]]}`);
    }
  });
  function seek() {
    const word = search.value.trim().toLowerCase();
    found = word ? world.training.flatMap(([text], row) => (text.toLowerCase().includes(word) ? [row] : [])) : [];
    if (found.length) { zoomed = false; zoom.setAttribute("aria-pressed", "false"); }
    hits.textContent = word ? plural(found.length, "dot") : "";
    drawMap();
  }

  // --- the walk, step by step ----------------------------------------------------------------------------------
  const step = h("input", { type: "range", id: id("step"), min: 0, max: 10, step: 1, value: 10, disabled: true,
    oninput: () => { stop(); go(+step.value); } });
  const stepOut = h("output", { for: id("step"), class: "hn-soft" });
  const play = h("button", { type: "button", disabled: true, onclick: () => (playing ? stop() : start()) }, "▶ Play");
  const latent = h("div", { class: "hn-latent" });
  const matrixCanvas = h("canvas", { width: 256, height: 34, class: "hn-matrix", role: "img", "aria-label": "The matrices W₁ and W₂ of the first network: rows are hidden units" });
  const difference = h("input", { type: "checkbox", id: id("difference"), onchange: () => drawMatrices() });
  const matrixBox = h("figure", { class: "hn-matrices", hidden: true }, matrixCanvas,
    h("figcaption", {}, "W₁ (left) and W₂ᵀ of the first network; ", h("span", { class: "hn-minus" }, "■"), " negative, ", h("span", { class: "hn-plus" }, "■"), " positive. ",
      h("label", { for: id("difference") }, difference, " only what differs from the mean network")));
  const walkBox = h("div", { class: "hn-walk" },
    h("div", { class: "hn-row" }, play, h("label", { for: id("step") }, "Step of the walk"), step, stepOut), latent, matrixBox);
  function go(index) {
    const last = more.frames.at.length - 1;
    view.step = index >= last ? null : index;
    view.place = null;
    step.value = index;
    drawView();
  }
  function start() {
    let index = 0;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    play.textContent = "⏸ Pause";
    go(0);
    playing = setInterval(() => { index += 1; go(index); if (index >= more.frames.at.length - 1) stop(); }, calm ? 900 : 260);
  }
  function stop() {
    clearInterval(playing);
    playing = null;
    play.textContent = "▶ Play";
  }
  function drawScrub() {
    if (!layers.scrub) return;
    layers.scrub.replaceChildren();
    if (view.step == null || !more || !more.frames) return;
    const number = more.frames.at[view.step], steps = shown.walk.length - 1;
    const places_ = number <= steps ? shown.walk[number] : shown.more[number - steps];
    places_.forEach((p, k) => { const [x, y] = pixel(p); if (inside([x, y])) layers.scrub.append(s("circle", { cx: x, cy: y, r: k ? 3 : 6, fill: k ? "var(--hn-ink)" : "var(--hn-go)", stroke: "var(--hn-paper)", opacity: k ? 0.5 : 1 })); });
  }
  const tint = (v) => `color-mix(in srgb, ${v < 0 ? "var(--hn-minus)" : "var(--hn-plus)"} ${Math.min(100, Math.round(100 * Math.abs(v)))}%, var(--hn-paper))`;
  function drawLatent(index) {
    const z = more.frames.latents[index];
    if (latent.childElementCount !== z.length) latent.replaceChildren(...z.map(() => h("i")));
    z.forEach((v, i) => { latent.children[i].style.background = tint(v / 2.5); });
    latent.setAttribute("role", "img");
    latent.setAttribute("aria-label", `Latent of ${z.length} numbers: ${z.map((v) => v.toFixed(1)).join(", ")}`);
  }
  function drawMatrices() {
    const raw = source.get("matrices"), frames = more && more.frames;
    matrixBox.hidden = !frames || !raw || !raw.byteLength;
    if (matrixBox.hidden) return;
    const all = new Int8Array(raw.buffer || raw, raw.byteOffset || 0, raw.byteLength), size = all.length / (frames.at.length + 1);
    const [rows, columns] = frames.shape, index = view.step == null ? frames.at.length - 1 : view.step;
    const one = all.subarray(index * size, (index + 1) * size), mean = all.subarray(frames.at.length * size);
    matrixCanvas.width = 2 * columns + 4;
    matrixCanvas.height = rows;
    const ink = matrixCanvas.getContext("2d"), image = ink.createImageData(matrixCanvas.width, rows);
    const dark = root.dataset.theme === "dark", base = dark ? [18, 18, 18] : [255, 255, 255], ends = MINUS_PLUS[root.dataset.theme];
    for (let part = 0; part < 2; part++) for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
      const from = part ? rows * columns + j * rows + i : i * columns + j; // W₂ is [columns, rows]
      const v = (one[from] - (difference.checked ? mean[from] : 0)) / 127, end = ends[v < 0 ? 0 : 1], share = Math.min(1, Math.abs(v));
      const to = 4 * (i * matrixCanvas.width + part * (columns + 4) + j);
      for (let c = 0; c < 3; c++) image.data[to + c] = base[c] + share * (end[c] - base[c]);
      image.data[to + 3] = 255;
    }
    ink.putImageData(image, 0, 0);
  }

  // --- how well, and what --------------------------------------------------------------------------------------
  const title = h("h2", { class: "hn-title" });
  const scores = h("div", { class: "hn-scores" });
  const agree = h("p", { class: "hn-agree" });
  const pin = h("button", { type: "button", onclick: () => { pinned = pinned ? null : shown; draw(); } }, "Pin as A");
  const filter = h("select", { id: id("filter"), onchange: () => drawCells() });
  const morePictures = h("button", { type: "button", onclick: () => ask({ pictures: choice.pictures >= 200 ? 25 : 200 }) });
  const sheet = h("div", { class: "hn-sheet" });
  const saver = h("button", { type: "button", disabled: true, onclick: () => source.send({ kind: "adapter" }) }, "Download adapter");
  const saverNote = h("span", { class: "hn-soft" });
  function viewed() { // what the networks answer at the step or the place that is looked at
    if (view.place != null && more && more.between) {
      const line = more.between.lines[view.line];
      return { given: line.given[view.place], score: line.scores[0][view.place], what: `on the way, at ${more.between.places[view.place].toFixed(1)}` };
    }
    if (view.step != null && more && more.frames) {
      return { given: more.frames.given[view.step], score: more.frames.scores[view.step], what: `at step ${more.frames.at[view.step]}` };
    }
    return { given: shown.given, score: null, what: "" };
  }
  function drawScores() {
    const seen = viewed(), rows = shown.scores.map((score) => ({ label: score.label, score, strong: score.who === "words" }));
    if (more && more.target_score) rows.push({ label: more.target_score.label, score: more.target_score });
    if (seen.score) rows.unshift({ label: `generated, ${seen.what}`, score: seen.score, strong: true });
    if (pinned && pinned.scores.length) { const score = pinned.scores.find((one) => one.who === "words"); rows.push({ label: `A: ${pinned.question} ${pinned.setting}`, score }); }
    const differ = shown.given.filter((answer, i) => answer !== shown.before[i]).length;
    scores.replaceChildren(rows.length ? h("table", {}, h("caption", {}, `Right answers on ${plural(shown.given.length, "picture")}, with 95 % intervals`), h("tbody", {}, rows.map(scoreRow)))
      : h("p", {}, `The generated networks and zero-shot CLIP answer ${differ} of ${plural(shown.given.length, "picture")} differently.`));
    const mine = seen.score || shown.scores.find((score) => score.who === "words");
    now.replaceChildren(mine ? h("span", {}, h("b", {}, percent(mine.percent)), " ", h("small", {}, range(mine))) : "");
    const a = shown.agreement;
    const part = ([right, count]) => (count ? `${percent((100 * right) / count)} right` : "none");
    agree.textContent = a && shown.networks > 1 ? `At least ${a.least} of ${shown.networks} networks agree on ${plural(a.agreed[1], "picture")}: ${part(a.agreed)}. They are split on ${a.split[1]}: ${part(a.split)}.` : "";
  }
  let key = null, sheetAddress = null;
  function drawPictures() {
    const pictures = source.get("pictures");
    if (!pictures || pictures.key === key) return;
    key = pictures.key;
    if (sheetAddress && sheetAddress.startsWith("blob:")) URL.revokeObjectURL(sheetAddress);
    const raw = source.get("sprite");
    sheetAddress = typeof raw === "string" ? raw : URL.createObjectURL(new Blob([raw], { type: "image/png" }));
    const rows = Math.ceil(pictures.alts.length / pictures.columns), last = (n) => Math.max(n - 1, 1);
    sheet.replaceChildren(...pictures.alts.map((alt, i) => h("figure", {},
      h("div", { class: "hn-picture", role: "img", "aria-label": alt, title: alt, style: `background-image: url("${sheetAddress}"); background-size: ${100 * pictures.columns}% ${100 * rows}%; background-position: ${(100 * (i % pictures.columns)) / last(pictures.columns)}% ${(100 * Math.floor(i / pictures.columns)) / last(rows)}%` }),
      h("figcaption", {}))));
  }
  function drawCells() {
    const seen = viewed(), truth = shown.truth, name = (i) => shown.answers[i];
    const same = pinned && pinned.key === shown.key && pinned.answers.join() === shown.answers.join();
    const turned = view.place != null && more && more.between ? more.between.lines[view.line].flips : null;
    const wanted = { "": () => true, wrong: (i) => truth && seen.given[i] !== truth[i], clip: (i) => seen.given[i] !== shown.before[i], changed: (i) => same && seen.given[i] !== pinned.given[i] };
    const options = [["", "all pictures"], truth && ["wrong", "wrong answers"], ["clip", "answers that differ from CLIP's"], same && ["changed", "answers that differ from A's"]].filter(Boolean);
    const kept = options.some(([value]) => value === filter.value) ? filter.value : "";
    filter.replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
    filter.value = kept;
    let count = 0;
    [...sheet.children].forEach((cell, i) => {
      const answer = seen.given[i], right = truth && answer === truth[i], caption = cell.lastChild;
      const show = wanted[kept](i);
      cell.hidden = !show;
      count += show;
      cell.className = truth ? (right ? "hn-is-right" : "hn-is-wrong") : "";
      const lines = [truth && !right && `it is ${name(truth[i])}`, shown.before[i] !== answer && `CLIP: ${name(shown.before[i])}`,
        same && pinned.given[i] !== answer && `A: ${name(pinned.given[i])}`, turned && turned[i] != null && `turns at ${more.between.places[turned[i]].toFixed(1)}`].filter(Boolean);
      const votes = shown.votes[i], total = shown.networks, seenVotes = view.step == null && view.place == null;
      const order = votes.map((n, c) => [n, c]).filter(([n]) => n).sort((x, y) => y[0] - x[0]);
      const words = order.map(([n, c]) => `${name(c)} ${n}`).join(", ");
      caption.replaceChildren(...[`${truth ? (right ? "✓ " : "✗ ") : ""}${name(answer)}`,
        seenVotes && total > 1 && h("span", { class: "hn-votes", role: "img", "aria-label": `votes: ${words}`, title: `votes: ${words}` }, order.map(([n, c]) => h("i", { class: c === answer ? "hn-most" : "", style: `flex: ${n}` }))),
        ...lines.map((line) => h("small", {}, line))].filter(Boolean));
    });
    filter.title = `${count} shown`;
  }

  // --- between two questions -----------------------------------------------------------------------------------
  const other = h("input", { type: "text", id: id("other"), list: id("list"), autocomplete: "off", placeholder: "another question" });
  const placeBox = h("div", { class: "hn-way", hidden: true });
  const place = h("input", { type: "range", id: id("place"), min: 0, max: 10, step: 1, value: 0, oninput: () => { view.place = +place.value; view.step = null; drawView(); } });
  const placeOut = h("output", { for: id("place"), class: "hn-soft" });
  const line = h("select", { id: id("line"), onchange: () => { view.line = line.value; drawBetween(); drawView(); } },
    h("option", { value: "embedding" }, "through the embeddings"), h("option", { value: "latent" }, "through the latents"));
  const way = h("details", { class: "hn-between", hidden: !source.live }, h("summary", {}, "Between two questions"),
    h("form", { class: "hn-row", onsubmit: (event) => { event.preventDefault(); ask({ other: other.value }); } },
      h("label", { for: id("other") }, "From the question above to"), other, h("button", { type: "submit" }, "Go there")), placeBox);
  function drawBetween() {
    const b = more && more.between;
    placeBox.hidden = !b;
    if (!b) return;
    way.open = true;
    const chosen = b.lines[view.line], turned = chosen.flips.filter((at) => at != null);
    const [mine, theirs] = chosen.scores;
    const plots = [{ scores: mine, stroke: "var(--hn-right)" }, { scores: theirs, stroke: "var(--hn-wrong)", dash: "6 3" }].filter((one) => one.scores.length);
    placeBox.replaceChildren(
      h("div", { class: "hn-over" }, h("div", { class: "hn-strip hn-tall" }, plots.length ? scorePlot(b.places, plots, view.place == null ? 0 : b.places[view.place], `Right answers about the pictures of both questions on the way`) : ""), place),
      h("div", { class: "hn-row" }, h("label", { for: id("place") }, "Place on the way"), placeOut, h("label", { for: id("line") }, "Line"), line),
      h("p", {}, h("span", { class: "hn-key-right" }, "━"), ` ${shown.question} `, h("span", { class: "hn-key-wrong" }, "╍"), ` ${b.question} `),
      h("p", {}, `${turned.length} of ${plural(chosen.flips.length, "answer")} turn over on the way${turned.length ? `, half of them by ${b.places[turned.sort((x, y) => x - y)[Math.floor((turned.length - 1) / 2)]].toFixed(1)}` : ""}.`));
  }

  // --- a picture of one's own ----------------------------------------------------------------------------------
  const menus = world.menus, PHOTO = "photograph", MOST = 8e6; // bytes of a file, as in `explorer.own`
  const menu = {}, companions = h("div", { class: "hn-fields" });
  const options = (values) => values.map((value) => (Array.isArray(value) ? h("optgroup", { label: value[0] }, value[1].map((name) => h("option", {}, name))) : h("option", {}, value)));
  function choose(name, label, values) {
    menu[name] = h("select", { id: id(`own-${name}`), onchange: () => composed(name) }, options(values));
    return h("div", { "data-for": name }, h("label", { for: id(`own-${name}`) }, label), menu[name]);
  }
  const ownSaid = h("p", { role: "alert" }), ownView = h("figure", { class: "hn-own-view", hidden: true });
  const file = h("input", { type: "file", id: id("file"), accept: "image/jpeg,image/png,image/webp,image/gif,image/bmp,image/tiff", onchange: bring });
  const drawIt = h("button", { type: "button", class: "hn-main-button", onclick: () => composed() }, "Draw it");
  const removeIt = h("button", { type: "button", hidden: true, onclick: () => { file.value = ""; ask({ picture: "" }); drawIt.focus(); } }, "Remove");
  const own = h("details", { class: "hn-own", hidden: !source.live || world.closed }, h("summary", {}, "Your own picture"),
    h("p", { class: "hn-soft" }, menus ? "Compose a scene, or bring a photograph: every network answers the question about it." : "Bring a photograph: every network answers the question about it."),
    menus && h("div", { class: "hn-fields" }, choose("name", "Thing", menus.things), choose("color", "Colour", menus.colors), choose("place", "Place", menus.layouts.flat()),
      choose("size", "Size", menus.sizes), choose("count", "How many", menus.counts), choose("pose", "Turned", menus.poses), choose("background", "Background", menus.backgrounds), choose("pattern", "Pattern", menus.patterns)),
    menus && companions,
    h("div", { class: "hn-row" }, menus && drawIt, removeIt, h("label", { for: id("file") }, menus ? "or a photograph" : "Photograph"), file), ownSaid, ownView);
  const others = (place) => menus.layouts.find((layout) => layout.includes(place)).filter((one) => one !== place);
  const AT = (place) => (place.includes(" ") ? `in the ${place} corner` : place === "top" || place === "bottom" ? `at the ${place}` : `on the ${place}`);
  function offerCompanions(things) { // a thing and its colour for every other place
    const places_ = others(menu.place.value);
    for (const key of Object.keys(menu)) if (key.startsWith("with")) delete menu[key];
    companions.replaceChildren(...places_.flatMap((place, i) => [choose(`with-${i}`, `Beside it ${AT(place)}`, ["nothing", ...menus.things]), choose(`with-${i}-color`, "Its colour", menus.colors)]));
    places_.forEach((place, i) => { const there = things.find((one) => one.place === place); menu[`with-${i}`].value = there ? there.name : "nothing"; menu[`with-${i}-color`].value = there ? there.color : "blue"; });
    limit();
  }
  function limit() { // what does not go together is not offered
    const corner = menu.place.value.includes(" "), turns = menus.turned.includes(menu.name.value);
    if (corner) menu.count.value = "one";
    if (!turns) menu.pose.value = "upright";
    menu.count.disabled = corner;
    menu.pose.disabled = !turns;
    menu.size.disabled = menu.count.value !== "one";
    others(menu.place.value).forEach((_, i) => { menu[`with-${i}-color`].disabled = menu[`with-${i}`].value === "nothing"; });
  }
  function sceneText() {
    const value = (name) => menu[name].value, words = [value("name"), value("color"), value("place"), value("size"), value("count"), value("pose")];
    const beside = others(value("place")).flatMap((place, i) => (value(`with-${i}`) === "nothing" ? [] : [[value(`with-${i}`), value(`with-${i}-color`), place].join("/")]));
    return [`${value("background")}/${value("pattern")}`, words.join("/"), ...beside].join(";");
  }
  function composed(changed) { // draws anew while there is a picture; the first one waits for the button
    if (changed === "place") offerCompanions(others(menu.place.value).map((place, i) => ({ place, ...(menu[`with-${i}`] ? { name: menu[`with-${i}`].value, color: menu[`with-${i}-color`].value } : { name: "nothing", color: "blue" }) })).filter((one) => one.name !== "nothing"));
    limit();
    if (changed && !choice.picture) return;
    ownSaid.textContent = "";
    file.value = "";
    ask({ picture: sceneText() });
  }
  function bring() {
    const [one] = file.files;
    ownSaid.textContent = "";
    if (!one) return;
    if (one.size > MOST) { ownSaid.textContent = `Photograph: expected at most 8 MB, got ${(one.size / 1e6).toFixed(1)} MB.`; file.value = ""; return; }
    one.arrayBuffer().then((bytes) => source.send({ kind: PHOTO, name: one.name }, [bytes]), () => { ownSaid.textContent = "This file could not be read."; });
  }
  let filled = null;
  function fillOwn() { // menus from the choice, so that back, forward and links bring them along
    if (!menus) return;
    const text = choice.picture && choice.picture !== PHOTO ? choice.picture : "";
    if (filled === (text || `? ${choice.question}`)) return;
    filled = text || `? ${choice.question}`;
    const [ground, ...things] = text.split(";"), [background, pattern] = ground.split("/");
    const read = things.map((one) => { const [name, color, place, size = "medium", count = "one", pose = "upright"] = one.split("/"); return { name, color, place, size, count, pose }; });
    if (!read.length) { // the thing that is asked about, as one to begin with
      const names = menus.things.flatMap(([, some]) => some), asked_ = (choice.question || "").toLowerCase();
      read.push({ name: names.find((name) => asked_.includes(name)) || "cat", color: "red", place: "left", size: "medium", count: "one", pose: "upright" });
    }
    for (const [name, value] of Object.entries({ ...read[0], background: background || "white", pattern: pattern || "plain" })) menu[name].value = value;
    offerCompanions(read.slice(1));
  }
  let ownAddress = null;
  function drawOwn() {
    const o = source.get("own"), there = !!(o && o.rows && shown && o.turn === shown.turn), first = there && ownView.hidden && own.open;
    ownView.hidden = !there;
    removeIt.hidden = !choice.picture;
    if (!there) return;
    own.open = true;
    ownSaid.textContent = "";
    if (ownAddress) URL.revokeObjectURL(ownAddress);
    ownAddress = URL.createObjectURL(new Blob([source.get("own_sprite")], { type: "image/png" }));
    const name = (i) => shown.answers[i], mark_ = (i) => (o.right == null ? "" : i === o.right ? "✓ " : "✗ ");
    const bars = (row) => row.votes.map((n, i) => [n, i]).filter(([n]) => n).sort((a, b) => b[0] - a[0]);
    ownView.replaceChildren(h("img", { src: ownAddress, alt: o.alt, class: o.photo ? "" : "hn-pixels" }),
      h("figcaption", {}, h("p", {}, h("b", {}, shown.question), o.right == null ? "" : ` It is ${name(o.right)}.`),
        h("table", {}, h("caption", { class: "hn-hidden" }, "What is answered about this picture"), h("tbody", {}, o.rows.map((row) => h("tr", { class: o.right == null ? "" : row.answer === o.right ? "hn-is-right" : "hn-is-wrong" },
          h("th", { scope: "row" }, row.who), h("td", {}, `${mark_(row.answer)}${name(row.answer)}`, row.sure != null && h("small", {}, ` ${percent(row.sure)} sure`)),
          h("td", {}, row.votes && shown.networks > 1 && h("span", { class: "hn-soft" }, bars(row).map(([n, i]) => `${name(i)} ${n}`).join(", "))))))),
        o.notes.map((text) => h("p", { class: "hn-soft" }, text)), o.alt && h("p", { class: "hn-soft" }, o.alt)));
    if (first) ownView.scrollIntoView({ block: "nearest" });
    announce(`Your picture: ${name(o.rows[o.rows.length - 1].answer)}`);
  }

  // --- training, where a part is missing -----------------------------------------------------------------------
  const work = h("div", { class: "hn-work", hidden: true });
  const drawWork = () => fillWork(work, source);

  // --- all together --------------------------------------------------------------------------------------------
  const near = h("div", {});
  const milliseconds = h("span", { class: "hn-soft" });
  const mapBox = h("section", { "aria-label": "Map" },
    h("div", { class: "hn-row hn-tools" }, h("label", { for: id("search") }, "Find"), search, hits, zoom),
    h("div", { class: "hn-place" }, canvas, tip), walkBox, near, legend);
  const answersBox = h("section", { "aria-label": "Answers" }, title, scores, agree,
    h("div", { class: "hn-row hn-tools" }, pin, h("label", { for: id("filter") }, "Show"), filter, source.live && morePictures), sheet);
  const root = h("div", { class: "hn", "data-lm-suppress-shortcuts": "true" }, live, record, chips, form, related, note, work, gammaBox, settings,
    h("div", { class: "hn-results", hidden: true }, mapBox, answersBox), own, way,
    h("div", { class: "hn-row hn-foot" }, source.live && saver, saverNote, milliseconds));
  const results = root.querySelector(".hn-results");

  function drawView() { // what a step or a place changes
    const seen = viewed();
    if (more && more.frames) {
      const frames = more.frames, index = view.step == null ? frames.at.length - 1 : view.step;
      const total = frames.at[frames.at.length - 1];
      stepOut.textContent = `${frames.at[index]} of ${total}${seen.score && view.step != null ? `: ${percent(seen.score.percent)} right` : ""}`;
      step.setAttribute("aria-valuetext", stepOut.textContent);
      drawLatent(index);
      drawMatrices();
    }
    if (more && more.between) {
      place.value = view.place || 0;
      placeOut.textContent = `${more.between.places[view.place || 0].toFixed(1)}${view.place != null && seen.score ? `: ${percent(seen.score.percent)} right` : ""}`;
      place.setAttribute("aria-valuetext", placeOut.textContent);
      const present = placeBox.querySelector(".hn-present");
      if (present) for (const end of ["x1", "x2"]) present.setAttribute(end, 1000 * more.between.places[view.place || 0]);
    }
    drawScrub();
    drawScores();
    drawCells();
    if (seen.score) announce(`${seen.what}: ${percent(seen.score.percent)} right`);
  }
  function draw() {
    if (!shown) return;
    title.textContent = shown.question;
    pin.textContent = pinned ? "Unpin A" : "Pin as A";
    pin.setAttribute("aria-pressed", !!pinned);
    morePictures.textContent = choice.pictures >= 200 ? "25 pictures" : "More pictures (200)";
    near.replaceChildren(h("h2", {}, "Nearest training questions"), h("ol", { class: "hn-near" }, shown.near.map((row) => h("li", {}, knows(world.training[row][0]) ? chip(world.training[row][0], { class: "hn-link" }, () => askFor(world.training[row][0])) : world.training[row][0]))),
      h("small", {}, "numbered on the map; ○ where the walk begins", more && more.target_score ? `; ✕ the latent ${more.target_score.label}` : ""));
    drawPictures();
    drawView();
    drawMap();
  }
  function showRelated() {
    const some = shown.related.filter(knows);
    related.replaceChildren(...(some.length ? [h("span", { class: "hn-soft" }, "Related:"), ...some.map((text) => chip(text, {}, () => askFor(text)))] : []));
  }
  const meant = (m) => !m ? [] : m.question ? ["Did you mean ", chip(m.question, {}, () => askFor(m.question)), "? "] : ["Did you mean ", chip(m.answers, {}, () => { answers.value = m.answers; ask({ answers: m.answers }); }), "? "];

  function takeShown() {
    const next = source.get("shown");
    if (!next || next.turn === undefined) return;
    shown = next;
    if (next.turn < turn) return draw(); // a later one is on its way: stays dimmed
    turn = Math.max(turn, next.turn);
    answered(next.turn);
    choice = { ...choice, ...next.choice };
    if (more && more.turn !== next.turn) more = null;
    step.disabled = play.disabled = !more;
    root.classList.remove("hn-stale");
    results.hidden = false;
    saver.disabled = false;
    saverNote.textContent = source.live ? `${plural(next.networks, "network")} of ${next.size.toLocaleString("en")} weights, as safetensors` : "";
    milliseconds.textContent = next.milliseconds ? `${Math.round(next.milliseconds)} ms` : "";
    note.replaceChildren(h("p", {}, [next.seen, ...next.notes].join(" "), " ", ...meant(next.meant)));
    said = "";
    unclip(root);
    fill();
    fillOwn();
    showRelated();
    draw();
    drawOwn();
    remember(next.address);
    const mine = next.scores.find((score) => score.who === "words"), clip = next.scores.find((score) => score.who === "clip");
    announce(mine ? `${next.question} Generated networks: ${percent(mine.percent)} right, zero-shot CLIP: ${percent(clip.percent)}.` : `${next.question} ${next.notes.join(" ")}`);
  }
  function takeMore() {
    const next = source.get("more");
    if (!next || next.turn === undefined || !shown || next.turn !== shown.turn) return;
    more = next;
    step.max = more.frames.at.length - 1;
    step.value = view.step == null ? step.max : view.step;
    step.disabled = play.disabled = false;
    drawStrip();
    drawBetween();
    draw();
  }
  function takeSaid() {
    const next = source.get("said");
    if (!next || !next.error || !answered(next.turn)) return;
    say(next.error, ...meant(next.meant));
  }
  function drawRecord() {
    const r = source.get("world").record;
    if (!r) return record.replaceChildren();
    const total = r.wins + r.ties + r.losses, part = (n, kind, word) => h("span", { class: kind, style: `flex: ${n}` }, `${word} ${n}`);
    record.replaceChildren(
      h("p", {}, `Over all ${total} held-out questions, each on ${r.pictures} pictures, the network generated from the words alone answers `, h("b", {}, `${r.words.toFixed(0)} %`), ` rightly; zero-shot CLIP ${r.clip.toFixed(0)} %${r.multitask != null ? `, one network trained for all questions ${r.multitask.toFixed(0)} %` : ""}. Against CLIP it`),
      h("div", { class: "hn-wins", role: "img", "aria-label": `wins on ${r.wins} questions, ties on ${r.ties}, loses on ${r.losses}` }, part(r.wins, "hn-win", "wins"), part(r.ties, "hn-tie", "ties"), part(r.losses, "hn-loss", "loses")));
  }
  function drawWorld() {
    const w = source.get("world");
    drawRecord();
    chips.replaceChildren(...w.chips.map((one) => chip(h("span", {}, h("b", {}, one.label), " ", one.hint), {}, () => { ask({ ...w.usual, ...one.choice }, {}); if (one.focus) answers.focus(); })));
    if (source.live && !list.childElementCount) list.append(...w.held.map(([text, family]) => h("option", { value: text, label: family })));
  }
  function takeDots() {
    const dots = source.get("dots");
    if (!dots || !dots.places) return;
    places = [];
    for (let i = 0; i < dots.places.length; i += 2) places.push([dots.places[i], dots.places[i + 1]]);
    drawMap();
  }

  // --- history: in the address, or in a list of our own ----------------------------------------------------------
  let settled = null;
  const book = source.address && keepAddress(() => shown && shown.address, (address) => ask({}, { address }));
  function remember(address) {
    if (book) return book.keep(address);
    if (at >= 0 && trail[at] === address) return;
    clearTimeout(settled);
    settled = setTimeout(() => { trail = [...trail.slice(0, at + 1), address]; at = trail.length - 1; back.disabled = at <= 0; forth.disabled = true; }, at < 0 ? 0 : 500);
  }
  function travel(by) {
    at = Math.min(Math.max(at + by, 0), trail.length - 1);
    back.disabled = at <= 0;
    forth.disabled = at >= trail.length - 1;
    ask({}, { address: trail[at] });
  }
  back.disabled = forth.disabled = true;

  // --- light or dark ---------------------------------------------------------------------------------------------
  forget.push(followTheme(root, source.address, drawMatrices));

  // --- messages ----------------------------------------------------------------------------------------------------
  source.heard((message, buffers) => {
    const bytes = buffers && buffers[0];
    if (message.kind === "thumbnail" && bytes) {
      pictures_.set(message.row, URL.createObjectURL(new Blob([bytes], { type: "image/png" })));
      if (hovered === message.row) hover(hovered);
    } else if (message.kind === "adapter" && bytes) {
      const address = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
      h("a", { href: address, download: message.name }).click();
      setTimeout(() => URL.revokeObjectURL(address), 10000);
      announce(`Saved as ${message.name}`);
    } else if (message.kind === PHOTO) {
      ownSaid.textContent = message.error;
      if (message.error) file.value = "";
      else ask({ picture: PHOTO });
    }
  });
  const kernel = watchKernel(source, root, lost, () => {
    if (said === GONE && shown && shown.turn === turn) { note.replaceChildren(); said = ""; root.classList.remove("hn-stale"); }
  });
  forget.push(kernel.end);

  for (const [name, call] of Object.entries({ world: drawWorld, dots: takeDots, shown: takeShown, more: takeMore, said: takeSaid, own: drawOwn, work: drawWork })) forget.push(source.on(name, call));
  el.append(root);
  drawWorld();
  fill();
  fillOwn();
  drawWork();
  takeDots();
  if (book) book.travel();
  takeShown();
  takeMore();
  takeSaid();
  if (book) forget.push(book.end);
  return () => { stop(); forget.forEach((call) => call && call()); };
}

export default { render: ({ model, el }) => mount(el, fromKernel(model)) };
