// The way to the server. The token stays in this tab: there is no cookie.

const TOKEN = "token"; // in sessionStorage
const PENDING = "pending"; // what was sent and not yet acknowledged

/** What the server refuses, with HTTP's number. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Takes the token out of the link, so that it does not stay in the address bar. */
export function enter() {
  const given = location.hash.slice(1);
  if (/^[\w-]{20,}$/.test(given)) {
    if (given !== sessionStorage.getItem(TOKEN)) sessionStorage.clear();
    sessionStorage.setItem(TOKEN, given);
    history.replaceState(null, "", location.pathname);
  }
}

/** Asks for an address; throws Refused, or TypeError when nobody answers. */
export async function ask(path, body) {
  const token = sessionStorage.getItem(TOKEN) ?? "";
  const headers = { Authorization: `Bearer ${token}` };
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  if (answer.status >= 500) throw new TypeError(`the server answers ${answer.status}`);
  const found = await answer.json();
  if (!answer.ok) throw new Refused(found.error, answer.status);
  return found;
}

/** An id that no other event has. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Sends an event until it is acknowledged. It has an id: twice counts once. */
export async function send(event, onRetry) {
  sessionStorage.setItem(PENDING, JSON.stringify(event)); // a reload sends it again
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    try {
      const found = await ask("/api/events", event);
      sessionStorage.removeItem(PENDING);
      return found;
    } catch (error) {
      if (error instanceof Refused) {
        sessionStorage.removeItem(PENDING);
        throw error;
      }
      onRetry();
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
}

/** What was sent before a reload and never acknowledged. */
export const pending = () => JSON.parse(sessionStorage.getItem(PENDING) ?? "null");
