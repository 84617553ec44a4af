// Show an answer by its form: spans in a text, probabilities, a number with its interval, texts.

import {element} from "./server.js";

const MOST_BARS = 10;
const number = (value) => Number(value.toPrecision(4)).toString();
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isSpan = (value) => isObject(value) && Number.isInteger(value.start) && Number.isInteger(value.end);

/** Whether the answers with these fields are one number, by which texts can be sorted. */
export const isLikeness = (fields) => Object.keys(fields).length === 1 && Object.values(fields)[0].type === "number";

/** Show one answer; `given` has the texts of the input by field. */
export function shown(answer, given) {
  const left = {...answer};
  const parts = [];
  const take = (name) => {
    const value = left[name];
    delete left[name];
    return value;
  };
  if (isSpan(answer)) parts.push(...passage(take("start"), take("end"), take("answer"), given));
  if (["value", "low", "high"].every((name) => typeof answer[name] === "number")) {
    parts.push(...interval(take("value"), take("low"), take("high")));
  }
  if (isObject(answer.probabilities)) parts.push(...bars(take("probabilities"), [take("labels"), answer.label].flat()));
  if (Array.isArray(answer.sentences)) parts.push(...sentences(take("sentences"), take("scores"), given));
  for (const [name, value] of Object.entries(left).reverse()) {
    if (Array.isArray(value) && value.length && value.every(isSpan)) {
      delete left[name];
      parts.unshift(...spans(value, given));
    }
  }
  const others = Object.entries(left).filter(([name]) => !(name === "probability" && answer.probabilities));
  const [texts, numbers] = [false, true].map((wanted) => others.filter(([, value]) => (typeof value === "number") === wanted));
  const lines = (entries) => entries.map(([name, value]) => plainly(name, value));
  return element("div", {}, ...lines(texts), ...parts, ...lines(numbers));
}

function plainly(name, value) {
  const line = element("p", {className: "text"}, element("small", {textContent: name.replaceAll("_", " ") + " "}));
  const vector = Array.isArray(value) && value.length > 8 && value.every((each) => typeof each === "number");
  if (vector) line.append(`${value.length} numbers: ${value.slice(0, 4).map(number).join(", ")}, …`);
  else if (typeof value === "number") line.append(element("b", {textContent: number(value)}), ...(value >= 0 && value <= 1 ? [" ", meter(value, name)] : []));
  else if (typeof value === "string") line.append(element("span", {className: "large", textContent: value || "none"}));
  else line.append(Array.isArray(value) && !value.length ? "none" : JSON.stringify(value));
  return line;
}

function meter(value, name) {
  const made = element("meter", {min: 0, max: 1, value, textContent: number(value)});
  made.setAttribute("aria-label", name.replaceAll("_", " "));
  return made;
}

function bars(probabilities, chosen) {
  const rows = Object.entries(probabilities).sort((one, other) => other[1] - one[1]).map(([label, value]) => {
    const picked = chosen.includes(label);
    const head = element("th", {scope: "row", className: picked ? "chosen" : "", textContent: picked ? label + " ✓" : label});
    return element("tr", {}, head, element("td", {}, meter(value, label)), element("td", {textContent: value.toFixed(3)}));
  });
  const first = element("table", {}, ...rows.slice(0, MOST_BARS));
  const rest = rows.slice(MOST_BARS);
  if (!rest.length) return [first];
  return [first, element("details", {}, element("summary", {textContent: `${rest.length} others`}), element("table", {}, ...rest))];
}

function interval(value, low, high) {
  const wide = Math.max(high - low, 1e-9);
  const share = (place) => 100 * (place - low + wide / 2) / (2 * wide) + "%";
  const range = element("span"), point = element("i");
  range.style.setProperty("--from", share(low));
  range.style.setProperty("--wide", "50%");
  point.style.setProperty("--from", share(value));
  const picture = element("div", {className: "interval"}, range, point);
  picture.setAttribute("aria-hidden", "true");
  const between = element("small", {textContent: ` between ${number(low)} and ${number(high)}`});
  return [element("p", {}, element("b", {className: "large", textContent: number(value)}), between), picture];
}

/** Mark spans in a text. Positions count characters, as in Python, not units of UTF-16. */
function marked(text, found) {
  const points = Array.from(text);
  const line = element("p", {className: "text"});
  let end = 0;
  for (const span of [...found].sort((one, other) => one.start - other.start)) {
    if (span.start < end) continue;
    const mark = element("mark", {}, points.slice(span.start, span.end).join(""));
    if (span.label) mark.append(element("small", {textContent: span.label}));
    if (typeof span.score === "number") mark.title = number(span.score);
    line.append(points.slice(end, span.start).join(""), mark);
    end = span.end;
  }
  line.append(points.slice(end).join(""));
  return line;
}

/** Return the text of the input that has each span's text at its place. */
function holder(given, found) {
  const texts = Object.values(given).filter((text) => typeof text === "string");
  return texts.find((text) => found.every((span) => Array.from(text).slice(span.start, span.end).join("") === span.text));
}

function spans(found, given) {
  const text = holder(given, found);
  return text === undefined ? [plainly("spans", found)] : [marked(text, found)];
}

function passage(start, end, answer, given) {
  if (!answer) return [element("p", {className: "large", textContent: "The text has no answer."})];
  return [element("p", {className: "large", textContent: answer}), ...spans([{start, end, text: answer}], given)];
}

function sentences(texts, scores, given) {
  let from = 0;
  const [text] = Object.values(given);
  const found = texts.map((sentence, place) => {
    const at = text.indexOf(sentence, from);
    if (at < 0) return null;
    from = at + sentence.length;
    const start = Array.from(text.slice(0, at)).length;
    return {start, end: start + Array.from(sentence).length, label: scores && number(scores[place])};
  });
  return found.includes(null) ? [plainly("sentences", texts)] : [marked(text, found)];
}

/** List texts by the one number of their answers, the largest first. */
export function ranked(answers, lines) {
  const [name] = Object.keys(answers[0]);
  const order = lines.map((line, place) => [answers[place][name], line]).sort((one, other) => other[0] - one[0]);
  const items = order.map(([value, line]) => element("li", {}, element("span", {className: "text", textContent: line}), plainly(name, value)));
  return element("ol", {}, ...items);
}

/** Colour each word by what it adds to the probability of a label, which can be chosen. */
export function explained(text, words, answer, others) {
  const labels = Object.keys(answer.probabilities);
  const likely = labels.reduce((best, label) => answer.probabilities[label] > answer.probabilities[best] ? label : best);
  const choice = element("select", {id: "explained-" + Math.random().toString(36).slice(2)}, ...labels.map((label) => new Option(label)));
  choice.value = answer.label ?? likely;
  const line = element("p", {className: "text words"});
  const most = element("small");
  const draw = () => {
    const gains = others.map((other) => answer.probabilities[choice.value] - other.probabilities[choice.value]);
    const signed = (gain) => (gain < -0.0005 ? "" : "+") + (gain < 0 && gain > -0.0005 ? 0 : gain).toFixed(3);
    const largest = Math.max(0.01, ...gains.map(Math.abs));
    let end = 0;
    line.replaceChildren();
    words.forEach((match, place) => {
      const gain = gains[place];
      const word = element("span", {textContent: match[0], title: signed(gain), className: gain > 0 ? "raises" : "lowers"});
      word.style.setProperty("--strength", (0.7 * Math.abs(gain) / largest).toFixed(3));
      line.append(text.slice(end, match.index), word);
      end = match.index + match[0].length;
    });
    line.append(text.slice(end));
    const order = gains.map((_, place) => place).sort((one, other) => Math.abs(gains[other]) - Math.abs(gains[one])).slice(0, 4);
    most.textContent = "Each word is left out once. Most change: " + order.map((place) => `${words[place][0]} ${signed(gains[place])}`).join(", ");
  };
  choice.addEventListener("change", draw);
  draw();
  return element("div", {}, element("label", {htmlFor: choice.id, textContent: "What each word adds to the probability of"}), choice, line, most);
}
