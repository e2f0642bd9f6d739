// Sends the form, and meanwhile asks the server how much of the file has arrived.
// Without this script the form works too, but shows no progress.
const part = (id) => document.getElementById(id);
const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

// Asks again and again; returns a function that stops it.
function watch(url, show) {
  const stop = new AbortController();
  (async () => {
    while (!stop.signal.aborted) {
      try {
        const answer = await fetch(url, { signal: stop.signal, cache: "no-store" });
        const progress = answer.ok ? await answer.json() : {};
        if (!stop.signal.aborted) show(progress);
      } catch { /* The next answer may be better. */ }
      await new Promise((resume) => setTimeout(resume, 250));
    }
  })();
  return () => stop.abort();
}

// The document has the listener, because each answer brings a new form.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.id !== "upload") return;
  event.preventDefault();

  const request = new XMLHttpRequest();
  const bar = part("progress").querySelector("progress");
  const say = (text) => { part("sent").textContent = text; };
  const show = ({ received, total }) => {
    if (!received) return;
    bar.value = received / total;
    say(`${Math.floor(100 * received / total)}% of ${megabytes(total)} MB received`);
  };
  const busy = (is) => {
    form.querySelector("button").disabled = is;
    part("cancel").hidden = part("progress").hidden = !is;
  };
  const failed = (why) => { busy(false); part("failed").textContent = why; };

  request.onload = () => {
    const page = request.response?.querySelector("main");
    if (!page) return failed(`The server answered ${request.status}.`);
    // The view redirected to the list, and the request followed.
    document.querySelector("main").replaceWith(page);
    page.focus();
  };
  request.onerror = () => failed("The connection was lost.");
  request.onabort = () => failed("Cancelled.");

  const body = new FormData(form);
  part("cancel").onclick = () => request.abort();
  bar.value = 0;
  say("");
  part("failed").textContent = "";
  // What the last upload has left
  document.querySelectorAll(".message").forEach((message) => message.remove());
  busy(true);
  const stop = watch(form.dataset.progress, show);
  request.upload.onload = () => { stop(); bar.value = 1; say("Sent. Being hashed …"); };
  request.onloadend = stop;
  request.open("POST", form.action);
  request.responseType = "document";
  request.send(body);
});
