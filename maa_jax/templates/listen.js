"use strict";
// The page of a listening test. A listener's number decides what is heard, and in which order; where
// a listener is and what was answered is kept in localStorage, so that a reload changes nothing.
const test = JSON.parse(document.getElementById("test").textContent);
const place = document.getElementById("place");
const languages = new Map(test.texts.map((texts) => [texts.code, texts]));
const asked = new URLSearchParams(location.search);
const mos = test.tests[0].startsWith("mos");

// ---- What a listener hears -------------------------------------------------------------------

// Random numbers in [0, 1) from the seed and a listener's number (mulberry32).
function generator(listener) {
  let a = Math.imul(test.seed + 1, 0x9e3779b1) ^ Math.imul(listener + 1, 0x85ebca6b);
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function shuffled(list, random) {
  const result = [...list];
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [result[i], result[j]] = [result[j], result[i]];
  }
  return result;
}

// Listeners go through the prompts one after the other, as in a relay: of the listeners 0 to n all
// prompts have been heard equally often, give or take one. In A/B the pair of systems moves on by
// one with each prompt and each round, as the rows of a Latin square do.
function trialsOf(listener) {
  const random = generator(listener);
  const count = test.prompts.length;
  const systems = test.prompts[0].sounds.length;
  const at = (i) => listener * test.per_listener + i;
  const prompt = (i) => test.prompts[at(i) % count];
  const pairs = [];
  for (let i = 0; i < systems; i++) for (let j = i + 1; j < systems; j++) pairs.push([i, j]);
  const make = (i) => {
    const { caption, shown, sounds, reference } = prompt(i);
    if (test.tests[0] === "ab") {
      const pair = pairs[((at(i) % count) + Math.floor(at(i) / count)) % pairs.length];
      return [{ caption, shown, sounds: shuffled(pair.map((s) => sounds[s]), random) }];
    }
    if (reference) return [{ reference, sounds: shuffled(sounds, random) }];
    return sounds.map((sound) => ({ caption, shown, sounds: [sound] }));
  };
  const trials = [];
  for (let i = 0; i < test.per_listener; i++) trials.push(...make(i));
  const bad = (i) => test.damaged[(listener + i) % test.damaged.length];
  if (mos) {
    for (const beeps of shuffled(test.beeps, random).slice(0, test.beep_trials)) {
      const i = Math.floor(random() * test.per_listener);
      trials.push({ ...prompt(i), sounds: [beeps] });
    }
    if (test.damaged.length) {
      const { prompt: p, sounds } = bad(0);
      trials.push({ ...test.prompts[p], sounds: [sounds[0]] });
    }
  } else if (test.tests[0] === "ab") {
    for (let i = 0; i < Math.min(2, test.damaged.length); i++) {
      const { prompt: p, sounds } = bad(i);
      trials.push({ ...test.prompts[p], sounds: shuffled(sounds, random) });
    }
  }
  // The practice is a prompt that this listener does not hear later, where there is one.
  const practice = [shuffled(make(test.per_listener), random)[0]];
  if (mos) practice.push({ ...practice[0], sounds: [test.beeps[2]], beeps: true });
  return {
    headphones: shuffled(test.headphones, random),
    practice,
    trials: shuffled(trials, random),
  };
}

// ---- What is kept ----------------------------------------------------------------------------

const key = ["listen", test.test, asked.get("listener") ?? "", asked.get("id") ?? ""].join(" ");
const tab = Math.random().toString(36).slice(2);
let stored = true;

function fresh() {
  const given = asked.get("listener") ?? "";
  return {
    test: test.test,
    listener: /^\d{1,9}$/.test(given) ? Number(given) : Math.floor(Math.random() * 1e9),
    id: (asked.get("id") ?? "").slice(0, 200),
    language: languageOf([asked.get("language"), ...(navigator.languages ?? [])]),
    started: Date.now(),
    step: 0,
    headphones: [],
    answers: [],
    comment: "",
  };
}

function languageOf(wanted) {
  const known = [...languages.keys()];
  const fits = (w) => known.find((code) => w?.toLowerCase().startsWith(code.toLowerCase()));
  return fits(wanted.find(fits)) ?? known[0];
}

function load() {
  try {
    const found = JSON.parse(localStorage.getItem(key));
    if (found?.test === test.test && languages.has(found.language)) return found;
  } catch {
    stored = false;
  }
  return fresh();
}

function save() {
  try {
    localStorage.setItem(key, JSON.stringify({ ...state, tab }));
  } catch {
    stored = false;
  }
}

let state = load();
save();
const heard = trialsOf(state.listener);
const steps = [
  welcome,
  volume,
  ...heard.headphones.map((name, i) => () => headphones(name, i)),
  ...heard.practice.map((trial) => () => question(trial, -1)),
  ...heard.trials.map((trial, i) => () => question(trial, i)),
  comment,
  done,
];
const t = (name, values = {}) =>
  languages.get(state.language)[name].replace(/\{(\w+)\}/g, (_, word) => values[word]);
const words = (name) => languages.get(state.language)[name];

// Another tab went on with this test: what this one would save is out of date.
addEventListener("storage", (event) => {
  if (event.key !== key) return;
  halt();
  draw(t("title"), [
    el("p", { textContent: t("other_tab") }),
    row(el("button", { textContent: t("here"), className: "main", onclick: () => location.reload() })),
  ]);
});
addEventListener("pageshow", (event) => event.persisted && location.reload());
addEventListener("beforeunload", (event) => {
  if (!stored && state.step > 0 && state.step < steps.length - 1) event.preventDefault();
});

function next(change = {}) {
  state = { ...state, ...change, step: state.step + 1 };
  save();
  show();
}

// ---- Parts of the page -----------------------------------------------------------------------

function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const row = (...children) => el("div", { className: "go" }, ...children);
const note = (text) => el("p", { className: "note", textContent: text });

let keys = {}; // what keys do in this step: play(), digit(n)
let cleanUp = []; // of this step
const loaded = new Map();

function sound(name) {
  if (!loaded.has(name)) loaded.set(name, Object.assign(new Audio(), { preload: "auto", src: `sounds/${name}.wav` }));
  return loaded.get(name);
}

function halt() {
  cleanUp.forEach((action) => action());
  cleanUp = [];
  keys = {};
  film = null;
}

function draw(title, children) {
  document.documentElement.lang = state.language;
  document.title = title;
  const heading = el("h1", { textContent: title, tabIndex: -1 });
  place.replaceChildren(heading, ...children);
  heading.focus({ preventScroll: true });
  scrollTo(0, 0);
}

function show() {
  halt();
  steps[Math.min(state.step, steps.length - 1)]();
  // The sounds of the next trial are loaded while this one is answered; those before are let go.
  const at = state.step - (steps.length - 2 - heard.trials.length);
  const needed = [heard.trials[at], heard.trials[at + 1]]
    .filter(Boolean)
    .flatMap((trial) => [...trial.sounds, trial.reference])
    .filter(Boolean);
  for (const name of loaded.keys()) if (at >= 0 && !needed.includes(name)) loaded.delete(name);
  needed.forEach(sound);
}

// A button that plays a sound. It counts as heard when every part of it has been played, so that
// the seeking of media keys is no way round.
function player(name, label, changed) {
  const audio = sound(name);
  const bar = el("progress", { value: 0, max: 1, ariaLabel: label });
  const button = el("button", { type: "button", textContent: `▶ ${t("play")}` });
  const status = el("span", { className: "note", role: "status" });
  const failed = el("span", { className: "note failed", role: "alert" });
  const made = {
    node: el("div", { className: "player" }, button, bar, status, failed),
    label,
    plays: 0,
    toggle: () => (audio.paused ? start() : stop()),
    stop,
    playing: () => !audio.paused,
    ready: false,
  };
  button.ariaLabel = `${t("play")}: ${label}`;
  if (label) made.node.prepend(el("strong", { textContent: label }));
  const update = () => {
    const on = !audio.paused;
    button.textContent = on ? `■ ${t("stop")}` : `▶ ${t("play")}`;
    button.ariaLabel = `${t(on ? "stop" : "play")}: ${label}`;
    status.textContent = made.plays ? `✓ ${t("heard")}` : "";
  };
  function start() {
    players.forEach((other) => other !== made && other.stop());
    failed.textContent = "";
    if (audio.error) audio.load();
    audio.currentTime = 0;
    if (film) film.currentTime = 0;
    if (audio.readyState < 3) status.textContent = t("loading");
    // Pausing while it loads rejects the promise, which is no failure.
    film?.play().catch(() => {});
    audio.play().then(update, (error) => error.name !== "AbortError" && fail());
  }
  function fail() {
    audio.pause();
    update();
    failed.textContent = t("failed");
  }
  function stop() {
    audio.pause();
    audio.currentTime = 0;
    film?.pause();
    bar.value = 0;
    update();
  }
  const covered = () => {
    let seconds = 0;
    for (let i = 0; i < audio.played.length; i++) seconds += audio.played.end(i) - audio.played.start(i);
    return seconds >= audio.duration - 0.1 - 0.02 * audio.duration;
  };
  const listeners = {
    timeupdate: () => (bar.value = audio.duration ? audio.currentTime / audio.duration : 0),
    ended: () => {
      if (covered()) made.plays += 1;
      update();
      if (made.plays) changed();
      else status.textContent = t("not_heard");
    },
    pause: update,
    ratechange: () => audio.playbackRate !== 1 && (audio.playbackRate = 1),
    error: fail,
  };
  for (const [event, action] of Object.entries(listeners)) audio.addEventListener(event, action);
  button.onclick = made.toggle;
  players.push(made);
  cleanUp.push(() => {
    for (const [event, action] of Object.entries(listeners)) audio.removeEventListener(event, action);
    audio.pause();
    players = players.filter((other) => other !== made);
  });
  // Space: stop what plays; else the first that has not been heard, else the first.
  keys.play = () =>
    (players.find((p) => p.playing()) ?? players.find((p) => !p.plays) ?? players[0]).toggle();
  return made;
}
let players = [];
let film = null; // the video that is shown with the sounds, without its own

// A question with one answer: options [[value, strong text, text]], in the order of their digits.
function choices(legend, options, changed) {
  const group = `group${document.querySelectorAll("fieldset").length}${Math.random()}`;
  const made = { value: null };
  const inputs = options.map(([value]) =>
    el("input", { type: "radio", name: group, onchange: () => ((made.value = value), changed()) }),
  );
  const labels = options.map(([, strong, text], i) =>
    el("label", {}, inputs[i], el("strong", { textContent: strong }), el("span", { textContent: text })),
  );
  made.node = el(
    "fieldset",
    { disabled: true },
    el("legend", { textContent: legend }),
    el("div", { className: "answers" }, ...labels),
  );
  made.digit = (n) => {
    if (made.node.disabled || !inputs[n - 1]) return;
    inputs[n - 1].click();
    inputs[n - 1].focus();
  };
  return made;
}

function slider(label, changed) {
  const made = { value: null };
  const output = el("output", { textContent: "–" });
  const input = el("input", {
    type: "range", min: 0, max: 100, step: 1, value: 50, disabled: true, ariaLabel: label,
    oninput: () => {
      made.value = Number(input.value);
      output.textContent = input.value;
      changed();
    },
  });
  // A click on the middle, where it is already, answers 50.
  input.onclick = input.oninput;
  made.node = el("div", { className: "slider" }, input, output);
  made.enable = () => (input.disabled = false);
  return made;
}

function nextButton(action) {
  const button = el("button", { type: "button", className: "main", textContent: t("next"), disabled: true });
  button.onclick = () => {
    button.onclick = null; // a double click goes on once
    action();
  };
  return button;
}

// ---- Steps -----------------------------------------------------------------------------------

function welcome() {
  const box = el("input", { type: "checkbox", id: "consent" });
  const button = nextButton(() => next({ started: Date.now() }));
  button.textContent = t("start");
  box.onchange = () => (button.disabled = !box.checked);
  const rules = [
    t("quiet"), test.headphones.length && t("headphones_on"), t("whole"), mos && t("beeps_rule"),
    stored ? t("again") : t("no_storage"), t("data"), t("keys"),
  ].filter(Boolean);
  const choice = el(
    "select",
    { ariaLabel: t("language"), onchange: () => ((state.language = choice.value), save(), show()) },
    ...[...languages].map(([code, texts]) =>
      el("option", { value: code, textContent: texts.name, selected: code === state.language }),
    ),
  );
  draw(t("title"), [
    ...(languages.size > 1 ? [el("p", {}, choice)] : []),
    el("p", { textContent: t("welcome", { minutes: test.minutes }) }),
    el("ul", {}, ...rules.map((rule) => el("li", { textContent: rule }))),
    el("label", { className: "consent" }, box, el("span", { textContent: t("consent") })),
    row(button),
  ]);
}

function volume() {
  const button = nextButton(() => next());
  const noise = player(test.volume, t("sound"), () => (button.disabled = false));
  draw(t("volume_title"), [el("p", { textContent: t("volume") }), el("article", {}, noise.node), row(button)]);
}

function progress(n, count) {
  const text = t("progress", { n, count });
  return el(
    "div",
    { className: "bar" },
    el("progress", { value: n - 1, max: count, ariaLabel: text }),
    el("span", { className: "note", textContent: text }),
  );
}

function headphones(name, i) {
  const button = nextButton(() =>
    next({ headphones: [...state.headphones, { sound: name, answer: answer.value }] }),
  );
  const tones = player(name, t("sound"), () => (answer.node.disabled = false));
  const answer = choices(
    t("headphones"),
    words("headphones_answers").map((text, n) => [n, n + 1, text]),
    () => (button.disabled = false),
  );
  keys.digit = answer.digit;
  draw(t("headphones_title"), [
    progress(i + 1, heard.headphones.length),
    el("article", {}, tones.node),
    answer.node,
    row(button),
  ]);
}

// A trial, or the practice (index -1), whose answers are not kept.
function question(trial, index) {
  const shown = performance.now();
  const scales = [];
  const own = [];
  const update = () => {
    const ready = own.every((p) => p.plays) && scales.every((s) => s.value !== null);
    button.disabled = !ready;
  };
  const button = nextButton(() => {
    if (index < 0) return next();
    const ratings = ratingsOf(scales);
    const answer = {
      sounds: trial.sounds,
      ratings,
      plays: own.slice(-trial.sounds.length).map((p) => p.plays),
      ms: Math.round(performance.now() - shown),
    };
    next({ answers: [...state.answers, answer] });
  });
  const parts = [];
  if (trial.shown) {
    const video = !trial.shown.endsWith(".png");
    const src = `shown/${trial.shown}`;
    const view = video
      ? el("video", { src, muted: true, playsInline: true, preload: "auto", className: "shown" })
      : el("img", { src, alt: t("shown"), className: "shown" });
    if (video) film = view;
    parts.push(el("article", {}, note(t("shown")), view));
  }
  if (trial.caption)
    parts.push(el("article", {}, note(t("caption")), el("p", { className: "caption", textContent: `“${trial.caption}”` })));
  const enable = () => {
    if (own.every((p) => p.plays)) scales.forEach((s) => s.node.disabled !== undefined && (s.node.disabled = false));
    update();
  };
  if (trial.reference) {
    const reference = player(trial.reference, t("reference"), enable);
    own.push(reference);
    parts.push(el("p", { textContent: t("mushra") }), el("article", {}, reference.node));
    trial.sounds.forEach((name, i) => {
      const label = `${t("sound")} ${i + 1}`;
      const one = player(name, label, () => (scale.enable(), update()));
      const scale = slider(label, update);
      own.push(one);
      scales.push(scale);
      const ends = el("div", { className: "words" }, ...words("mushra_answers").map((text) => el("span", { textContent: text })));
      parts.push(el("article", {}, one.node, scale.node, ends));
    });
  } else if (trial.sounds.length === 2) {
    trial.sounds.forEach((name, i) => {
      const one = player(name, "AB"[i], enable);
      own.push(one);
      parts.push(el("article", {}, one.node));
    });
    scales.push(choices(t("ab"), [[0, "A", ""], [1, "B", ""]], update));
    parts.push(scales[0].node);
  } else {
    own.push(player(trial.sounds[0], t("sound"), enable));
    parts.push(el("article", {}, own[0].node));
    for (const name of test.tests) {
      const asks = trial.shown && name === "mos_f" ? t("mos_f_shown") : t(name);
      scales.push(choices(asks, words(`${name}_answers`).map((text, i) => [test.values[i], test.values[i], text]), update));
      parts.push(scales.at(-1).node);
    }
  }
  // Digits answer the question that has the focus, else the first that is open, else the last.
  keys.digit = (n) => {
    const open = scales.find((s) => s.value === null) ?? scales.at(-1);
    const focused = scales.find((s) => s.node.contains(document.activeElement));
    const target = focused && open !== focused && focused.value === null ? focused : open;
    target.digit?.(n);
  };
  const practice = index < 0;
  const title = practice ? t("practice_title") : test.tests.map((name) => t(`${name}_title`)).join(" · ");
  const head = practice
    ? [el("p", { textContent: trial.beeps ? t("beeps_rule") : t("practice") })]
    : [progress(index + 1, heard.trials.length)];
  draw(title, [...head, ...parts, row(button)]);
}

// {scale: a number for each sound}; in A/B 1 for the better sound, 0 for the other.
function ratingsOf(scales) {
  if (test.tests[0] === "mushra") return { mushra: scales.map((s) => s.value) };
  if (test.tests[0] === "ab") return { ab: [0, 1].map((i) => Number(scales[0].value === i)) };
  return Object.fromEntries(test.tests.map((name, i) => [name, [scales[i].value]]));
}

function comment() {
  const text = el("textarea", { ariaLabel: t("comment"), maxLength: 2000, value: state.comment });
  const button = nextButton(() => next({ comment: text.value, finished: Date.now() }));
  button.disabled = false;
  draw(t("comment_title"), [el("p", { textContent: t("comment") }), text, row(button)]);
}

// The code is a checksum of the answers (64-bit FNV-1a): whoever has the file can tell it.
function codeOf(text) {
  let hash = 0xcbf29ce484222325n;
  for (const byte of new TextEncoder().encode(text)) {
    hash = ((hash ^ BigInt(byte)) * 0x100000001b3n) & 0xffffffffffffffffn;
  }
  return hash.toString(16).padStart(16, "0");
}

function record() {
  const { test, listener, id, language, started, finished, headphones, answers, comment } = state;
  const content = { test, listener, id, language, started, finished, headphones, answers, comment };
  return { ...content, code: codeOf(JSON.stringify(content)) };
}

function done() {
  const answers = record();
  const text = JSON.stringify(answers);
  const status = el("p", { role: "status" });
  const code = el("article", { hidden: true }, note(t("completion")), el("div", { className: "completion", textContent: answers.code }));
  const again = el("button", { type: "button", textContent: t("send"), hidden: true, onclick: () => send() });
  const keep = el("a", { download: `answers-${answers.code}.json`, href: URL.createObjectURL(new Blob([text], { type: "application/json" })) });
  const saving = el("button", { type: "button", textContent: t("save"), onclick: () => (keep.click(), (code.hidden = false)) });
  if (!test.post_url) saving.className = "main";
  draw(t("done_title"), [status, row(again, saving), code]);
  const sent = () => {
    status.textContent = t("sent");
    code.hidden = false;
  };
  if (state.sent) sent();
  else if (test.post_url) send();
  else status.textContent = t("save_please");

  async function send() {
    again.hidden = true;
    status.textContent = t("sending");
    for (const wait of [0, 1000, 4000]) {
      await new Promise((resolve) => setTimeout(resolve, wait));
      try {
        // text/plain needs no preflight, which simple servers do not answer.
        const reply = await fetch(test.post_url, { method: "POST", body: text, headers: { "Content-Type": "text/plain" } });
        if (!reply.ok) continue;
        state.sent = true; // a reload does not send again
        save();
        return sent();
      } catch {
        // offline, or the server is away: again
      }
    }
    status.textContent = t("unsent");
    again.hidden = false;
  }
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const target = event.target;
  if (target.matches("textarea, select")) return;
  if (event.key === " " && keys.play && !target.matches("button")) {
    keys.play();
  } else if (event.key === "Enter" && !target.matches("button, a")) {
    const button = place.querySelector("button.main");
    if (button && !button.disabled) button.click();
  } else if (/^[1-9]$/.test(event.key) && keys.digit) {
    keys.digit(Number(event.key));
  } else return;
  event.preventDefault();
});

show();
