// Moves the live parts of a page; every page works without it.
"use strict";
const MOST_EVENTS = 1000;
const source = document.querySelector("[data-stream]");
const shown = {};

// What somebody is filling in stays until it is sent, or left empty.
function isInUse(part) {
  return [...part.querySelectorAll("input:not([type=hidden])")].some((input) => input.value || input === document.activeElement);
}

function show(name, html) {
  const part = document.getElementById(name);
  if (shown[name] === html || isInUse(part)) return;
  shown[name] = html;
  part.innerHTML = html; // escaped by the server
}

if (source) {
  const stream = new EventSource(source.dataset.stream);
  stream.onmessage = (event) => Object.entries(JSON.parse(event.data)).forEach(([name, html]) => show(name, html));
  // A stream that broke goes on after the last event that came, by its id.
  stream.addEventListener("step", (event) => {
    source.insertAdjacentHTML("beforeend", JSON.parse(event.data)); // escaped by the server
    while (source.children.length > MOST_EVENTS) source.firstElementChild.remove();
  });
}
