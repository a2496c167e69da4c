"use strict";
// One trial is shown in all pictures and the table: while it is pointed at, or since it was chosen.
let chosen = null;

function show(number) {
  for (const part of document.querySelectorAll("[data-trial]")) {
    part.classList.toggle("on", part.dataset.trial === number);
  }
  document.body.classList.toggle("picking", number !== null);
  const told = number === null ? null : document.querySelector(`g[data-trial="${number}"] > title`);
  document.getElementById("told").textContent = told ? told.textContent : "";
}

function trialAt(event) {
  const part = event.target.closest("[data-trial]");
  return part ? part.dataset.trial : null;
}

function choose(number) {
  chosen = number === chosen ? null : number;
  show(chosen);
}

document.addEventListener("pointerover", (event) => show(trialAt(event) ?? chosen));
document.addEventListener("focusin", (event) => show(trialAt(event) ?? chosen));
document.addEventListener("click", (event) => {
  if (!event.target.closest("button")) choose(trialAt(event));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") choose(null);
  if (event.key === "Enter" && event.target.matches("tr[data-trial]")) choose(trialAt(event));
});

// Sort the table by a column: numbers as numbers, others as words, what is missing last.
function sortBy(heading) {
  const place = [...heading.parentElement.children].indexOf(heading);
  const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of heading.parentElement.children) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  const body = heading.closest("table").tBodies[0];
  const key = (row) => row.cells[place].textContent.trim();
  const rows = [...body.rows].sort((a, b) => {
    const [one, two] = [key(a), key(b)];
    const [x, y] = [parseFloat(one), parseFloat(two)];
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    return sign * (Number.isNaN(x) ? one.localeCompare(two) : x - y);
  });
  body.append(...rows);
}

for (const heading of document.querySelectorAll(".trials thead th")) {
  heading.querySelector("button").addEventListener("click", () => sortBy(heading));
}
