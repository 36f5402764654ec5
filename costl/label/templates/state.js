'use strict';
// What the page knows: the chosen video, its labels, and what is being done with them; helpers that every script uses.
const $ = selector => document.querySelector(selector);
const POLL_MS = 2000;
const RETRY_MS = 1500;
const PROPOSE_MS = 400;
const PICTURE_MS = 500;
const MOST_KNOWN = 8;  // sentences that are offered
const MOST_CLIPS = 60;  // that are graded at a time
const ZOOMS = [1, 2, 4, 8, 16, 32, 64];
const video = $('#video');
const sentence = $('#sentence');

const many = (count, noun) => `${count.toLocaleString('en')} ${noun}${count === 1 ? '' : 's'}`;
const pause = ms => new Promise(done => { setTimeout(done, ms); });
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  const {dataset = {}, ...rest} = attributes;
  Object.assign(element, rest);
  Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
};
const clock = (seconds, digits = 1) => {
  const ticks = Math.round(seconds * 10 ** digits);
  const whole = Math.floor(ticks / 10 ** digits);
  const rest = digits ? `.${String(ticks % 10 ** digits).padStart(digits, '0')}` : '';
  const [hours, minutes, left] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, String(whole % 60).padStart(2, '0')];
  return hours ? `${hours}:${String(minutes).padStart(2, '0')}:${left}${rest}` : `${minutes}:${left}${rest}`;
};
const span = ([start, end]) => `${clock(start)} – ${clock(end)}`;
const oneLine = text => text.trim().replace(/\s+/g, ' ');
// New elements for old ones; the focus stays on the element with the same data-focus.
const redraw = (container, ...elements) => {
  const focused = container.contains(document.activeElement) && document.activeElement.dataset.focus;
  container.replaceChildren(...elements);
  const again = focused && container.querySelector(`[data-focus="${CSS.escape(focused)}"]`);
  if (again) again.focus({preventScroll: true});
};
const say = (text, alarm = false) => {
  $('#message').textContent = text;
  $('#message').classList.toggle('alarm', alarm);
};

// The server. Every change is an edit of one label, and is sent after the one before.
let state = null;
let byName = new Map();  // the videos
let count = 0;  // of changes that this page knows
const ask = async path => {
  const response = await fetch(path, {cache: 'no-store'});
  if (!response.ok) throw Object.assign(new Error(response.statusText), {reply: await response.json().catch(() => ({}))});
  return response.json();
};
const order = (path, body = {}) => fetch(path, {
  method: 'POST',
  headers: {'Content-Type': 'application/json', 'X-CoSTL-Token': state.token},
  body: JSON.stringify(body),
});

// The chosen video, its labels, and what is being done with them.
let current = null;  // {name, key, file, folder, labels, problem}
let facts = null;  // {start_s, duration_s, frame_s, clips, proxy}
const labelsOf = new Map();  // by the name of a video; a label that was removed has no answer
let draft = {start: null, end: null};
let selected = null;  // {label, at}: a moment of a label, or null for a label without moments; {proposal}: a proposal
let proposals = [];
let curve = [];
const refused = new Set();
let grading = false;
let renaming = null;
let zoom = 1;
const done = [];  // for undo: {label, name, before, after}, or {refused}
const undone = [];

const labels = () => (current ? labelsOf.get(current.name) || [] : []).filter(label => label.answer);
const fresh = query => ({query, windows: [], grades: {}, absent: false});
const labelFor = text => labels().find(label => label.answer.query === text);
const take = (label, shown) => {
  const {id, version, raters, open} = shown;
  const {query, windows, grades, absent} = shown;
  Object.assign(label, {id, version, raters, open, answer: {query, windows, grades, absent}});
};
// What the server knows about a video; labels with unsaved edits stay as they are.
const absorb = (name, shown) => {
  const own = labelsOf.get(name) || [];
  for (const one of shown) {
    let label = own.find(other => other.id === one.id);
    if (!label && own.some(other => !other.id && other.pending && other.answer && other.answer.query === one.query)) continue;
    if (!label) own.push(label = {id: one.id, pending: 0});
    if (!label.pending) take(label, one);
  }
  for (const label of own) if (label.id && !label.pending && !shown.some(one => one.id === label.id)) label.answer = null;
  labelsOf.set(name, own);
  if (selected && selected.label && !(selected.label.answer && (selected.at === null || selected.label.answer.windows[selected.at]))) selected = null;
};
