// Talk to a chat model, or let a language model continue a text; several models side by side.

import {asCurl, asOpenAI, at, describe, element, layColumns, request, say, servedModels, showCode} from "./server.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const CHAT = "v1/chat/completions";

let chats, columns, running;

export function startChat(models) {
  chats = models[0].paths.includes("/" + CHAT);
  const field = element("textarea", {id: "text", rows: 3, required: true});
  at("fields").append(element("label", {htmlFor: "text", textContent: chats ? "Message" : "Text to continue"}), field);
  at("send").textContent = chats ? "Send" : "Continue";
  at("system-field").hidden = !chats;
  at("schema-field").hidden = !chats || !models[0].json_schema;
  at("parameters").hidden = at("clear").hidden = false;
  at("clear").textContent = chats ? "New conversation" : "Clear";
  at("form").before(at("columns"));
  lay(models);
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) send();
  });
  field.addEventListener("keydown", (event) => {
    const sends = chats ? !event.shiftKey : event.ctrlKey || event.metaKey;
    if (event.key !== "Enter" || !sends || event.isComposing) return;
    event.preventDefault();
    at("form").requestSubmit();
  });
  at("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
  at("clear").addEventListener("click", () => {
    running?.abort();
    lay(columns.map((column) => column.model));
    field.focus();
  });
}

/** Begin with empty conversations. */
function lay(models) {
  const sections = layColumns(models, copy);
  columns = models.map((model, place) => {
    const log = element("div", {role: "log", tabIndex: 0});
    log.setAttribute("aria-label", "Conversation");
    sections[place].append(log);
    return {model, log, section: sections[place], turns: []};
  });
  for (const [name, exported] of Object.entries({...models[0].generation, max_tokens: models[0].generation.max_new_tokens})) {
    if (NUMBERS.includes(name)) at(name).placeholder = exported ?? "none";
  }
}

/** Return the parameters that differ from the model's own. */
function parameters() {
  const given = NUMBERS.filter((name) => at(name).value !== "");
  const options = Object.fromEntries(given.map((name) => [name, Number(at(name).value)]));
  const schema = at("schema-field").hidden ? "" : at("schema").value.trim();
  if (!schema) return options;
  try {
    return {...options, response_format: {type: "json_schema", json_schema: {name: "answer", schema: JSON.parse(schema)}}};
  } catch (error) {
    throw new Error("the JSON schema is not JSON: " + error.message);
  }
}

/** Return the body of a request that continues the turns with a text. */
function bodyOf(column, turns, text) {
  if (!chats) return {model: column.model.id, prompt: text, ...parameters()};
  const system = at("system").value.trim();
  const messages = [...(system ? [{role: "system", content: system}] : []), ...turns, {role: "user", content: text}];
  return {model: column.model.id, messages, ...parameters()};
}

async function send() {
  const field = at("text");
  const text = chats ? field.value.trim() : field.value;
  if (!text.trim()) return;
  running = new AbortController();
  show(running);
  try {
    parameters();
    await follow();
    say("");
    if (chats) field.value = "";
    const answered = await Promise.all(columns.map((column) => answer(column, text, running.signal)));
    if (chats && !answered.some(Boolean) && !field.value) field.value = text;
  } catch (error) {
    say("Error: " + error.message);
  }
  running = undefined;
  show(running);
  field.focus();
}

function show(busy) {
  at("stop").hidden = !busy;
  at("send").disabled = Boolean(busy);
}

/** Follow the server to a new champion; conversations go on with it. */
async function follow() {
  const models = await servedModels();
  if (models.length !== columns.length) lay(models);
  columns.forEach((column, place) => {
    column.model = models[place];
    describe(column.section, column.model);
  });
}

/** Stream the answer of one model into its column; return whether there is one. */
async function answer(column, text, signal) {
  const shown = element("p", {className: "text"});
  const note = element("small");
  const kept = column.turns;
  const mine = element("article", {className: "user"}, element("h3", {textContent: "You"}), element("p", {className: "text", textContent: text}));
  const theirs = element("article", {}, element("h3", {textContent: [column.model.alias || "model", column.model.version].join(" ")}), shown, note);
  column.log.append(...(chats ? [mine, theirs] : [theirs]));
  if (!chats) shown.append(element("span", {className: "note", textContent: text}));
  column.log.setAttribute("aria-busy", "true");
  const started = performance.now();
  let said = "", first, usage, finish = "stopped";
  try {
    const body = {...bodyOf(column, kept, text), stream: true, stream_options: {include_usage: true}};
    const response = await request(chats ? CHAT : "v1/completions", body, {}, signal);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const [choice] = event.choices;
      const piece = choice?.delta?.content ?? choice?.text ?? "";
      finish = choice?.finish_reason ?? finish;
      if (!piece) continue;
      first ??= performance.now();
      said += piece;
      shown.append(piece);
      column.log.scrollTop = column.log.scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError") shown.append(element("span", {className: "error", textContent: "Error: " + error.message}));
    else finish = "stopped";
  }
  column.log.setAttribute("aria-busy", "false");
  note.textContent = told(usage, finish, first && first - started, performance.now() - started);
  column.log.scrollTop = column.log.scrollHeight;
  if (said.trim()) column.turns = [...kept, {role: "user", content: text}, {role: "assistant", content: said}];
  return said.trim() !== "";
}

/** Yield the records of a stream of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function told(usage, finish, first, whole) {
  const seconds = (ms) => (ms / 1000).toPrecision(2) + " s";
  const parts = [];
  if (usage) {
    const {completion_tokens: made, prompt_tokens: read} = usage;
    parts.push(`${made} tokens, ${(1000 * made / whole).toPrecision(3)} tokens/s`, `prompt ${read} tokens`);
  }
  if (first) parts.push("first after " + seconds(first));
  if (finish === "stopped") parts.push("stopped");
  if (finish === "length") parts.push("cut at the token limit");
  return parts.join(" · ");
}

/** Copy the request of the draft; without one, that of the last answer. */
function copy(place, kind) {
  const column = columns[place];
  const draft = chats ? at("text").value.trim() : at("text").value;
  const asked = column.turns.at(-2)?.content ?? "";
  try {
    const body = draft || !asked ? bodyOf(column, column.turns, draft || "…") : bodyOf(column, column.turns.slice(0, -2), asked);
    const [method, printed] = chats ? ["chat.completions", "message.content"] : ["completions", "text"];
    const code = kind === "curl" ? asCurl(chats ? CHAT : "v1/completions", body) : asOpenAI(method, body, printed);
    showCode("As " + kind, code);
  } catch (error) {
    say("Error: " + error.message);
  }
}
