// Shows what both servers do, and sends visitors to them.
const SAMPLES = 150;  // half a minute
const form = document.getElementById("load");
const [sendButton, dropButton] = form.querySelectorAll("button");
const past = {};  // the reports that were being made, for each server
let visitors;  // an AbortController while they are there

listen(form.dataset.stream, (servers) => {
  for (const [server, figures] of Object.entries(servers)) {
    const panel = document.getElementById(server);
    panel.classList.toggle("off", !figures);
    panel.querySelectorAll("[data-figure]").forEach((element) => {
      write(element, figures ? figures[element.dataset.figure] : "–");
    });
    const line = past[server] ??= Array(SAMPLES).fill(0);
    line.push(figures?.reports ?? 0);
    line.shift();
    draw(panel.querySelector("svg"), line, 0, 200);
  }
});

// Each request to /load/visitors/ is two hundred visitors, until it is aborted.
form.addEventListener("submit", (event) => {
  event.preventDefault();
  visitors = new AbortController();
  const busy = (is) => { sendButton.disabled = is; dropButton.disabled = !is; };
  busy(true);
  const headers = { "X-CSRFToken": form.elements.csrfmiddlewaretoken.value };
  const options = { method: "POST", headers, signal: visitors.signal };
  const running = [...document.querySelectorAll(".server:not(.off)")].map(
    (panel) => fetch(panel.dataset.visitors, options)
  );
  Promise.allSettled(running).then(() => busy(false));
});
dropButton.addEventListener("click", () => visitors.abort());
// The browser may keep a page that was left, with its requests, to go back to it.
addEventListener("pagehide", () => visitors?.abort());
