// Moves the live parts of the overview; every page works without it.
"use strict";
const live = document.getElementById("live");
const shown = {};

// What somebody is filling in stays until it is sent, or left empty.
function isInUse(part) {
  return [...part.querySelectorAll("input:not([type=hidden])")].some((input) => input.value || input === document.activeElement);
}

if (live) {
  const stream = new EventSource(live.dataset.stream);
  stream.onmessage = (event) => {
    for (const [name, html] of Object.entries(JSON.parse(event.data))) {
      const part = document.getElementById(name);
      if (shown[name] === html || isInUse(part)) continue;
      shown[name] = html;
      part.innerHTML = html; // escaped by the server
    }
  };
}
