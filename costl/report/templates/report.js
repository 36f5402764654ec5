"use strict";
// Sorts and filters the list, opens the detail view of a query, and draws its attention maps. Without this script, the
// page shows all detail views one after the other.
document.documentElement.classList.add("scripted");
const list = document.querySelector("table.list");
const rows = [...list.tBodies[0].rows];
const form = document.querySelector(".filters");
const dialog = document.getElementById("detail");
const body = dialog.querySelector(".body");
const details = document.querySelector(".details");
const maps = JSON.parse(document.getElementById("maps").textContent);

// --- the list

const sortKeys = {
  query: (row) => row.querySelector("a").textContent.toLowerCase(),
  kind: (row) => row.dataset.kind.toLowerCase(),
  video: (row) => row.dataset.video.toLowerCase(),
  length: (row) => Number(row.dataset.length),
  iou: (row) => Number(row.dataset.iou) + 10 * ["unlabelled", "unanswered"].includes(row.dataset.outcome),
  score: (row) => Number(row.dataset.score),
  precision: (row) => Number(row.dataset.precision),
  outcome: (row) => ["miss", "near", "hit", "unlabelled", "unanswered"].indexOf(row.dataset.outcome),
};

function sortBy(head) {
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const key = sortKeys[head.dataset.key];
  const keyed = rows.map((row, index) => [key(row), index, row]);
  keyed.sort(([a, i], [b, j]) => (a < b ? -1 : a > b ? 1 : 0) * (descending ? -1 : 1) || i - j);
  list.tBodies[0].append(...keyed.map(([, , row]) => row));
}

function filter() {
  const text = form.elements.text.value.trim().toLowerCase();
  const length = form.elements.moment.value;
  const outcome = form.elements.outcome.value;
  const kind = form.elements.kind?.value;
  const pictured = form.elements.pictured?.checked;
  let shown = 0;
  for (const row of rows) {
    const searched = `${sortKeys.query(row)} ${sortKeys.kind(row)} ${sortKeys.video(row)} ${row.dataset.qid.toLowerCase()}`;
    row.hidden = !(
      searched.includes(text) &&
      (!length || row.dataset.bin === length) &&
      (!outcome || row.dataset.outcome === outcome) &&
      (!kind || row.dataset.kind === kind) &&
      (!pictured || "pictured" in row.dataset)
    );
    shown += !row.hidden;
  }
  form.elements.count.value = `${shown} of ${rows.length} shown`;
  document.getElementById("none").hidden = shown > 0;
}

for (const head of list.tHead.rows[0].cells) head.firstChild.addEventListener("click", () => sortBy(head));
for (const change of ["input", "change"]) form.addEventListener(change, filter);
form.addEventListener("submit", (event) => event.preventDefault());
filter();

// --- one query

let openedFrom = null;

function showInDialog(article) {
  for (const previous of [...body.children]) details.append(previous);
  if (!article) return;
  body.append(article);
  dialog.setAttribute("aria-labelledby", `h${article.id.slice(1)}`);
  dialog.scrollTop = 0;
  choose(article, -1);
}

function open(id) {
  const article = document.getElementById(id);
  if (!article || article.localName !== "article") return;
  showInDialog(article);
  if (!dialog.open) dialog.showModal();
  article.querySelector("h3").focus();
  openedFrom = list.querySelector(`tr[data-id="${id}"] a`);
  history.replaceState(null, "", `#${id}`);
}

function step(by) {
  const ids = [...list.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.dataset.id);
  const index = ids.indexOf(body.firstElementChild.id);
  if (ids.length) open(ids[(Math.max(index, by > 0 ? -1 : 0) + by + ids.length) % ids.length]);
}

list.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link) return;
  event.preventDefault();
  open(link.hash.slice(1));
});
dialog.querySelector("[name=before]").addEventListener("click", () => step(-1));
dialog.querySelector("[name=after]").addEventListener("click", () => step(1));
dialog.querySelector("[name=close]").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("close", () => {
  showInDialog(null);
  history.replaceState(null, "", location.pathname + location.search);
  if (openedFrom) openedFrom.focus();
});
addEventListener("hashchange", () => open(location.hash.slice(1)));
if (location.hash) open(location.hash.slice(1));

// --- the maps

// `word` is the index of a word, -1 for the whole sentence, -2 for no map.

function choose(article, word) {
  for (const button of article.querySelectorAll(".words button"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.word) === word));
  paint(article, word);
}

function paint(article, word) {
  for (const map of article.querySelectorAll(".map")) {
    const weights = maps.shots[map.dataset.map];
    if (!weights) continue;
    const ofSentence = () => weights.share.map((weight, patch) => [patch, weight]);
    const ofWord = () => weights.chosen.map((patch, i) => [patch, weights.words[word][i]]);
    const patches = word < 0 ? ofSentence() : ofWord();
    const largest = Math.max(1, ...patches.map(([, weight]) => weight));
    const visible = word === -2 ? [] : patches.filter(([, weight]) => weight * 50 > largest);
    map.querySelector(".heat").replaceChildren(...visible.map(([patch, weight]) => square(patch, weight / largest)));
    map.classList.toggle("off", word === -2);
    article.querySelector(`[data-peak="${map.dataset.map}"]`).textContent = peakText(weights, word, largest);
  }
}

function peakText(weights, word, largest) {
  if (word === -2) return "";
  const peak = `brightest patch ${Math.round(largest / 10)} %`;
  return word === -1 ? peak : `${peak}, no patch ${Math.round(weights.nothing[word] / 10)} %`;
}

function square(patch, strength) {
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const attributes = {
    x: patch % maps.columns, y: Math.floor(patch / maps.columns), width: 1, height: 1,
    "fill-opacity": (0.08 + 0.54 * strength).toFixed(3),
  };
  for (const [name, content] of Object.entries(attributes)) rect.setAttribute(name, content);
  return rect;
}

for (const group of document.querySelectorAll(".words")) {
  const article = group.closest("article");
  const pressed = () => Number(group.querySelector("[aria-pressed=true]").dataset.word);
  for (const button of group.querySelectorAll("button")) {
    const word = Number(button.dataset.word);
    button.addEventListener("click", () => choose(article, word));
    for (const enter of ["pointerenter", "focus"]) button.addEventListener(enter, () => paint(article, word));
    for (const leave of ["pointerleave", "blur"]) button.addEventListener(leave, () => paint(article, pressed()));
  }
}
