// Find out what the server serves, and show the page for it.

import {at, hasToken, request, say, servedModels, setToken} from "./server.js";
import {startChat} from "./chat.js";
import {startTask} from "./task.js";

const RETRY_MS = 1000;

async function start() {
  try {
    say("Connecting…");
    const [models, description] = await Promise.all([servedModels(), request("openapi.json").then((answer) => answer.json())]);
    at("access").hidden = true;
    say("");
    const generates = models[0].paths.some((path) => path.startsWith("/v1/"));
    (generates ? startChat : startTask)(models, description);
    at("form").hidden = false;
  } catch (error) {
    if (error.status === 401) {
      say(hasToken() ? "The token is wrong." : "This server wants its token.");
      at("access").hidden = false;
      at("token").focus();
    } else if (error.status === 503) {
      say("The model is being loaded…");
      setTimeout(start, RETRY_MS);
    } else {
      say("Error: " + error.message);
    }
  }
}

at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(at("token").value.trim());
  start();
});
start();
