// A source for explorer.js without a kernel: answers that were computed beforehand, for some questions and some γ.

export function recorded(data) {
  const state = { world: data.world, dots: data.dots, choice: { ...data.world.usual, ...data.world.chips[0].choice, turn: 0 } };
  const calls = {};
  const bytes = (text) => (text ? Uint8Array.from(atob(text), (c) => c.charCodeAt(0)) : null);
  const set = (changes) => {
    Object.assign(state, changes);
    for (const name of Object.keys(changes)) (calls[name] || []).forEach((call) => call());
  };
  function find(choice) {
    const told = choice.address === undefined ? choice : { ...data.world.usual, ...Object.fromEntries(new URLSearchParams(choice.address)) };
    const plain = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, " ").trim();
    const asked = data.answers.filter((one) => plain(one.shown.question) === plain(told.question || ""));
    const off = (one) => Math.abs(one.shown.choice.gamma - told.gamma);
    return asked.sort((a, b) => off(a) - off(b))[0];
  }
  function ask(choice) {
    const found = find(choice);
    if (!found) return set({ said: { turn: choice.turn, error: "This page knows the answers to some questions only; install hyperclip_nb to ask your own.", meant: null } });
    const pictures = data.pictures[found.shown.key];
    set({ said: {}, pictures: { key: found.shown.key, ...pictures }, sprite: pictures.sprite, matrices: bytes(found.matrices) });
    set({ shown: { ...found.shown, turn: choice.turn } });
    set({ more: { ...found.more, turn: choice.turn } });
  }
  ask(state.choice);
  return {
    address: !!data.address, live: false, get: (name) => state[name], ask: (choice) => setTimeout(() => ask(choice)), send() {}, heard() {},
    on(name, call) { (calls[name] = calls[name] || []).push(call); return () => { calls[name] = calls[name].filter((one) => one !== call); }; },
  };
}
