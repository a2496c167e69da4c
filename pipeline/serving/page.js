// Sends a chosen, dropped or pasted image to the service and shows the answer. Every value that the
// service returns is set as text, never as HTML.
"use strict";

const byId = (id) => document.getElementById(id);
const [drop, file, status, result, preview, rows] =
  ["drop", "file", "status", "result", "preview", "rows"].map(byId);
let newest = 0; // of the sent images; an answer to an earlier one is dropped

function report(text, isBad = false) {
  status.textContent = text;
  status.classList.toggle("bad", isBad);
}

function show(image, answer) {
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(image);
  rows.replaceChildren(...answer.top.map(row));
  result.hidden = false;
  report(`${answer.top[0].class}: ${percent(answer.top[0].probability)}`);
  showModel(answer);
}

function row(best) {
  const line = document.createElement("tr");
  const name = document.createElement("th");
  name.scope = "row";
  name.textContent = best.class;
  const meter = document.createElement("meter");
  meter.value = best.probability;
  meter.setAttribute("aria-hidden", "true"); // the figure beside it says the same
  const probability = line.insertCell();
  probability.append(meter, percent(best.probability));
  line.insertCell().textContent = best.task;
  line.prepend(name);
  return line;
}

function percent(fraction) {
  return `${(100 * fraction).toFixed(1)} %`;
}

function showModel(answer) {
  byId("model").textContent = `${answer.run}, after task ${answer.stage}`;
}

async function classify(image) {
  const number = ++newest;
  report(`Classifying ${image.name || "the image"} …`);
  const form = new FormData();
  form.append("image", image);
  let answer;
  try {
    const response = await fetch("predict", { method: "POST", body: form });
    answer = await response.json();
  } catch {
    answer = { error: "The service did not answer. It may have ended, or the file is too large." };
  }
  if (number !== newest) return;
  if (answer.error) {
    result.hidden = true;
    report(answer.error, true);
  } else {
    show(image, answer);
  }
}

file.addEventListener("click", () => (file.value = "")); // the same file may be chosen again
file.addEventListener("change", () => file.files.length && classify(file.files[0]));
byId("form").addEventListener("submit", (event) => event.preventDefault());
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault(); // else the browser leaves the page and opens the file
    drop.classList.toggle("over", name === "dragover");
  });
}
document.addEventListener("drop", (event) => {
  const [image] = event.dataTransfer.files;
  if (image) classify(image);
  else report("This is no file; drop an image file.", true);
});
document.addEventListener("paste", (event) => {
  const [image] = event.clipboardData.files;
  if (image) classify(image);
});
fetch("readyz")
  .then((response) => response.json())
  .then((ready) => ready.run && showModel(ready))
  .catch(() => {}); // a service that has ended answers to no image either
