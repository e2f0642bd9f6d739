// Reads the answer while it comes. Without this script, the browser shows it as a page.
const work = document.getElementById("work");
listen(work.dataset.stream, (numbers) => {
  for (const name in numbers) write(document.getElementById(name), numbers[name]);
});

const form = document.getElementById("ask");
const stop = document.getElementById("stop");
const said = document.getElementById("said");
const note = document.getElementById("note");
let leaving;  // an AbortController

stop.addEventListener("click", () => leaving.abort());
// The browser may keep a page that was left, with its request, to go back to it.
addEventListener("pagehide", () => leaving?.abort());

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  leaving = new AbortController();
  const busy = (is) => { form.querySelector("button").disabled = is; stop.hidden = !is; };
  said.hidden = false;
  said.textContent = note.textContent = "";
  busy(true);
  try {
    const query = new URLSearchParams(new FormData(form));
    const answer = await fetch(`${form.action}?${query}`, { signal: leaving.signal });
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      said.append(value);
    }
    note.textContent = "That was all.";
  } catch (error) {
    note.textContent = leaving.signal.aborted
      ? "You stopped listening. Both connections were closed, and the tea master has stopped, too."
      : `No answer: ${error.message}.`;
  }
  busy(false);
});
