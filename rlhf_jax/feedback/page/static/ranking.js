// Several answers, each given a place; equal places are ties.

import { choices, make, said } from "./dom.js";

const letter = (i) => String.fromCharCode(65 + i);
const places = ["1st", "2nd", "3rd"];
const place = (i) => places[i] ?? `${i + 1}th`;

export const TITLE = "Which answers are better?";
export const HINT = "Give each a place. The same place is a tie.";

export const keys = (task) => [
  [`A … ${letter(task.completions.length - 1)}`, "choose an answer"],
  [`1 … ${task.completions.length}`, "give it a place, and go to the next"],
];

/** Shows a task's answers; `changed` hears of every choice. */
export function show(root, task, changed) {
  const count = task.completions.length;
  const given = task.previous?.ranks ?? Array(count).fill(null);
  const chosen = [...given];
  let current = 0;
  const cards = task.completions.map((text, i) => {
    const pick = (value) => {
      chosen[i] = value;
      go(i);
      changed();
    };
    const labels = Array.from({ length: count }, (_, r) => [r, place(r), `${place(r)} place`]);
    const title = make("h3", { id: `answer-${i}` }, make("span", { class: "hidden" }, "Answer "), letter(i));
    const card = make("article", { class: "card", "aria-labelledby": title.id },
      make("div", { class: "head" }, title, choices(`place-${i}`, labels, {
        checked: chosen[i], pick, "aria-label": `Place of answer ${letter(i)}`,
      })),
      said(text));
    card.addEventListener("pointerdown", () => go(i));
    card.addEventListener("focusin", () => go(i));
    return card;
  });
  const go = (i) => {
    current = i;
    cards.forEach((card, j) => card.classList.toggle("current", j === i));
  };
  const focus = (i) => {
    const card = cards[i];
    (card.querySelector("input:checked") ?? card.querySelector("input")).focus({ preventScroll: true });
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    card.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  };
  const missing = () => chosen.flatMap((rank, i) => (rank === null ? [i] : []));
  root.replaceChildren(...cards);
  root.className = "cards";
  go(0);
  return {
    value: () => ({ ranks: dense(chosen) }),
    /** Why it cannot be saved yet; moves there. */
    incomplete: () => {
      if (!missing().length) return "";
      focus(missing()[0]);
      return `Give a place to ${missing().map(letter).join(", ")}.`;
    },
    summary: () => summary(chosen),
    key: (key) => {
      const i = key.length === 1 ? key.toUpperCase().charCodeAt(0) - 65 : -1;
      const rank = /^[1-9]$/.test(key) ? Number(key) - 1 : -1;
      if (i >= 0 && i < count) focus(i);
      else if (rank >= 0 && rank < count) {
        cards[current].querySelectorAll("input")[rank].click();
        const left = missing();
        const after = Math.min(current + 1, count - 1); // of one that is done over
        focus(left.find((j) => j > current) ?? left[0] ?? after);
      } else return false;
      return true;
    },
  };
}

/** Ranks without gaps: places 1, 3, 3 are ranks 0, 1, 1. */
function dense(chosen) {
  const used = [...new Set(chosen)].sort((a, b) => a - b);
  return chosen.map((rank) => used.indexOf(rank));
}

/** B > A = C, as far as places are given. */
function summary(chosen) {
  const groups = new Map();
  chosen.forEach((rank, i) => {
    if (rank !== null) groups.set(rank, [...(groups.get(rank) ?? []), letter(i)]);
  });
  const ordered = [...groups].sort(([a], [b]) => a - b);
  return ordered.map(([, letters]) => letters.join(" = ")).join(" > ");
}
