// One answer, rated by itself: yes or no, or 1 … scale.

import { choices, make, said } from "./dom.js";

export const TITLE = "Is this a good answer?";
export const HINT = "Judge it by itself.";

export const keys = (task, { mode, scale }) =>
  mode === "yes_no" ? [["Y, N", "yes, no"]] : [[`1 … ${scale}`, "the rating"]];

/** Shows a task's answer; `changed` hears of every choice. */
export function show(root, task, changed, { mode, scale }) {
  let chosen = task.previous?.rating ?? null;
  const labels = mode === "yes_no" ? [[1, "Yes"], [0, "No"]] : stars(scale);
  const row = choices("rating", labels, {
    checked: chosen, "aria-label": "Rating",
    pick: (value) => {
      chosen = value;
      changed();
    },
  });
  const ends = mode === "yes_no" ? [] : [make("p", { class: "ends" },
    make("span", {}, "1 is the worst"), make("span", {}, `${scale} is the best`))];
  root.replaceChildren(
    make("article", { class: "card", "aria-label": "Answer" }, said(task.completions[0])),
    make("div", { class: "rating" }, row, ...ends));
  root.className = "one";
  const inputs = row.querySelectorAll("input");
  const values = labels.map(([value]) => value);
  return {
    value: () => ({ rating: chosen }),
    incomplete: () => {
      if (chosen !== null) return "";
      inputs[0].focus();
      return mode === "yes_no" ? "Choose yes or no." : `Choose 1 … ${scale}.`;
    },
    summary: () => (chosen === null ? "" : labels[values.indexOf(chosen)][1]),
    key: (key) => {
      const wanted = mode === "yes_no" ? { y: 1, n: 0 }[key.toLowerCase()] : digit(key);
      const i = values.indexOf(wanted);
      if (i < 0) return false;
      inputs[i].click();
      inputs[i].focus();
      return true;
    },
  };
}

const stars = (scale) => Array.from({ length: scale }, (_, i) => [i + 1, String(i + 1)]);
const digit = (key) => (/^[0-9]$/.test(key) ? Number(key) || 10 : undefined); // 0 is 10
