// Moves the live parts of a page; every page works without it.
"use strict";
const MOST_EVENTS = 1000;
const source = document.querySelector("[data-stream]");
const wanted = {};
const shown = {};

// What somebody is filling in stays until it is sent, or left empty; what is being pressed, until it was.
function isInUse(part) {
  const inputs = [...part.querySelectorAll("input:not([type=hidden])")];
  return part.matches(":active") || inputs.some((input) => input.value || input === document.activeElement);
}

function show(name, html) {
  const part = document.getElementById(name);
  if (shown[name] === html || isInUse(part)) return;
  const link = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  shown[name] = html;
  part.innerHTML = html; // escaped by the server
  if (link) part.querySelector(`[href="${CSS.escape(link)}"]`)?.focus({ preventScroll: true });
}

function showAll() {
  Object.entries(wanted).forEach(([name, html]) => show(name, html));
}

if (source) {
  const stream = new EventSource(source.dataset.stream);
  stream.onmessage = (event) => {
    Object.assign(wanted, JSON.parse(event.data));
    showAll();
  };
  ["pointerup", "focusout"].forEach((end) => document.addEventListener(end, () => setTimeout(showAll)));
  // A stream that broke goes on after the last event that came, by its id.
  stream.addEventListener("step", (event) => {
    source.insertAdjacentHTML("beforeend", JSON.parse(event.data)); // escaped by the server
    while (source.children.length > MOST_EVENTS) source.firstElementChild.remove();
  });
}
