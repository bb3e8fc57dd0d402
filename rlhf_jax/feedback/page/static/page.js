// The labelling page: shows a task, hears what is chosen, sends it, shows the next.

import { byId, make } from "./dom.js";
import { markdown } from "./markdown.js";
import * as ranking from "./ranking.js";
import * as rating from "./rating.js";
import { ask, enter, newId, pending, Refused, send } from "./server.js";

const LOOK_AGAIN = 5000; // ms between two looks for new items when nothing is left
const phone = matchMedia("(max-width: 60rem)");
let state = null; // the server's last answer
let shown = null; // the task on the page, as ranking.js or rating.js give it
let busy = false;
let watch = { seconds: 0, since: null }; // how long the task was looked at

const say = (text, bad = false) => {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", bad);
};

const retrying = () => say("Not saved yet: no answer. Trying again …", true);

/** The parts of the page that a new answer of the server changes. */
function render(found, focus) {
  const before = state;
  state = found;
  byId("who").textContent = found.annotator;
  byId("progress").hidden = false;
  byId("bar").max = Math.max(found.done + found.left, 1);
  byId("bar").value = found.done;
  byId("count").textContent = `${found.done} of ${found.done + found.left} judged`;
  renderInstructions(found.instructions);
  const same = before?.task?.task === found.task?.task && shown;
  if (!same) renderTask(found, focus);
}

function renderInstructions({ text, sha256 }) {
  const box = byId("instructions");
  const known = box.dataset.sha256;
  if (known === sha256) return;
  box.dataset.sha256 = sha256;
  box.hidden = false;
  byId("text").replaceChildren(...markdown(text));
  if (known) say("The instructions have changed. Please read them again.");
  box.open = !phone.matches || sessionStorage.getItem("read") !== sha256;
}

/** On a phone they make room for the task once something was judged by them. */
function readInstructions(sha256) {
  if (sessionStorage.getItem("read") === sha256) return;
  sessionStorage.setItem("read", sha256);
  if (phone.matches) byId("instructions").open = false;
}

function renderTask(found, focus) {
  const { task, mode } = found;
  for (const id of ["form", "keys", "skip", "save"]) byId(id).hidden = !task;
  byId("notice").hidden = Boolean(task);
  shown = null;
  if (!task) {
    byId("notice").textContent = "Nothing is left for you to judge. Thank you! " +
      "If there is more, it appears here by itself.";
    byId("order").textContent = "";
    return;
  }
  const kind = mode === "ranking" ? ranking : rating;
  byId("task-title").textContent = kind.TITLE;
  byId("hint").textContent = kind.HINT;
  byId("prompt").textContent = task.prompt.trim();
  shown = kind.show(byId("answers"), task, changed, found);
  renderKeys(kind.keys(task, found));
  changed();
  watch = { seconds: 0, since: document.hidden ? null : performance.now() };
  if (focus) {
    scrollTo(0, byId("work").offsetTop < scrollY ? byId("work").offsetTop - 16 : scrollY);
    byId("work").focus({ preventScroll: true });
  }
}

function renderKeys(own) {
  const all = [...own, ["Enter", "save, and show the next"], ["U", "undo the last one"],
    ["S", "skip"]];
  byId("key-list").replaceChildren(...all.flatMap(([key, does]) =>
    [make("dt", {}, make("kbd", {}, key)), make("dd", {}, does)]));
}

function changed() {
  const summary = shown.summary();
  const label = state.mode === "ranking" ? "Your order" : "Your rating";
  byId("order").textContent = summary ? `${label}: ${summary}` : "";
}

function seconds() {
  const running = watch.since === null ? 0 : (performance.now() - watch.since) / 1000;
  return Math.round(10 * (watch.seconds + running)) / 10;
}

/** Sends what was done; the answer has the next task. */
async function post(event, done) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    const body = { id: newId(), seconds: seconds(),
      instructions: state.instructions.sha256, ...event };
    const found = await send(body, retrying);
    readInstructions(body.instructions);
    shown = null;
    render(found, true);
    say(`${done} ${byId("count").textContent}.`);
  } catch (error) {
    fail(error);
  } finally {
    busy = false;
    document.body.removeAttribute("aria-busy");
  }
}

function save(event) {
  event?.preventDefault();
  if (!shown || busy) return;
  const why = shown.incomplete();
  if (why) say(why, true);
  else post({ kind: "vote", task: state.task.task, ...shown.value() }, "Saved.");
}

const undo = () => post({ kind: "undo" }, "Undone: judge it again.");

function askReason() {
  if (!shown || busy) return;
  byId("reasons").replaceChildren(...Object.entries(state.reasons).map(([value, text], i) =>
    make("label", { class: "check" },
      make("input", { type: "radio", name: "reason", value, required: true, checked: !i }),
      ` ${text}`)));
  byId("note").value = "";
  byId("skip-dialog").showModal();
}

function skip(event) {
  event.preventDefault();
  const reason = new FormData(byId("skip-form")).get("reason");
  byId("skip-dialog").close();
  post({ kind: "skip", task: state.task.task, reason, note: byId("note").value }, "Skipped.");
}

function onKey(event) {
  const { target, key } = event;
  const other = event.ctrlKey || event.metaKey || event.altKey || event.isComposing;
  if (other || !byId("keys-on").checked || byId("skip-dialog").open) return;
  if (target.matches("textarea, summary, a, #keys-on")) return;
  const button = target.matches("button");
  let done = true;
  if (key === "Enter" && !button) save();
  else if (key.toLowerCase() === "u") state && undo();
  else if (key.toLowerCase() === "s") askReason();
  else done = Boolean(shown) && !busy && shown.key(key);
  if (done && !(key === "Enter" && button)) event.preventDefault();
}

function fail(error) {
  if (!(error instanceof Refused)) {
    say("The server does not answer. Trying again …", true);
    return;
  }
  if (error.status !== 401 && error.status !== 403) return say(error.message, true);
  for (const id of ["form", "keys", "actions"]) byId(id).hidden = true;
  byId("notice").hidden = false;
  byId("notice").textContent = "This page opens with the link that you were given. " +
    "Open that link again, or ask for a new one.";
}

async function start() {
  try {
    const waiting = pending();
    if (waiting) await send(waiting, retrying).then(() => say("Saved."), fail);
    render(await ask("/api/task"), false);
  } catch (error) {
    fail(error);
    if (!(error instanceof Refused)) setTimeout(start, 2000);
  }
}

async function lookAgain() {
  if (!state || state.task || busy || document.hidden) return;
  try {
    const found = await ask("/api/task");
    if (!busy) render(found, false);
  } catch (error) {
    if (error instanceof Refused) fail(error);
  }
}

byId("form").addEventListener("submit", save);
byId("undo").addEventListener("click", () => state && undo());
byId("skip").addEventListener("click", askReason);
byId("skip-form").addEventListener("submit", skip);
byId("skip-cancel").addEventListener("click", () => byId("skip-dialog").close());
document.addEventListener("keydown", onKey);
document.addEventListener("visibilitychange", () => {
  watch = { seconds: seconds(), since: document.hidden ? null : performance.now() };
});
addEventListener("hashchange", () => location.reload());
byId("keys-on").checked = localStorage.getItem("keys") !== "off";
byId("keys-on").addEventListener("change", (event) =>
  localStorage.setItem("keys", event.target.checked ? "on" : "off"));
setInterval(lookAgain, LOOK_AGAIN);
enter();
start();
