// Requests to the server, and what both kinds of page need.

let token = "";

export const at = (id) => document.getElementById(id);

/** Make an element; texts among the children are never read as markup. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const say = (text) => { at("status").textContent = text; };
export const setToken = (text) => { token = text; };
export const hasToken = () => token !== "";
export const base = () => new URL(".", location.href).href;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Return the response to a request; throw Refused with the server's line for an error. */
export async function request(path, body, headers = {}, signal = undefined) {
  const sent = {...headers, ...(body && {"Content-Type": "application/json"}), ...(token && {Authorization: "Bearer " + token})};
  let response;
  try {
    response = await fetch(path, {method: body ? "POST" : "GET", headers: sent, body: body && JSON.stringify(body), signal});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the server does not answer");
  }
  if (response.ok) return response;
  const content = await response.json().catch(() => ({}));
  throw new Refused(response.status, content.error?.message ?? content.error ?? "status " + response.status);
}

/** Return the served models that can be compared: the first, and those of the same task. */
export async function servedModels() {
  const {data} = await (await request("v1/models")).json();
  return data.filter((model) => model.task === data[0].task && model.paths.length === data[0].paths.length);
}

/** Make a column for each model, with its description and buttons that copy its request. */
export function layColumns(models, copied) {
  at("columns").replaceChildren(...models.map((model, place) => {
    const button = (kind) => element("button", {type: "button", textContent: "Copy as " + kind, onclick: () => copied(place, kind)});
    const name = element("h2", {id: "model-" + place});
    const head = element("header", {}, name, element("small"), element("p", {className: "buttons"}, button("curl"), button("Python")));
    const section = element("section", {}, head);
    section.setAttribute("aria-labelledby", name.id);
    describe(section, model);
    return section;
  }));
  return [...at("columns").children];
}

/** Write the name, alias, task and engine of a model into the head of its column. */
export function describe(section, model) {
  const name = model.version ? model.id.slice(0, -model.version.length - 1) + ", version " + model.version : model.id;
  section.querySelector("h2").textContent = name;
  const task = model.task.replaceAll("_", " ");
  section.querySelector("header small").textContent = [model.alias, task, model.engine].filter(Boolean).join(" · ");
}

const quoted = (text) => "'" + text.replaceAll("'", "'\\''") + "'";

/** Return a value of JSON as Python writes it. */
function literal(value, indent = "    ") {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const deeper = indent + "    ";
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const entries = Array.isArray(value)
    ? value.map((each) => literal(each, deeper))
    : Object.entries(value).map(([name, each]) => JSON.stringify(name) + ": " + literal(each, deeper));
  return entries.length ? open + entries.map((each) => "\n" + deeper + each + ",").join("") + "\n" + indent + close : open + close;
}

export function asCurl(path, body, headers = {}) {
  const given = Object.entries({"Content-Type": "application/json", ...headers}).map(([name, value]) => `-H '${name}: ${value}'`);
  const parts = ["curl " + quoted(base() + path), ...given, ...(token ? ['-H "Authorization: Bearer $TEXTMILL_TOKEN"'] : [])];
  return [...parts, "-d " + quoted(JSON.stringify(body, null, 2))].join(" \\\n  ");
}

export function asOpenAI(method, body, printed) {
  const options = Object.entries(body).map(([name, value]) => `    ${name}=${literal(value)},\n`).join("");
  const key = token ? 'os.environ["TEXTMILL_TOKEN"]' : '"none"';
  return `${token ? "import os\n\n" : ""}from openai import OpenAI\n\n` +
    `client = OpenAI(base_url=${JSON.stringify(base() + "v1")}, api_key=${key})\n` +
    `answer = client.${method}.create(\n${options})\nprint(answer.choices[0].${printed})\n`;
}

export function asUrllib(path, body, headers) {
  const key = token ? 'headers["Authorization"] = "Bearer " + os.environ["TEXTMILL_TOKEN"]\n' : "";
  return `import json\n${token ? "import os\n" : ""}from urllib.request import Request, urlopen\n\n` +
    `headers = ${literal({"Content-Type": "application/json", ...headers}, "")}\n${key}` +
    `body = ${literal(body, "")}\n` +
    `request = Request(${JSON.stringify(base() + path)}, json.dumps(body).encode(), headers)\n` +
    "print(json.load(urlopen(request)))\n";
}

/** Show a program and copy it where the browser allows that. */
export async function showCode(title, text) {
  const dialog = at("code");
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("pre").textContent = text;
  dialog.querySelector("p").textContent = "";
  dialog.querySelector("button").onclick = () => dialog.close();
  dialog.showModal();
  const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  dialog.querySelector("p").textContent = copied ? "Copied." : "Select the text to copy it.";
}
