// The server's routes: JSON, and answers that are streamed. The session's cookie goes along by itself.

/** What the server said no with: message, where, fix, status. */
export class Refused extends Error {
  constructor(message, { where = "", fix = "", status = 0 } = {}) {
    super(message);
    Object.assign(this, { where, fix, status });
  }
}

export async function get(path, query = {}, signal = undefined) {
  const asked = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) asked.append(name, one);
  }
  const tail = asked.toString();
  return json(await sent(tail ? `${path}?${tail}` : path, { signal }));
}

export async function post(path, body, signal = undefined) {
  return json(await sent(path, written(body, signal)));
}

/** Streams one answer of /v1/chat/completions. Returns {text, finish, usage}; `onText` gets each piece. */
export async function chat(body, signal, onText) {
  const whole = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await sent("/v1/chat/completions", written(whole, signal));
  const told = { text: "", finish: null, usage: null };
  let ended = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      ended = true;
      break;
    }
    const chunk = read(data);
    if (chunk.error) throw new Refused(chunk.error.message || "the answer broke off", chunk.error);
    if (chunk.usage) told.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) {
      told.text += choice.delta.content;
      onText(choice.delta.content);
    }
    if (choice?.finish_reason) told.finish = choice.finish_reason;
  }
  if (!ended && !told.finish) throw brokenOff();
  return told;
}

const brokenOff = () => new Refused("the connection ended before the answer did", { fix: "ask again" });

/** JSON that an object stands in; a proxy's page, or half of an answer, is told as what it is. */
function read(text) {
  try {
    const found = JSON.parse(text);
    if (found !== null && typeof found === "object") return found;
  } catch {
    // told below
  }
  throw new Refused("what came can't be read as an answer of this server", { fix: "ask again; does a proxy stand in between?" });
}

/** The `data` of each server-sent event. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await unbroken(reader.read());
      if (done) return;
      const parts = (rest + value).split(/\r\n\r\n|\n\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter(line => line.startsWith("data:"));
        if (lines.length) yield lines.map(line => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // a reader who leaves closes the stream: the server stops writing
  }
}

function written(body, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}

async function sent(path, how) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", redirect: "error", ...how });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("the server does not answer", { fix: "is tunesmith serve still running?" });
  }
  if (!response.ok) throw await refused(response);
  return response;
}

async function json(response) {
  return read(await unbroken(response.text()));
}

/** A connection that breaks in the middle of an answer; browsers have words of their own for it. */
async function unbroken(coming) {
  try {
    return await coming;
  } catch (error) {
    throw error.name === "AbortError" ? error : brokenOff();
  }
}

async function refused(response) {
  const status = response.status;
  if (status === 401) return new Refused("this server wants its token", { fix: "load this page again: it asks for it", status });
  let told = {};
  try {
    const content = await response.json();
    told = content.error ?? { message: words(content.detail) };
  } catch {
    // no JSON: the status has to say it
  }
  const message = typeof told === "string" ? told : told.message;
  const after = response.headers.get("retry-after") ?? ""; // seconds; a proxy may name a date
  const again = /^\d+$/.test(after) && !message?.includes("try again in") ? `try again in ${after} s` : "";
  const fix = told.fix ?? again;
  return new Refused(message || `the server answered ${status}`, { where: told.where ?? told.param ?? "", fix, status });
}

/** FastAPI's list of what is wrong with a body, in a line. */
function words(detail) {
  if (!Array.isArray(detail)) return typeof detail === "string" ? detail : "";
  return detail.map(one => `${(one.loc ?? []).slice(1).join(".")}: ${one.msg}`).join("; ");
}
