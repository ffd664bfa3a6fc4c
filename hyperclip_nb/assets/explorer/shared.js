// What the pages of both worlds share. anywidget knows modules of one file only: `explorer.page.module` puts this text
// in front of a page's own.
//
// A source is what a page draws from: a kernel behind anywidget (`fromKernel`), or answers computed beforehand.

const SVG = "http://www.w3.org/2000/svg";
const PATIENCE = 9000; // milliseconds without an answer after which the page says so
const GONE = "There is no answer: the kernel is busy, or it or its server has ended. What is dimmed belongs to earlier settings.";
const MINUS_PLUS = { light: [[179, 88, 6], [84, 39, 136]], dark: [[230, 159, 0], [86, 180, 233]] }; // colours of weights

function put(node, props, kids) {
  // JupyterLab's shortcuts match the element that has the focus before they look for this mark on those around it.
  if (/^(input|select|button|summary)$/i.test(node.tagName) || (props && props.tabindex === 0)) node.setAttribute("data-lm-suppress-shortcuts", "true");
  // Nor does Enter in a field of a form send it there by itself.
  if (/^form$/i.test(node.tagName)) node.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.isComposing && /^input$/i.test(event.target.tagName)) { event.preventDefault(); node.requestSubmit(); } });
  for (const [name, value] of Object.entries(props || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...kids.flat().filter((kid) => kid != null && kid !== false));
  return node;
}
const h = (tag, props, ...kids) => put(document.createElement(tag), props, kids);
const s = (tag, props, ...kids) => put(document.createElementNS(SVG, tag), props, kids);
const chip = (text, props, call) => h("button", { type: "button", class: "hn-chip", ...props, onclick: call }, text);
const percent = (x) => `${Math.round(x)} %`;
const range = (score) => `${Math.round(score.low)}–${Math.round(score.high)} %`;
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

let pages = 0;

function scoreRow({ label, strong, score }) { // of a table: who, a bar with its interval, percent
  const width = (v) => `${Math.min(Math.max(v, 0), 100)}%`;
  return h("tr", { class: strong ? "hn-strong" : "" }, h("th", { scope: "row" }, label),
    h("td", { class: "hn-track" }, h("div", { class: "hn-bar", style: `width: ${width(score.percent)}` }), h("div", { class: "hn-whisker", style: `left: ${width(score.low)}; width: ${width(score.high - score.low)}` })),
    h("td", {}, percent(score.percent), " ", h("small", {}, range(score))));
}

function fillWork(box, source) { // training, where a part is missing
  const w = source.get("work") || {}, running = w.state === "running";
  box.hidden = !w.state;
  if (!w.state) return;
  const bar = running && h("progress", { max: 1, value: w.share, "aria-label": w.what });
  const button = (kind, text, main) => h("button", { type: "button", class: main ? "hn-main-button" : null, onclick: () => source.send({ kind }) }, text);
  box.replaceChildren(h("div", { class: "hn-say" }, w.what), w.why ? h("small", {}, w.why) : "", bar || "",
    h("div", { class: "hn-row" }, running ? button("stop", "Interrupt") : button("train", "Train", true)));
}

function unclip(root) { // what clips an output without ever scrolling it would keep γ from staying at the top
  for (let up = root.parentElement; up && up !== document.body && !up.matches(".jp-Cell, .jp-WindowedPanel-outer"); up = up.parentElement) {
    if (up.scrollHeight <= up.clientHeight + 1 && getComputedStyle(up).overflow !== "visible") up.style.overflow = "visible";
  }
}

function followTheme(root, alone, draw) { // light or dark, as JupyterLab, the documentation or the system is; returns what ends it
  const system = matchMedia("(prefers-color-scheme: dark)");
  function theme() {
    const lab = document.body.dataset.jpThemeLight, docs = document.body.dataset.theme; // JupyterLab's, and furo's
    const dark = alone && !docs ? system.matches : docs && docs !== "auto" ? docs === "dark" : lab !== undefined && !alone ? lab === "false" : system.matches;
    root.dataset.theme = dark ? "dark" : "light";
    if (alone && !docs) document.body.classList.toggle("hn-dark-page", dark);
    draw();
  }
  const watcher = new MutationObserver(theme);
  watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-theme"] });
  system.addEventListener("change", theme);
  theme();
  return () => { watcher.disconnect(); system.removeEventListener("change", theme); };
}

function watchKernel(source, root, lost, found) { // `lost` is called where no answer comes, `found` where it is there after all
  let waiting = null;
  const calm = () => clearTimeout(waiting), wait = () => { calm(); waiting = setTimeout(lost, PATIENCE); };
  source.heard((message) => { if (message.kind === "alive") { calm(); found(); } });
  const beat = source.live && setInterval(() => { // is there still somebody?
    if (document.hidden || root.classList.contains("hn-stale")) return;
    wait();
    try { source.send({ kind: "alive" }); } catch { lost(); }
  }, 12000);
  return { wait, calm, end: () => { clearInterval(beat); calm(); } };
}

function keepAddress(shown, go) { // the page's address is what is `shown`; `go` is called when somebody travels to another
  let settled = null, travelling = false;
  function travel() {
    const here = location.hash.slice(1);
    clearTimeout(settled);
    if (here.includes("question=") && here !== shown()) { travelling = true; go(here); }
  }
  addEventListener("popstate", travel);
  return {
    travel,
    keep(address) {
      const here = `#${address}`, came = travelling; // from the address itself: there is its entry already
      travelling = false;
      if (location.hash === here) return;
      clearTimeout(settled);
      if (!location.hash || came) history.replaceState(null, "", here);
      else settled = setTimeout(() => history.pushState(null, "", here), 500); // a slider on its way is one entry
    },
    end: () => { clearTimeout(settled); removeEventListener("popstate", travel); },
  };
}

function fromKernel(model) { // a source; where nothing else is on the page, its address holds the choice
  const on = (name, call) => { model.on(`change:${name}`, call); return () => model.off(`change:${name}`, call); };
  const address = model.get("own_page");
  if (address && new URLSearchParams(location.search).has("token")) { // the cookie knows it now
    const rest = new URLSearchParams(location.search);
    rest.delete("token");
    history.replaceState(null, "", `${location.pathname}${rest.size ? `?${rest}` : ""}${location.hash}`);
  }
  return {
    address, live: true, on, get: (name) => model.get(name), send: (message, buffers) => model.send(message, undefined, buffers),
    ask: (choice) => { model.set("choice", choice); model.save_changes(); },
    heard: (call) => model.on("msg:custom", call),
  };
}
