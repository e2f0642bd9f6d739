// Sends the form with XMLHttpRequest, which tells how far it is (fetch does not).
// Without this script the form works too, with no progress to see.
const part = (id) => document.getElementById(id);

// The listener is the document's because each answer brings a new form.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.id !== "upload") return;
  event.preventDefault();

  const request = new XMLHttpRequest();
  const busy = (is) => {
    form.querySelector("button").disabled = is;
    part("cancel").hidden = part("progress").hidden = !is;
  };
  const failed = (why) => { busy(false); part("progress").hidden = false; part("sent").textContent = why; };

  request.upload.onprogress = ({ loaded, total }) => {
    part("progress").querySelector("progress").value = loaded / total;
    part("sent").textContent = loaded < total
      ? `${Math.floor(100 * loaded / total)} % of ${(total / 1e6).toFixed(1)} MB`
      : "Sent. Being hashed …";
  };
  request.onload = () => {
    const page = request.response?.querySelector("main");
    if (!page) return failed(`The server answered ${request.status}.`);
    // The view redirects to the list, and the request has followed it there.
    document.querySelector("main").replaceWith(page);
    page.focus();
  };
  request.onerror = () => failed("The connection was lost.");
  request.onabort = () => failed("Cancelled.");

  const body = new FormData(form);
  part("cancel").onclick = () => request.abort();
  busy(true);
  request.open("POST", location.href);
  request.responseType = "document";
  request.send(body);
});
