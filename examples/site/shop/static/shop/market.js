// Draws the prices of the last minute, and adds each one that the server sends.
const prices = JSON.parse(document.getElementById("past").textContent);
const show = (id, text) => { document.getElementById(id).textContent = text; };

function draw() {
  const low = Math.min(...prices), high = Math.max(...prices);
  // A band at the top and the bottom stays free, so that the line is never cut off.
  const y = (price) => 18 - 16 * (price - low) / (high - low || 1);
  const points = prices.map((price, x) => `${x},${y(price).toFixed(2)}`).join(" ");
  document.getElementById("line").setAttribute("points", points);
  document.getElementById("area").setAttribute("points", `0,20 ${points} ${prices.length - 1},20`);
}

const stream = new EventSource(document.getElementById("market").dataset.stream);
// EventSource reconnects by itself, for example after a restart of the server.
stream.onopen = () => show("state", "live");
stream.onerror = () => show("state", "reconnecting");
stream.onmessage = (event) => {
  const { price, watchers } = JSON.parse(event.data);
  show("price", `€ ${price.toFixed(2)}`);
  // Unchanged text is not set again: a screen reader would read it out every second.
  const count = document.getElementById("watchers");
  if (count.textContent !== String(watchers)) count.textContent = watchers;
  prices.push(price);
  while (prices.length > 61) prices.shift();
  draw();
};
draw();
