// How far the labelling is: numbers to look at, read again every few seconds.

import { byId, make } from "./dom.js";
import { ask, enter, Refused } from "./server.js";

const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(0)} %`);

const round = (number) => number.toFixed(2).replace("-", "−");
const interval = ({ value, low, high }) =>
  low === null ? round(value) : `${round(value)} (${round(low)}\u00a0to\u00a0${round(high)})`;

const MEANING = {
  ranking: "Agreement: of all pairs of answers that two people ranked, the share with the " +
    "same answer ahead, or tied by both.",
  rating: "Agreement: of all answers that two people rated, the share with equal ratings.",
  alpha: " Krippendorff’s α takes chance into account: 1 is perfect, 0 is what guessing " +
    "gives. Its 95 % interval needs ten items judged by several people.",
};

function render(found) {
  byId("bar").max = Math.max(found.items, 1);
  byId("bar").value = found.finished;
  byId("count").textContent =
    `${found.finished} of ${found.items} items have the ${found.votes_wanted} ` +
    `${found.votes_wanted === 1 ? "judgement" : "judgements"} wanted`;
  const skips = Object.entries(found.skips).map(([reason, count]) => `${reason} ${count}`);
  const numbers = [["Judgements", found.votes], ["Agreement", percent(found.agreement)],
    ["Krippendorff’s α", found.alpha === null ? "not yet" : interval(found.alpha)],
    ["Skipped", skips.join(", ") || "0"]];
  byId("numbers").replaceChildren(...numbers.map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
  byId("people").replaceChildren(...found.annotators.map((person) => make("tr", {},
    make("th", { scope: "row" }, person.name),
    ...[person.votes, person.skips,
      person.median_seconds === null ? "–" : person.median_seconds.toFixed(1),
      percent(person.with_others),
      person.repeats ? `${percent(person.with_self)} of ${person.repeats} repeats` : "–",
    ].map((cell) => make("td", {}, String(cell))))));
  byId("meaning").textContent = (MEANING[found.mode] ?? MEANING.rating) + MEANING.alpha;
  byId("notice").hidden = true;
  byId("found").hidden = false;
}

async function look() {
  if (document.hidden) return;
  try {
    render(await ask("/api/overview"));
  } catch (error) {
    byId("notice").hidden = false;
    byId("notice").textContent = error instanceof Refused
      ? "This page opens with the link that the server printed for the overview."
      : "The server does not answer. Trying again …";
  }
}

enter();
look();
setInterval(look, 5000);
