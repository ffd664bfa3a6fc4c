// Digits: a question in words, and all test pictures under the answers of the networks that its words make.
// Draws what `explorer.digits` sends, says what a person does, and computes nothing about networks. What shared.js has
// stands before this.

const SIDE = 8; // pixels of a picture
const STEP = 32; // from one picture to the next, in pixels of the screen
const PAUSE = 150; // milliseconds without another move of a slider before it is asked
const DIGITS = [...Array(10).keys()];
const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

function mount(el, source) { // returns what ends it
  const page = ++pages, id = (name) => `hn-digits-${page}-${name}`, world = source.get("world");
  const everyone = world.digits.map((_, i) => i), last = (list) => list[list.length - 1];
  const forget = [];
  let turn = source.get("choice").turn || 0, shown = null, said = "", own = false; // are the answers the person's own?
  let timer = null, announced = null;

  // --- what is said, and what is asked -------------------------------------------------------------------------
  const live = h("div", { class: "hn-hidden", role: "status", "aria-live": "polite" });
  const note = h("div", { class: "hn-note" }), busy = h("span", { class: "hn-busy", hidden: true }, "working …");
  function announce(text) {
    clearTimeout(announced);
    announced = setTimeout(() => { live.textContent = text; }, 400); // not at every tick of a slider
  }
  function say(text, ...extra) {
    said = text;
    note.replaceChildren(h("div", { class: "hn-say", role: "alert" }, text, " ", ...extra));
  }
  function ask(change = {}) {
    clearTimeout(timer);
    turn += 1;
    root.classList.add("hn-stale");
    kernel.wait();
    setTimeout(() => { busy.hidden = !root.classList.contains("hn-stale"); }, 200);
    try { source.ask({ question: question.value, answers: own ? answers.value : "", gamma: +gamma.value, ...change, turn }); } catch { lost(); }
  }
  function lost() {
    busy.hidden = true;
    root.classList.add("hn-stale");
    say(GONE, source.address && h("button", { type: "button", onclick: () => location.reload() }, "Load the page again"));
  }
  function askFor(text) {
    question.value = text;
    own = false;
    ask();
  }

  // --- the question and γ ----------------------------------------------------------------------------------------
  const question = h("input", { type: "text", id: id("question"), list: id("known"), autocomplete: "off", maxlength: 200, placeholder: "any question about a digit",
    oninput: () => { own = false; answers.value = ""; } }); // they belonged to another question
  const answers = h("input", { type: "text", id: id("answers"), autocomplete: "off", placeholder: "as for similar questions", oninput: () => { own = !!answers.value.trim(); } });
  const known = h("datalist", { id: id("known") }, world.questions.map(([text, family]) => h("option", { value: text, label: family })));
  const chips = h("div", { class: "hn-chips", role: "group", "aria-label": "Examples to begin with" }, world.chips.map(([text, hint]) => chip(text, { title: hint }, () => askFor(text))));
  const others = h("div", { class: "hn-chips hn-small", role: "group", "aria-label": "Related questions" });
  const form = h("form", { class: "hn-ask", onsubmit: (event) => { event.preventDefault(); ask(); } },
    h("div", {}, h("label", { for: id("question") }, "Question"), question, known),
    h("div", {}, h("label", { for: id("answers") }, "Answers"), answers),
    h("div", { class: "hn-go" }, h("button", { class: "hn-main-button", type: "submit" }, "Ask"), busy));
  const strength = h("output", { for: id("gamma") }), now = h("div", { class: "hn-now" });
  const gamma = h("input", { type: "range", id: id("gamma"), min: 0, max: 3, step: 0.1, value: 1,
    oninput: () => { strength.textContent = (+gamma.value).toFixed(1); clearTimeout(timer); timer = setTimeout(ask, PAUSE); } });
  const gammaBox = h("div", { class: "hn-gamma" },
    h("div", { class: "hn-name" }, h("label", { for: id("gamma") }, h("b", {}, "γ"), " guidance"), " ", strength),
    h("div", { class: "hn-over" }, gamma), now);

  // --- pictures ----------------------------------------------------------------------------------------------------
  const title = h("h2", { class: "hn-title" }), key = h("p", { class: "hn-soft" });
  const heads = h("div"), tiles = everyone.map(() => h("canvas", { width: SIDE, height: SIDE, class: "hn-digit", "aria-hidden": "true" }));
  const sheet = h("div", { class: "hn-digits" }, heads, tiles);
  function paint(tile, color) { // color(pixel) -> [r, g, b]
    const context = tile.getContext("2d"), image = context.createImageData(SIDE, SIDE);
    for (let p = 0; p < SIDE * SIDE; p++) image.data.set([...color(p), 255], 4 * p);
    context.putImageData(image, 0, 0);
  }
  function paintDigits() {
    const ink = bytes(source.get("ink")), dark = root.dataset.theme === "dark";
    tiles.forEach((tile, i) => paint(tile, (p) => {
      const value = ink[i * SIDE * SIDE + p], shade = dark ? 18 + (value * 237) / 255 : 255 - value;
      return [shade, shade, shade];
    }));
  }
  const counted = (rows) => DIGITS.map((digit) => [digit, rows.filter((i) => world.digits[i] === digit).length]).filter(([, n]) => n).map(([digit, n]) => `${digit} ×${n}`).join(", ");
  function groups() { // what stands under each head; before there are networks, the pictures of each digit
    if (!shown) return DIGITS.map((digit) => ({ name: `${digit}`, rows: everyone.filter((i) => world.digits[i] === digit), wrong: null }));
    return shown.answers.map((name, a) => {
      const rows = shown.order.filter((i) => shown.given[i] === a);
      return { name, rows, wrong: shown.truth && rows.filter((i) => shown.truth[i] !== a) };
    });
  }
  function place() {
    const columns = Math.max(1, Math.floor((sheet.clientWidth + 4) / STEP)), there = new Set();
    let top = 0;
    heads.replaceChildren();
    for (const { name, rows, wrong } of groups()) {
      const told = !wrong ? "" : wrong.length ? `, ${wrong.length} of them wrong (${counted(wrong)})` : rows.length ? ", all right" : "";
      const head = h("h3", { style: `top: ${top}px` }, name, h("small", {}, ` ${plural(rows.length, "picture")}${told}`), rows.length && shown ? h("span", { class: "hn-hidden" }, `; they show ${counted(rows)}`) : null);
      heads.append(head);
      top += head.offsetHeight + 4;
      rows.forEach((i, at) => {
        const tile = tiles[i], off = !!wrong && wrong.includes(i);
        there.add(i);
        tile.style.transform = `translate(${(at % columns) * STEP}px, ${top + Math.floor(at / columns) * STEP}px)`;
        tile.classList.toggle("hn-off", off);
        tile.title = shown ? `A ${world.digits[i]}, answered ${name} (${percent(100 * shown.sure[i])} sure)${off ? ": wrong" : ""}` : `A ${name}`;
      });
      top += Math.max(1, Math.ceil(rows.length / columns)) * STEP + 10;
    }
    tiles.forEach((tile, i) => { tile.hidden = !there.has(i); });
    sheet.style.height = `${top}px`;
  }

  // --- how well, and what the hidden units are -----------------------------------------------------------------
  const scores = h("div", { class: "hn-scores" }), unitsHead = h("h2", {}, "Hidden units of the first network"), unitsNote = h("p", { class: "hn-soft" });
  const units = h("div", { class: "hn-units", role: "img" });
  function drawScores() {
    const all = shown ? shown.scores : [], mine = all[0];
    now.replaceChildren(mine ? h("span", {}, h("b", {}, percent(mine.percent)), " ", h("small", {}, range(mine))) : "");
    scores.replaceChildren(mine ? h("table", {}, h("caption", {}, `Right answers on ${plural(mine.count, "picture")}, with 95 % intervals`), h("tbody", {}, all.map((score) => scoreRow({ label: score.label, score, strong: score === mine })))) : "");
  }
  function drawUnits() {
    const view = bytes(source.get("units"));
    if (!shown || !view.byteLength) return;
    const weights = new Float32Array(view.slice().buffer), theme = root.dataset.theme, answer = last(shown.answers);
    const base = theme === "dark" ? [18, 18, 18] : [255, 255, 255], ends = MINUS_PLUS[theme];
    const most = Math.max(...shown.votes.map(Math.abs), 1e-9), count = shown.votes.filter((vote) => vote > 0).length;
    units.replaceChildren(...shown.votes.map((vote, u) => {
      const tile = h("canvas", { width: SIDE, height: SIDE });
      paint(tile, (p) => {
        const x = Math.max(-1, Math.min(1, weights[u * SIDE * SIDE + p] / shown.bound)), end = ends[x < 0 ? 0 : 1];
        return base.map((b, c) => b + Math.abs(x) * (end[c] - b));
      });
      const bar = h("i", { class: vote > 0 ? "hn-for" : "hn-against", style: `width: ${(100 * Math.abs(vote)) / most}%` });
      return h("span", { title: `${vote > 0 ? "speaks for" : "speaks against"} “${answer}”` }, tile, bar);
    }));
    units.setAttribute("aria-label", `${shown.votes.length} hidden units as pictures of ${SIDE} by ${SIDE} weights: ${count} speak for “${answer}”, ${shown.votes.length - count} against it`);
    unitsNote.replaceChildren("What each looks for: ", h("span", { class: "hn-plus" }, "■"), " ink, ", h("span", { class: "hn-minus" }, "■"), ` paper. Sorted by how much they speak for “${answer}” (`,
      h("span", { class: "hn-key-right" }, "━"), ") or against it (", h("span", { class: "hn-key-wrong" }, "━"), ").");
  }

  // --- what comes ----------------------------------------------------------------------------------------------------
  const meant = (text) => (text ? ["Did you mean ", chip(text, {}, () => askFor(text)), "? "] : []);
  const addressOf = (choice) => new URLSearchParams({ question: choice.question, ...(choice.answers ? { answers: choice.answers } : {}), gamma: choice.gamma.toFixed(1) }).toString();
  function goTo(address) {
    const told = new URLSearchParams(address), strong = parseFloat(told.get("gamma"));
    question.value = told.get("question") || "";
    answers.value = told.get("answers") || "";
    own = !!answers.value;
    gamma.value = Number.isFinite(strong) ? strong : 1; // a slider keeps to its ends
    strength.textContent = (+gamma.value).toFixed(1);
    ask();
  }
  const book = source.address && keepAddress(() => shown && addressOf(shown.choice), goTo);
  const work = h("div", { class: "hn-work", hidden: true });
  function draw() {
    title.textContent = shown ? shown.question : "The pictures to ask about";
    key.replaceChildren(shown ? "Every picture under the answer that it gets, the surest first" : `${plural(everyone.length, "picture")}, which no training has used`,
      ...(shown && shown.truth ? ["; ", h("span", { class: "hn-off-key" }), " is wrong."] : ["."]));
    networks.hidden = gammaBox.hidden = !shown;
    place();
    drawScores();
    drawUnits();
  }
  function takeShown() {
    const next = source.get("shown");
    if (!next.answers) return draw();
    shown = next;
    if (next.turn >= turn) { // else a later one is on its way: stays dimmed
      kernel.calm();
      busy.hidden = true;
      root.classList.remove("hn-stale");
      said = "";
      own = !!next.choice.answers;
      if (document.activeElement !== question || !question.value) question.value = next.question;
      answers.value = own ? next.choice.answers : next.answers.join(", ");
      gamma.value = next.gamma;
      strength.textContent = next.gamma.toFixed(1);
      note.replaceChildren(h("p", {}, [next.seen, ...next.notes].filter(Boolean).join(" "), " ", ...meant(next.meant)));
      const [label, texts] = next.others;
      others.replaceChildren(...(texts.length ? [h("span", { class: "hn-soft" }, `${label}:`), ...texts.map((text) => chip(text, {}, () => askFor(text)))] : []));
      if (book) book.keep(addressOf(next.choice));
      const [mine, all] = next.scores;
      announce(mine ? `${next.question} Generated networks: ${percent(mine.percent)} right, one network for all questions: ${percent(all.percent)}.` : `${next.question} ${next.notes.join(" ")}`);
    }
    unclip(root);
    draw();
  }
  function takeSaid() {
    const next = source.get("said");
    if (!next.error || next.turn < turn) return;
    kernel.calm();
    busy.hidden = true;
    say(next.error, ...meant(next.meant));
  }
  const drawWork = () => fillWork(work, source);

  // --- all together ----------------------------------------------------------------------------------------------------
  const networks = h("section", { "aria-label": "Networks" }, scores, h("div", {}, unitsHead, unitsNote), units);
  const root = h("div", { class: "hn hn-digits-page", "data-lm-suppress-shortcuts": "true" }, live, h("p", {}, world.about), chips, form, others, note, work, gammaBox,
    h("div", { class: "hn-results" }, h("section", { "aria-label": "Answers" }, h("div", {}, title, key), sheet), networks));
  const kernel = watchKernel(source, root, lost, () => {
    if (said === GONE && shown && shown.turn === turn) { note.replaceChildren(); said = ""; root.classList.remove("hn-stale"); }
  });
  el.append(root);
  forget.push(kernel.end, followTheme(root, source.address, () => { paintDigits(); drawUnits(); }));
  for (const [name, call] of Object.entries({ shown: takeShown, said: takeSaid, work: drawWork })) forget.push(source.on(name, call));
  const sizes = new ResizeObserver(place);
  sizes.observe(sheet);
  forget.push(() => sizes.disconnect(), () => clearTimeout(timer), () => clearTimeout(announced));
  strength.textContent = (+gamma.value).toFixed(1);
  drawWork();
  takeShown();
  takeSaid();
  if (book) { book.travel(); forget.push(book.end); }
  return () => forget.forEach((call) => call && call());
}

export default { render: ({ model, el }) => mount(el, fromKernel(model)) };
