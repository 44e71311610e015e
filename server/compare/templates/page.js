"use strict";
// What every candidate would have said at the token that is pointed at. Model output goes in as
// text content only.
const ribbons = JSON.parse(document.getElementById("ribbons").textContent);
const card = document.getElementById("card");

function cell(row, kind, text, name) {
  const made = document.createElement(kind);
  made.textContent = text;
  if (name) made.className = name;
  row.append(made);
}

function visible(text) {
  return text.replace(/\n/g, "\u23ce").replace(/\t/g, "\u21e5").replace(/ /g, "\u00b7");
}

function show(target) {
  const token = ribbons[target.dataset.ribbon][target.dataset.token];
  const table = document.createElement("table");
  const head = table.insertRow();
  for (const text of ["", "JS", "p(" + visible(token.text) + ")", "most likely"]) {
    cell(head, "th", text);
  }
  for (const voice of token.voices) {
    const row = table.insertRow();
    cell(row, "th", voice.name);
    cell(row, "td", voice.js === null ? "" : voice.js.toFixed(3));
    cell(row, "td", (100 * voice.probability).toFixed(1) + " %");
    for (const choice of voice.choices) {
      const text = visible(choice.text) + " " + (100 * choice.probability).toFixed(0) + " %";
      cell(row, "td", text, choice.text === token.text ? "taken" : "");
    }
  }
  card.replaceChildren(table);
  card.hidden = false;
  const box = target.getBoundingClientRect();
  const size = card.getBoundingClientRect();
  const below = box.bottom + 6 + size.height < window.innerHeight;
  card.style.left = Math.max(12, Math.min(box.left, window.innerWidth - size.width - 12)) + "px";
  card.style.top = Math.max(6, below ? box.bottom + 6 : box.top - size.height - 6) + "px";
}

for (const kind of ["mouseover", "focusin"]) {
  document.addEventListener(kind, (event) => {
    if (event.target.dataset && event.target.dataset.token) show(event.target);
    else card.hidden = true;
  });
}
document.addEventListener("focusout", () => { card.hidden = true; });
