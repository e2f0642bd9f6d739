// Draws the prices of the last minute whenever the server sends them.
const market = document.getElementById("market");
listen(market.dataset.stream, ({ prices, watchers }) => {
  write(document.getElementById("price"), `€ ${prices.at(-1).toFixed(2)}`);
  write(document.getElementById("watchers"), watchers);
  draw(market, prices, Math.min(...prices), Math.max(...prices));
});
