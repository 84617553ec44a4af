// Ask a model that answers with records. The form follows from the schema of the input in the server's description.

import {asCurl, asUrllib, at, describe, element, layColumns, request, say, servedModels, showCode} from "./server.js";
import {explained, isLikeness, ranked, shown} from "./answers.js";

const MOST_WORDS = 300;
// As `textmill predict --explain`: a Chinese or Japanese character is a word of its own.
const WORDS = /[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+/g;

let models, record, plain, most, sections;

export function startTask(served, description) {
  models = served;
  const predict = description.paths["/predict"].post;
  const content = predict.requestBody.content["application/json"];
  const shapes = content.schema.oneOf.map((shape) => shape.properties);
  const input = shapes.find((shape) => shape.input).input;
  most = shapes.find((shape) => shape.inputs).inputs.maxItems;
  record = input.anyOf ? input.anyOf.find((each) => each.type === "object") : input;
  plain = (input.anyOf ?? []).some((each) => each.type === "string");
  for (const [name, shape] of Object.entries(record.properties)) {
    const field = element("textarea", {id: "field-" + name, rows: 3, required: record.required?.includes(name) ?? false});
    const json = shape.type === "string" ? "" : " (JSON)";
    at("fields").append(element("label", {htmlFor: field.id, textContent: readable(name) + json}), field);
  }
  const answer = predict.responses["200"].content["application/json"].schema.oneOf.find((shape) => shape.properties.output);
  const fields = answer.properties.output.properties ?? {};
  at("explain").hidden = fields.probabilities?.type !== "object" || names().length !== 1;
  at("ranking").hidden = names().length < 2 || !isLikeness(fields);
  at("ranking").querySelector("label").textContent = `Each line of ${readable(names().at(-1))} is a text of its own; sort them`;
  (content.examples?.several.value.inputs ?? []).forEach((example, place) => {
    const onclick = () => fill(example);
    at("examples").append(element("button", {type: "button", textContent: `Example ${place + 1}`, onclick}));
  });
  sections = layColumns(models, copy);
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(false);
  });
  at("explain").addEventListener("click", () => at("form").reportValidity() && ask(true));
  at("fields").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
  });
}

const names = () => Object.keys(record.properties);
const readable = (name) => name.replaceAll("_", " ");

function fill(example) {
  for (const name of names()) {
    const value = typeof example === "object" ? example[name] : name === names()[0] ? example : "";
    at("field-" + name).value = typeof value === "object" ? JSON.stringify(value, null, 2) : value ?? "";
  }
}

/** Return the texts of the form by field, without empty ones. */
function read() {
  const given = {};
  for (const name of names()) {
    const text = at("field-" + name).value;
    if (text.trim()) given[name] = record.properties[name].type === "string" ? text : JSON.parse(text);
  }
  return given;
}

/** Return the inputs of a request, and whether they are to be sorted. */
function inputs() {
  const given = read();
  const last = names().at(-1);
  if (!at("ranking").hidden && at("ranked").checked && given[last]) {
    const lines = given[last].split("\n").map((line) => line.trim()).filter(Boolean);
    if (lines.length > 1) return {given, values: lines.map((line) => ({...given, [last]: line})), lines};
  }
  const filled = Object.keys(given);
  return {given, values: [plain && filled.length === 1 && filled[0] === names()[0] ? given[filled[0]] : given]};
}

async function predict(model, values) {
  const answers = [];
  for (let start = 0; start < values.length; start += most) {
    const body = {inputs: values.slice(start, start + most)};
    const response = await request("predict", body, {"X-Textmill-Model": model.manifest_sha256});
    answers.push(...(await response.json()).outputs);
  }
  return answers;
}

async function ask(wanted) {
  let asked;
  try {
    asked = inputs();
    const now = await servedModels();
    if (now.length !== models.length) sections = layColumns(now, copy);
    models = now;
  } catch (error) {
    say("Error: " + error.message);
    return;
  }
  say("");
  await Promise.all(models.map(async (model, place) => {
    describe(sections[place], model);
    const output = element("div", {className: "output"});
    output.setAttribute("aria-live", "polite");
    sections[place].querySelector(".output")?.remove();
    sections[place].append(output);
    try {
      const started = performance.now();
      const answers = await predict(model, asked.values);
      const seconds = ((performance.now() - started) / 1000).toPrecision(2);
      output.append(asked.lines ? ranked(answers, asked.lines) : shown(answers[0], asked.given));
      if (wanted) output.append(await explanation(model, asked.given[names()[0]], answers[0]));
      const raw = element("pre", {textContent: JSON.stringify(asked.lines ? answers : answers[0], null, 2)});
      output.append(element("small", {textContent: `answered in ${seconds} s`}), element("details", {}, element("summary", {textContent: "JSON"}), raw));
    } catch (error) {
      output.append(element("p", {className: "error", textContent: "Error: " + error.message}));
    }
  }));
}

/** Leave each word out once, and compare the probabilities. */
async function explanation(model, text, answer) {
  const found = [...text.matchAll(WORDS)].slice(0, MOST_WORDS);
  if (found.length < 2) return element("p", {className: "note", textContent: "A text of one word has no explanation."});
  const without = found.map((match) => text.slice(0, match.index) + text.slice(match.index + match[0].length));
  const others = await predict(model, without.map((rest) => rest.replace(/ {2,}/g, " ").trim()));
  return explained(text, found, answer, others);
}

function copy(place, kind) {
  try {
    const {values} = inputs();
    const body = values.length > 1 ? {inputs: values} : {input: values[0]};
    const headers = {"X-Textmill-Model": models[place].manifest_sha256};
    showCode("As " + kind, (kind === "curl" ? asCurl : asUrllib)("predict", body, headers));
  } catch (error) {
    say("Error: " + error.message);
  }
}
