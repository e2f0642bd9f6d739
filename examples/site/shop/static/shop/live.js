// Listens to a stream of events while the page can be seen. A page in the background
// lets go of its stream: over HTTP/1.1, browsers open only six connections to a site, for
// all its tabs together.
function listen(url, show) {
  let stream;
  const say = (text) => { document.getElementById("state").textContent = text; };
  const listenOrNot = () => {
    stream?.close();
    say("paused");
    if (document.hidden) return;
    say("connecting");
    stream = new EventSource(url);
    // It reconnects by itself, for example after a restart of the server.
    stream.onopen = () => say("live");
    stream.onerror = () => say("reconnecting");
    stream.onmessage = (event) => show(JSON.parse(event.data));
  };
  document.addEventListener("visibilitychange", listenOrNot);
  listenOrNot();
}

// Unchanged text is not set again: a screen reader would read it out every time.
function write(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

// Draws numbers as a line with an area below it, in a chart that is 20 high.
function draw(chart, numbers, low, high) {
  // A band at the top and the bottom stays free, so that the line is never cut off.
  const y = (number) => 18 - 16 * (number - low) / (high - low || 1);
  const points = numbers.map((number, x) => `${x},${y(number).toFixed(2)}`).join(" ");
  chart.querySelector("polyline").setAttribute("points", points);
  chart.querySelector("polygon").setAttribute("points", `0,20 ${points} ${numbers.length - 1},20`);
}
