// Digits: a question in words, and all test pictures under the answers of the networks that its words make.
// Draws what `explorer.digits` sends, says what a person does, and computes nothing about networks.

const SIDE = 8; // pixels of a picture
const WAIT = 150; // milliseconds without another move of a slider before it is asked

function h(tag, props, ...kids) {
  const node = document.createElement(tag);
  // JupyterLab's shortcuts match the element that has the focus before they look for this mark on those around it.
  if (/^(input|button)$/.test(tag)) node.setAttribute("data-lm-suppress-shortcuts", "true");
  for (const [name, value] of Object.entries(props || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...kids.flat().filter((kid) => kid != null && kid !== false));
  return node;
}
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

let pages = 0;

function mount(el, model) {
  const page = ++pages, id = (name) => `hn-digits-${page}-${name}`, world = model.get("world");
  const count = world.digits.length;
  let turn = (model.get("choice").turn || 0), timer = null, announced = null;

  // --- the form ------------------------------------------------------------------------------------------------
  const question = h("input", { type: "text", id: id("question"), list: id("known"), autocomplete: "off" });
  const answers = h("input", { type: "text", id: id("answers"), autocomplete: "off", placeholder: "from similar questions" });
  const known = h("datalist", { id: id("known") }, world.questions.map(([text]) => h("option", { value: text })));
  const gamma = h("input", { type: "range", id: id("gamma"), min: 0, max: 3, step: 0.1 }), strength = h("output", { for: id("gamma") });
  const note = h("p", { class: "hn-note" }), live = h("div", { class: "hn-hidden", role: "status", "aria-live": "polite" });
  const now = h("div", { class: "hn-now" });

  function ask(change) {
    turn += 1;
    root.classList.add("hn-stale");
    model.set("choice", { question: question.value, answers: answers.value, gamma: +gamma.value, ...change, turn });
    model.save_changes();
  }
  const chips = world.chips.map(([text, hint]) => h("button", { class: "hn-chip", type: "button", title: hint,
    onclick: () => { question.value = text; ask({ answers: "" }); } }, text));
  question.addEventListener("input", () => { answers.value = ""; }); // they belonged to another question
  gamma.addEventListener("input", () => {
    strength.textContent = (+gamma.value).toFixed(1);
    clearTimeout(timer);
    timer = setTimeout(() => ask({}), WAIT);
  });
  const form = h("form", { class: "hn-ask", onsubmit: (event) => { event.preventDefault(); ask({}); } },
    h("label", { for: id("question") }, "Question", question), known,
    h("label", { for: id("answers") }, "Answers", answers),
    h("span", { class: "hn-go" }, h("button", { class: "hn-main-button", type: "submit" }, "Ask")));

  // --- pictures --------------------------------------------------------------------------------------------------
  const sheet = h("div", { class: "hn-digits" }), tiles = [];
  for (let i = 0; i < count; i++) tiles.push(h("canvas", { width: SIDE, height: SIDE, class: "hn-digit", "aria-hidden": "true" }));
  const heads = h("div");
  sheet.append(heads, ...tiles);

  function paint() {
    const ink = bytes(model.get("ink")), dark = root.dataset.theme === "dark";
    tiles.forEach((tile, i) => {
      const context = tile.getContext("2d"), image = context.createImageData(SIDE, SIDE);
      for (let p = 0; p < SIDE * SIDE; p++) {
        const value = ink[i * SIDE * SIDE + p], shade = dark ? 18 + (value * 237) / 255 : 255 - value;
        image.data.set([shade, shade, shade, 255], 4 * p);
      }
      context.putImageData(image, 0, 0);
    });
  }

  function place() {
    const shown = model.get("shown");
    if (!shown.answers) return;
    const step = 32, columns = Math.max(1, Math.floor((sheet.clientWidth + 4) / step));
    let top = 0;
    heads.replaceChildren();
    const there = new Set(shown.order);
    tiles.forEach((tile, i) => { tile.hidden = !there.has(i); });
    shown.answers.forEach((answer, a) => {
      const own = shown.order.filter((i) => shown.given[i] === a);
      const wrong = shown.truth ? own.filter((i) => shown.truth[i] !== a).length : 0;
      const told = !shown.truth ? "" : wrong ? `, ${wrong} of them wrong` : own.length ? ", all right" : "";
      const head = h("h3", {}, answer, h("small", {}, ` ${plural(own.length, "picture")}${told}`));
      head.style.top = `${top}px`;
      heads.append(head);
      top += 26;
      own.forEach((i, at) => {
        const tile = tiles[i];
        tile.style.transform = `translate(${(at % columns) * step}px, ${top + Math.floor(at / columns) * step}px)`;
        tile.classList.toggle("hn-off", !!shown.truth && shown.truth[i] !== a);
        tile.title = `A ${world.digits[i]}, answered ${answer} (${Math.round(100 * shown.sure[i])} %)`;
      });
      top += Math.max(1, Math.ceil(own.length / columns)) * step + 8;
    });
    sheet.style.height = `${top}px`;
  }

  // --- hidden units ----------------------------------------------------------------------------------------------
  const units = h("div", { class: "hn-units" });
  function paintUnits() {
    const shown = model.get("shown"), view = bytes(model.get("units"));
    if (!shown.answers || !view.byteLength) return;
    const weights = new Float32Array(view.slice().buffer), dark = root.dataset.theme === "dark";
    const base = dark ? [18, 18, 18] : [255, 255, 255], ends = dark ? [[230, 159, 0], [86, 180, 233]] : [[179, 88, 6], [84, 39, 136]];
    const most = Math.max(...shown.votes.map(Math.abs), 1e-9);
    units.replaceChildren(...shown.votes.map((vote, u) => {
      const tile = h("canvas", { width: SIDE, height: SIDE, "aria-hidden": "true" });
      const context = tile.getContext("2d"), image = context.createImageData(SIDE, SIDE);
      for (let p = 0; p < SIDE * SIDE; p++) {
        const x = Math.max(-1, Math.min(1, weights[u * SIDE * SIDE + p] / shown.bound)), end = ends[x < 0 ? 0 : 1];
        image.data.set([...base.map((b, c) => b + Math.abs(x) * (end[c] - b)), 255], 4 * p);
      }
      context.putImageData(image, 0, 0);
      const bar = h("i", { class: vote > 0 ? "hn-for" : "hn-against" });
      bar.style.width = `${(100 * Math.abs(vote)) / most}%`;
      return h("span", { title: `${vote > 0 ? "speaks for" : "speaks against"} “${shown.answers[shown.answers.length - 1]}”` }, tile, bar);
    }));
  }

  // --- what comes -------------------------------------------------------------------------------------------------
  function takeShown() {
    const shown = model.get("shown");
    if (!shown.answers) return;
    if (shown.turn === turn) root.classList.remove("hn-stale");
    if (document.activeElement !== question) question.value = shown.question;
    if (document.activeElement !== answers) answers.value = shown.answers.join(", ");
    gamma.value = shown.gamma;
    strength.textContent = shown.gamma.toFixed(1);
    const score = shown.score;
    now.replaceChildren(...(score
      ? [h("b", {}, `${Math.round(score.percent)} %`), h("small", {}, ` right, ${Math.round(score.low)}–${Math.round(score.high)} %`)]
      : [h("small", {}, "nobody has said what is right")]));
    note.textContent = [shown.seen, ...shown.notes].join(" ");
    const last = shown.answers[shown.answers.length - 1];
    unitsHead.replaceChildren("Hidden units of the first network", h("small", {}, ` sorted by how much they speak for “${last}” (blue bar) or against it (orange)`));
    place();
    paintUnits();
    clearTimeout(announced);
    announced = setTimeout(() => { live.textContent = `${shown.question} ${score ? `${Math.round(score.percent)} % right.` : ""}`; }, 400);
  }
  function takeSaid() {
    const said = model.get("said");
    if (said.error && said.turn === turn) { note.textContent = said.error; live.textContent = said.error; root.classList.remove("hn-stale"); }
  }

  const unitsHead = h("h2", {});
  const root = h("div", { class: "hn hn-digits-page" }, live, h("p", {}, world.about), h("div", { class: "hn-chips" }, chips), form,
    h("div", { class: "hn-gamma" }, h("label", { for: id("gamma") }, "γ, how much the words count ", strength), gamma, now),
    note, sheet, unitsHead, units);
  const system = matchMedia("(prefers-color-scheme: dark)");
  function theme() {
    const lab = document.body.dataset.jpThemeLight;
    root.dataset.theme = (lab ? lab === "false" : system.matches) ? "dark" : "light";
    paint();
    paintUnits();
  }
  const watcher = new MutationObserver(theme), sizes = new ResizeObserver(place);
  watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  system.addEventListener("change", theme);
  model.on("change:shown", takeShown);
  model.on("change:said", takeSaid);
  el.append(root);
  sizes.observe(sheet);
  theme();
  takeShown();
  takeSaid();
  return () => { watcher.disconnect(); sizes.disconnect(); system.removeEventListener("change", theme); model.off("change:shown", takeShown); model.off("change:said", takeSaid); clearTimeout(timer); };
}

export default { render: ({ model, el }) => mount(el, model) };
