"use strict";
// An item, for example a trial, is followed in all charts and tables of the page: while the pointer
// or the keyboard is on it, or after it was chosen.
let chosen = null;

function show(key) {
  let label = "";
  for (const part of document.querySelectorAll("[data-item]")) {
    const isOn = part.dataset.item === key;
    part.classList.toggle("on", isOn);
    const title = isOn ? part.querySelector(":scope > title") : null;
    if (title) label = title.textContent;
  }
  document.body.classList.toggle("picking", key !== null);
  document.getElementById("followed").textContent = label;
}

function itemAt(event) {
  const part = event.target.closest("[data-item]");
  return part ? part.dataset.item : null;
}

function choose(key) {
  chosen = key === chosen ? null : key;
  show(chosen);
}

document.addEventListener("pointerover", (event) => show(itemAt(event) ?? chosen));
document.addEventListener("focusin", (event) => show(itemAt(event) ?? chosen));
document.addEventListener("click", (event) => {
  if (!event.target.closest("button")) choose(itemAt(event));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") choose(null);
  if (event.key === "Enter" && event.target.matches("tr[data-item]")) choose(itemAt(event));
});

// Sort the table by a column: numbers as numbers, others as text, missing values last.
function sortBy(heading) {
  const column = [...heading.parentElement.children].indexOf(heading);
  const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of heading.parentElement.children) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  const body = heading.closest("table").tBodies[0];
  const key = (row) => row.cells[column].textContent.trim();
  const rows = [...body.rows].sort((a, b) => {
    const [one, two] = [key(a), key(b)];
    const [x, y] = [parseFloat(one), parseFloat(two)];
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    return sign * (Number.isNaN(x) ? one.localeCompare(two) : x - y);
  });
  body.append(...rows);
}

for (const heading of document.querySelectorAll(".sortable thead th")) {
  heading.querySelector("button").addEventListener("click", () => sortBy(heading));
}
