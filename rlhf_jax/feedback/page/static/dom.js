// Elements from text. Nothing here, or anywhere, turns a string into HTML.

export const byId = (id) => document.getElementById(id);

/** An element with attributes (`on…` are listeners) and children, strings as text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** What a model or a prompt says: as it is, without white space around it. */
export const said = (text) => make("div", { class: "said", dir: "auto" }, text.trim());

/** Radio buttons as a row of labelled boxes. */
export function choices(name, labels, { checked, pick, ...attributes }) {
  const row = make("div", { class: "choices" });
  labels.forEach(([value, label, spoken], i) => {
    const input = make("input", {
      type: "radio", name, value, id: `${name}-${i}`, checked: value === checked,
      "aria-label": spoken ?? null, onchange: () => pick(value),
    });
    row.append(input, make("label", { for: input.id }, label));
  });
  return make("fieldset", attributes, row);
}
