// The page: list, player, keys and buttons. Everything that is shown comes from /api; nothing from elsewhere.
import {Edits} from "./edits.js";
import {Player, element} from "./player.js";
import {Queue, pillOf} from "./queue.js";

const get = (id) => document.getElementById(id);
const parts = {
  cameras: get("cameras"), charts: get("charts"), scrubber: get("scrubber"), position: get("position"),
  playButton: get("play"), speed: get("speed"),
};
let about, shown, begun = null, opened = 0;

function say(text) {
  get("message").hidden = !text;
  get("message").firstElementChild.textContent = text;
}
async function fetched(address) {
  let answer;
  try {
    answer = await fetch(address);
  } catch {
    say("chunkrl does not answer: start it again, and open the link that it prints.");
    return null;
  }
  const json = answer.headers.get("content-type") === "application/json";
  const found = json ? await answer.json() : {error: await answer.text()};
  if (answer.ok) return found;
  say(found.error);
  return null;
}

const player = new Player(parts, () => {
  get("subgoal").setAttribute("aria-pressed", String(Boolean(shown?.subgoals.includes(player.step))));
  drawMarks();
});
const queue = new Queue(get("queue"), get("spacer"), (numbers) => fetched(`/api/rows?numbers=${numbers}`), open);
const edits = new Edits(say, (episode, what) => {
  queue.update(episode);
  if (what === "edit" || what === "told") {
    if (episode.number === shown.number) show(episode);
  } else if (episode.number === shown.number) {
    show(episode);
  } else {
    open(episode.number); // an undo of what was done elsewhere is looked at there
  }
});

async function open(number) {
  if (number === undefined) return;
  const asked = ++opened;
  const episode = await fetched(`/api/episode/${number}`);
  if (!episode || asked !== opened) return;
  begun = null;
  edits.seen(episode);
  shown = episode;
  player.open(episode);
  queue.select(number);
  show(episode);
  history.replaceState(null, "", `#${number}`);
  drawCurves(number);
  const next = queue.beside(number, 1);
  if (next !== undefined) fetch(`/api/episode/${next}`); // its data are mapped by the time it is asked for
}
async function drawCurves(number) {
  const found = await fetched(`/api/episode/${number}/curves`);
  if (found && number === shown.number) player.setCharts(found.charts);
}

function show(episode) {
  const humanBefore = JSON.stringify(shown?.human);
  shown = episode;
  get("title").textContent = `${episode.set}, episode ${episode.episode}`;
  get("task").textContent = episode.task;
  const [kind, text] = pillOf(episode);
  const outcome = episode.excluded ? [["open", "excluded"], pillOf({...episode, excluded: false})] : [[kind, text]];
  const pills = outcome.map(([kind, text]) => [kind, text === "success" ? `success at step ${episode.success_step}` : text]);
  pills.push(["open", `${episode.subgoals.length} sub-goal${episode.subgoals.length === 1 ? "" : "s"}`]);
  if (episode.human.length) {
    pills.push(["open", `human: ${episode.human.map(([a, b]) => `${a} to ${b}`).join(", ")}`]);
  }
  if (episode.by_hand) pills.push(["open", "by hand"]);
  if (episode.doubt !== null) pills.push(["open", `doubt ${episode.doubt.toFixed(2)}`]);
  get("state").replaceChildren(...pills.map(([kind, textContent]) => element("span", {className: `pill ${kind}`, textContent})));
  get("success").setAttribute("aria-pressed", String(episode.success === true));
  get("failure").setAttribute("aria-pressed", String(episode.success === false));
  get("exclude").setAttribute("aria-pressed", String(episode.excluded));
  get("exclude").textContent = episode.excluded ? "Include" : "Exclude";
  get("human").textContent = begun === null ? "Human from here" : begun.on ? "Human to here" : "No human to here";
  get("undo").disabled = !(edits.done.length || episode.can_undo);
  get("redo").disabled = !(edits.undone.length || episode.can_redo);
  if (humanBefore !== JSON.stringify(episode.human) && about.has_values) drawCurves(episode.number);
  player.draw();
}
function drawMarks() {
  if (!shown) return;
  const mark = (name, first, last) => {
    const made = element("span", {className: name});
    made.style.left = `${100 * first / Math.max(shown.length - 1, 1)}%`;
    if (last !== undefined) made.style.width = `${100 * Math.max(last - first, 0.5) / Math.max(shown.length - 1, 1)}%`;
    return made;
  };
  get("marks").replaceChildren(
    ...shown.human.map(([first, last]) => mark("human", first, last)),
    ...(shown.success ? [mark("success", shown.success_step)] : []),
    ...shown.subgoals.map((step) => mark("subgoal", step)),
    ...(begun === null ? [] : [mark("begun", begun.step)]));
}

async function outcome(kind, step) {
  const number = shown.number;
  const before = edits.done.length;
  await edits.edit(number, step === undefined ? {kind} : {kind, step});
  if (get("advance").checked && edits.done.length > before && shown.number === number) open(queue.beside(number, 1));
}
function human() {
  if (begun === null) {
    const inside = shown.human.some(([first, last]) => first <= player.step && player.step <= last);
    begun = {step: player.step, on: !inside};
    show(shown);
    return;
  }
  const edit = {kind: "human", step: begun.step, last: player.step, on: begun.on};
  begun = null;
  edits.edit(shown.number, edit);
}
function cancel() {
  begun = null;
  say("");
  show(shown);
}

const EDITS = [
  ["s", "success", "success, at the last step; of a success: it is right, at its step", () => outcome("success")],
  ["Shift+S", "success-here", "success at the step that is shown", () => outcome("success", player.step)],
  ["f", "failure", "failure", () => outcome("failure")],
  ["g", "subgoal", "sub-goal here, or none", () =>
    edits.edit(shown.number, {kind: "subgoal", step: player.step, on: !shown.subgoals.includes(player.step)})],
  ["h", "human", "human from here; again: to here (from a human's step: no human)", human],
  ["x", "exclude", "exclude the episode, or include it", () =>
    edits.edit(shown.number, {kind: "exclude", on: !shown.excluded})],
  ["u", "undo", "undo this page's last edit", () => edits.undo(shown.number)],
  ["r", "redo", "redo", () => edits.redo(shown.number)],
];
const step = (by) => () => { player.pause(); player.go(player.step + by); };
const MOVES = [
  [" ", "play", "play or pause", () => player.toggle()],
  ["ArrowLeft", "back", "one step back", step(-1)],
  ["ArrowRight", "forward", "one step forward", step(1)],
  ["Shift+ArrowLeft", "", "ten steps back", step(-10)],
  ["Shift+ArrowRight", "", "ten steps forward", step(10)],
  ["Home", "", "first step", () => { player.pause(); player.go(0); }],
  ["End", "", "last step", () => { player.pause(); player.go(player.length - 1); }],
  ["p", "previous", "previous episode", () => open(queue.beside(shown.number, -1))],
  ["n", "next", "next episode", () => open(queue.beside(shown.number, 1))],
  ["Escape", "", "leave a human's stretch unfinished; close a message", cancel],
  ["?", "", "show or hide the keys", () => { get("keys").open = !get("keys").open; }],
];
const ALSO = {"Ctrl+z": "u", "Ctrl+y": "r", "Ctrl+Shift+Z": "r", ArrowUp: "p", ArrowDown: "n", "Shift+?": "?"};
const NAMES = {" ": "Space", ArrowLeft: "←", ArrowRight: "→", "Shift+ArrowLeft": "Shift ←", "Shift+ArrowRight": "Shift →",
  "Shift+S": "Shift S", Escape: "Esc"};

function pressed(event) {
  const isLetter = event.key.length === 1 && event.key.toLowerCase() !== event.key.toUpperCase();
  const key = !isLetter ? event.key : event.shiftKey ? event.key.toUpperCase() : event.key.toLowerCase(); // caps lock
  const typed = `${event.ctrlKey || event.metaKey ? "Ctrl+" : ""}${event.shiftKey ? "Shift+" : ""}${key}`;
  return ALSO[typed] ?? (typed === "Shift+?" ? "?" : typed);
}
function bind(bindings) {
  const byKey = new Map(bindings.map(([key, , , act]) => [key, act]));
  for (const [, id, , act] of bindings) if (id) get(id).onclick = act;
  addEventListener("keydown", (event) => {
    if (event.altKey || event.target instanceof HTMLSelectElement || !shown) return;
    if (event.key === " " && event.target instanceof HTMLButtonElement) event.target.blur(); // space plays
    const act = byKey.get(pressed(event));
    if (!act) return;
    event.preventDefault();
    if (!(event.repeat && !pressed(event).includes("Arrow"))) act();
  });
  addEventListener("keyup", (event) => { if (event.key === " ") event.preventDefault(); });
  get("keys").querySelector("tbody").replaceChildren(...bindings.map(([key, , text]) =>
    element("tr", {}, element("td", {}, element("kbd", {textContent: NAMES[key] ?? key})), element("td", {textContent: text}))));
}

async function sort() {
  const found = await fetched(`/api/queue?order=${get("order").value}`);
  if (!found) return;
  queue.set(found.numbers);
  get("counts").textContent = `${found.numbers.length} episodes`;
  if (shown) queue.select(shown.number);
}

async function begin() {
  about = await fetched("/api/page");
  if (!about) return;
  edits.begin(about.key);
  get("edits").hidden = !about.editable;
  bind(about.editable ? [...MOVES, ...EDITS] : MOVES);
  get("order").value = about.order;
  get("order").onchange = sort;
  get("sort").onclick = sort;
  get("dismiss").onclick = () => say("");
  get("advance").checked = localStorage.getItem("advance") === "yes";
  get("advance").onchange = () => localStorage.setItem("advance", get("advance").checked ? "yes" : "no");
  parts.scrubber.oninput = () => { player.pause(); player.go(Number(parts.scrubber.value)); };
  parts.speed.onchange = () => { if (player.isPlaying) { player.pause(); player.play(); } };
  get("sets").replaceChildren(...about.sets.map((set) => element("div", {},
    element("h3", {textContent: `${set.name}: ${set.num_episodes} episodes`}),
    element("p", {className: "note", textContent: `${set.root}: ${set.told}`}),
    ...set.notes.map((textContent) => element("p", {className: "note", textContent})))));
  await sort();
  const wanted = Number(location.hash.slice(1) || NaN);
  await open(Number.isInteger(wanted) && wanted < about.num_episodes ? wanted : queue.numbers[0]);
  addEventListener("focus", async () => { // another browser may have changed it
    const number = shown.number;
    const now = await fetched(`/api/episode/${number}`);
    if (now && number === shown.number && now.version !== shown.version && !edits.waiting) {
      edits.seen(now);
      queue.update(now);
      show(now);
    }
  });
  document.body.dataset.ready = "yes";
}
begin();
window.chunkrl = {player, queue, edits, get shown() { return shown; }}; // for whoever looks at the page from a test
