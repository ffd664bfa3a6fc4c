// A source for explorer.js without a kernel: answers that were computed beforehand, for some questions and some γ.
// What the numbers are, and how they are packed: the notebook `explorer.recorded`.

export function recorded(data) {
  const plain = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, " ").trim();
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  function numbers({ packed, shape, unit }) { // nested arrays from whole numbers of two bytes
    const flat = Array.from(new Int16Array(bytes(packed).buffer), (v) => v * unit);
    return shape.slice(1).reduceRight((all, size) => Array.from({ length: all.length / size }, (_, i) => all.slice(i * size, (i + 1) * size)), flat);
  }
  function opened(value) { // scores and packed numbers become what a kernel would have sent
    if (value === null || typeof value !== "object") return value;
    if (value.packed !== undefined) return numbers(value);
    if (value.score !== undefined) {
      const [who, right, count, percent, low, high] = value.score;
      return { who, label: data.labels[who], right, count, percent, low, high };
    }
    return Array.isArray(value) ? value.map(opened) : Object.fromEntries(Object.entries(value).map(([name, one]) => [name, opened(one)]));
  }
  const questions = new Map(data.questions.map((one) => [plain(one.shown.question), one]));
  const state = { world: data.world, dots: opened(data.dots), choice: { ...data.world.usual, ...data.world.chips[0].choice, turn: 0 } };
  const calls = {};
  const set = (changes) => {
    Object.assign(state, changes);
    for (const name of Object.keys(changes)) (calls[name] || []).forEach((call) => call());
  };
  function ask(choice) {
    const told = choice.address === undefined ? choice : { ...data.world.usual, ...Object.fromEntries(new URLSearchParams(choice.address)) };
    const one = questions.get(plain(told.question || ""));
    if (!one) return set({ said: { turn: choice.turn, error: "This page knows the answers to some questions only; install hyperclip_nb to ask your own.", meant: null } });
    const off = (answer) => Math.abs(answer.shown.choice.gamma - told.gamma);
    const found = one.answers.reduce((best, answer) => (off(answer) < off(best) ? answer : best));
    const shown = opened({ ...one.shown, ...found.shown }), more = opened({ ...one.more, ...found.more });
    set({ said: {}, pictures: { key: shown.key, ...one.pictures }, sprite: one.pictures.sprite });
    set({ shown: { ...shown, turn: choice.turn } });
    set({ more: { ...more, turn: choice.turn } });
  }
  ask(state.choice);
  return {
    address: data.address, live: false, step: data.step, knows: (text) => questions.has(plain(text)), get: (name) => state[name],
    ask: (choice) => setTimeout(() => ask(choice)), send() {}, heard() {},
    on(name, call) { (calls[name] = calls[name] || []).push(call); return () => { calls[name] = calls[name].filter((one) => one !== call); }; },
  };
}
