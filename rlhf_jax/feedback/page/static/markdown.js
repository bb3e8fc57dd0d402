// A little Markdown for the instructions: headings, lists, quotes, **bold**, `code`.

import { make } from "./dom.js";

/** The elements that a text in Markdown stands for. */
export function markdown(text) {
  const blocks = [];
  let open = null; // the list or paragraph that the next line may go on with
  for (const line of text.replaceAll("\r", "").split("\n")) {
    const heading = line.match(/^(#{1,4}) +(.*)$/);
    const item = line.match(/^ {0,3}(?:([-*])|\d+[.)]) +(.*)$/);
    const quote = line.match(/^> ?(.*)$/);
    if (!line.trim()) {
      open = null;
    } else if (heading) {
      blocks.push({ tag: `h${Math.min(heading[1].length + 1, 4)}`, lines: [heading[2]] });
      open = null;
    } else if (item) {
      const tag = item[1] ? "ul" : "ol";
      const list = blocks.at(-1)?.tag === tag ? blocks.at(-1) : { tag, items: [] };
      if (list !== blocks.at(-1)) blocks.push(list);
      list.items.push((open = { lines: [item[2]] }));
    } else if (open && !quote === (open.tag !== "blockquote")) {
      open.lines.push(quote ? quote[1] : line.trim());
    } else {
      open = quote ? { tag: "blockquote", lines: [quote[1]] } : { tag: "p", lines: [line] };
      blocks.push(open);
    }
  }
  return blocks.map((block) =>
    block.items
      ? make(block.tag, {}, ...block.items.map((item) => make("li", {}, ...inline(item))))
      : make(block.tag, {}, ...inline(block)));
}

function inline({ lines }) {
  return lines.join(" ").split(/(\*\*[^*]+\*\*|`[^`]+`)/).map((part) => {
    if (/^\*\*.+\*\*$/.test(part)) return make("strong", {}, part.slice(2, -2));
    if (/^`.+`$/.test(part)) return make("code", {}, part.slice(1, -1));
    return part;
  });
}
