// Moves the live part of the overview; every page works without it.
"use strict";
const live = document.getElementById("live");
if (live) {
  const stream = new EventSource(live.dataset.stream);
  stream.onmessage = (event) => { live.innerHTML = JSON.parse(event.data); }; // escaped by the server
}
