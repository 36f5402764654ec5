"use strict";
// Sorting, filtering, the view of one query and its maps. Without this script all of it is still on the page, in a row.
document.documentElement.classList.add("scripted");
const list = document.querySelector("table.list");
const rows = [...list.tBodies[0].rows];
const form = document.querySelector(".filters");
const dialog = document.getElementById("look");
const body = dialog.querySelector(".body");
const stories = document.querySelector(".stories");
const maps = JSON.parse(document.getElementById("maps").textContent);

// --- the list

const value = {
  query: (row) => row.cells[0].textContent.toLowerCase(),
  video: (row) => row.cells[1].textContent.toLowerCase(),
  length: (row) => Number(row.dataset.length),
  iou: (row) => Number(row.dataset.iou) + 10 * ["unlabelled", "unanswered"].includes(row.dataset.outcome),
  outcome: (row) => ["miss", "near", "hit", "unlabelled", "unanswered"].indexOf(row.dataset.outcome),
};

function sortBy(head) {
  const falling = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const of = value[head.dataset.key];
  const keyed = rows.map((row, place) => [of(row), place, row]);
  keyed.sort(([a, i], [b, j]) => (a < b ? -1 : a > b ? 1 : 0) * (falling ? -1 : 1) || i - j);
  list.tBodies[0].append(...keyed.map(([, , row]) => row));
}

function filter() {
  const text = form.elements.text.value.trim().toLowerCase();
  const length = form.elements.moment.value;
  const outcome = form.elements.outcome.value;
  const detailed = form.elements.detailed.checked;
  let shown = 0;
  for (const row of rows) {
    const words = `${value.query(row)} ${value.video(row)} ${row.dataset.qid.toLowerCase()}`;
    row.hidden = !(
      words.includes(text) &&
      (!length || row.dataset.bin === length) &&
      (!outcome || row.dataset.outcome === outcome) &&
      (!detailed || "detailed" in row.dataset)
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

let from = null;

function put(story) {
  for (const shown of [...body.children]) stories.append(shown);
  if (!story) return;
  body.append(story);
  dialog.setAttribute("aria-labelledby", `h${story.id.slice(1)}`);
  dialog.scrollTop = 0;
  choose(story, -1);
}

function open(id) {
  const story = document.getElementById(id);
  if (!story || story.localName !== "article") return;
  put(story);
  if (!dialog.open) dialog.showModal();
  story.querySelector("h3").focus();
  from = list.querySelector(`tr[data-id="${id}"] a`);
  history.replaceState(null, "", `#${id}`);
}

function step(by) {
  const ids = [...list.tBodies[0].rows].filter((row) => !row.hidden && "detailed" in row.dataset).map((row) => row.dataset.id);
  const place = ids.indexOf(body.firstElementChild.id);
  if (ids.length) open(ids[(Math.max(place, by > 0 ? -1 : 0) + by + ids.length) % ids.length]);
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
  put(null);
  history.replaceState(null, "", location.pathname + location.search);
  if (from) from.focus();
});
addEventListener("hashchange", () => open(location.hash.slice(1)));
if (location.hash) open(location.hash.slice(1));

// --- the maps

function choose(story, word) {
  for (const button of story.querySelectorAll(".words button"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.word) === word));
  paint(story, word);
}

function paint(story, word) {
  for (const map of story.querySelectorAll(".map")) {
    const shot = maps.shots[map.dataset.map];
    if (!shot) continue;
    const patches = word < 0 ? shot.share.map((share, patch) => [patch, share]) : shot.chosen.map((patch, i) => [patch, shot.words[word][i]]);
    const most = Math.max(1, ...patches.map(([, share]) => share));
    const squares = word === -2 ? [] : patches.filter(([, share]) => share * 50 > most).map(([patch, share]) => square(patch, share / most));
    map.querySelector(".heat").replaceChildren(...squares);
    map.classList.toggle("off", word === -2);
    const found = Math.round(most / 10), none = word < 0 ? 0 : Math.round(shot.nothing[word] / 10);
    story.querySelector(`[data-said="${map.dataset.map}"]`).textContent =
      word === -2 ? "" : word < 0 ? `brightest patch ${found} %` : `brightest patch ${found} %, found nothing ${none} %`;
  }
}

function square(patch, strength) {
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const given = {
    x: (patch % maps.columns) / maps.columns, y: Math.floor(patch / maps.columns) / maps.rows,
    width: 1 / maps.columns, height: 1 / maps.rows, "fill-opacity": (0.08 + 0.54 * strength).toFixed(3),
  };
  for (const [name, content] of Object.entries(given)) rect.setAttribute(name, content);
  return rect;
}

for (const group of document.querySelectorAll(".words")) {
  const story = group.closest("article");
  const pressed = () => Number(group.querySelector("[aria-pressed=true]").dataset.word);
  for (const button of group.querySelectorAll("button")) {
    const word = Number(button.dataset.word);
    button.addEventListener("click", () => choose(story, word));
    for (const look of ["pointerenter", "focus"]) button.addEventListener(look, () => paint(story, word));
    for (const leave of ["pointerleave", "blur"]) button.addEventListener(leave, () => paint(story, pressed()));
  }
}
