// The page's door: a gateway that asks who comes in is shown a token, which it puts into a cookie that no script can
// read. From then on the browser says by itself who is there, on all transports. Then the page begins.

import { find } from "./parts.js";

const at = (path) => new URL(path, document.baseURI);

/** Tell whether the gateway knows who is there, or does not ask. */
async function known() {
  const response = await fetch(at("v1/services"), { cache: "no-store" });
  return response.status !== 401;
}

/** Hand a token in; return what is wrong with it, or nothing. */
async function enter(token) {
  const headers = { Authorization: `Bearer ${token.trim()}` };
  const response = await fetch(at("v1/session"), { method: "POST", headers, cache: "no-store" }).catch(() => null);
  if (response === null) return "The gateway cannot be reached, or no header can be made of that.";
  return response.ok ? "" : ((await response.json().catch(() => ({}))).detail ?? `The answer was ${response.status}.`);
}

/** Ask for a token until one is good. */
function ask() {
  const dialog = find("#enter");
  const { token, wrong } = find("form", dialog).elements;
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.oncancel = (event) => event.preventDefault(); // there is nothing behind it without a token
    find("form", dialog).onsubmit = async (event) => {
      event.preventDefault();
      wrong.value = await enter(token.value);
      if (wrong.value) return;
      token.value = "";
      dialog.close();
      resolve();
    };
  });
}

if (!(await known().catch(() => true))) await ask();
await import("./page.js");
