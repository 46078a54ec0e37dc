// Requests to the server of this page: JSON, event streams, and the API key.

const KEY = "synthe.key";

export class ApiError extends Error {
  constructor(message, { status = 0, retry = null } = {}) {
    super(message);
    this.status = status;
    this.retry = retry; // seconds until the server expects to have room
  }
}

let pendingPrompt = null;
let promptForKey = async () => null;

/** Whether requests are sent with a key. */
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** `prompt(rejected)` prompts the user for a key and returns it, or null. */
export function onKeyRequired(prompt) { promptForKey = prompt; }

function requestKey(rejected) {
  pendingPrompt ??= promptForKey(rejected).finally(() => { pendingPrompt = null; });
  return pendingPrompt;
}

async function request(path, { method = "GET", body, signal, quiet = false } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { accept: "application/json" };
    if (body !== undefined) headers["content-type"] = "application/json";
    if (key) headers.authorization = `Bearer ${key}`;
    let response;
    try {
      response = await fetch(path, {
        method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store", credentials: "omit",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server does not respond.");
    }
    if (response.ok) return response;
    if (response.status === 401 && !quiet) {
      const newKey = await requestKey(Boolean(key) && sessionStorage.getItem(KEY) === key);
      if (newKey) { sessionStorage.setItem(KEY, newKey); continue; }
    }
    throw await failure(response);
  }
}

async function failure(response) {
  let message = `The server responded with ${response.status}.`;
  try { message = (await response.json()).error?.message || message; } catch { /* no JSON: the status says it */ }
  const retry = Number(response.headers.get("retry-after"));
  return new ApiError(message, { status: response.status, retry: retry > 0 ? retry : null });
}

/** The JSON response of a path. */
export async function get(path, options) {
  const response = await request(path, options);
  return response.status === 204 ? null : response.json();
}

export const post = (path, body, options) => get(path, { ...options, method: "POST", body });
export const remove = (path, options) => get(path, { ...options, method: "DELETE" });

/** The events of a stream, each as the value of its JSON, until [DONE]. */
export async function* stream(path, body, signal) {
  const response = await request(path, { method: "POST", body: { ...body, stream: true }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(error => {
        if (error.name === "AbortError") throw error;
        throw new ApiError("The connection closed before the answer ended.");
      });
      if (done) throw new ApiError("The connection closed before the answer ended.");
      buffer += value;
      const lines = buffer.split(/\r\n|\n|\r(?!$)/);
      buffer = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue; // comments keep the line open, and events have no other fields
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(event.error.message || "The request failed.", { status: event.error.code || 500 });
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
