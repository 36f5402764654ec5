'use strict';
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

const queue = [];
let sending = false;
let answers = true;  // whether the server does
const commit = (label, after, {remember = true} = {}) => {
  const name = current.name;
  const before = label.answer;
  if (JSON.stringify(before) === JSON.stringify(after)) return;
  const own = labelsOf.get(name);
  if (!own.includes(label)) own.push(label);
  label.answer = after;
  label.open = false;
  label.pending = (label.pending || 0) + 1;
  if (remember) {
    done.push({label, name, before, after});
    undone.length = 0;
  }
  queue.push({label, name, before, after});
  if (after) learn(after.query);
  draw();
  send();
};
const send = async () => {
  if (sending) return;
  sending = true;
  while (queue.length) {
    showSaved();
    const edit = queue[0];
    const {label, name, after} = edit;
    const grades = label.raters > 1 || label.raters < 0 ? null : after && after.grades;
    const body = {video: name, id: label.id || '', version: label.version || '', answer: after && {...after, grades}};
    let response;
    let reply;
    try {
      response = await order('/label/edits', body);
      reply = response.status === 403 ? null : await response.json();
      answers = true;
    } catch {
      answers = false;
      draw();
      await pause(RETRY_MS);
      continue;
    }
    if (!reply) {
      await load();  // the server was started again
      continue;
    }
    if (response.status === 507) {
      problem('disk', reply.problem);
      await pause(RETRY_MS);
      continue;
    }
    problem('disk', '');
    queue.shift();
    label.pending -= 1;
    if (response.ok) settle(label, name, reply.label);
    else if (response.status === 409) clash(edit, reply.current);
    else refuse(edit, reply.problem || 'The change was refused.');
    draw();
  }
  sending = false;
  showSaved();
};
const settle = (label, name, shown) => {
  if (!shown) {
    label.version = '';
    return;
  }
  if (label.pending) Object.assign(label, {id: shown.id, version: shown.version, raters: shown.raters}); else take(label, shown);
  const own = labelsOf.get(name);
  labelsOf.set(name, own.filter(other => other === label || other.id !== label.id));
};
// Drops the later edits of a label, and its undo.
const forget = label => {
  for (const list of [queue, done, undone]) {
    for (let i = list.length - 1; i >= 0; i -= 1) if (list[i].label === label) list.splice(i, 1);
  }
  label.pending = 0;
};
const refuse = ({label, before}, text) => {
  forget(label);
  label.answer = before;
  say(text, true);
};
const clash = ({label, name, after}, shown) => {
  forget(label);
  const own = labelsOf.get(name);
  let theirs = shown && own.find(other => other.id === shown.id);
  if (!label.id) labelsOf.set(name, own.filter(other => other !== label));
  else if (!shown) Object.assign(label, {answer: null, version: ''});
  if (shown && !theirs) labelsOf.get(name).push(theirs = {id: shown.id, pending: 0});
  if (shown) take(theirs, shown);
  selected = null;
  const target = theirs || label;
  const isNew = !label.id && theirs;
  const mine = isNew ? {...after, windows: [...theirs.answer.windows, ...after.windows], absent: after.absent && !theirs.answer.windows.length} : after;
  const text = `Another window has ${shown ? (isNew ? 'labelled' : 'changed') : 'removed'} “${(shown || after).query}”${shown ? `: ${inWords(theirs.answer)}` : ''}. Yours: ${after ? inWords(after) : 'removed'}.`;
  alertWith(text, [
    [shown ? 'Keep theirs' : 'Leave it removed', () => {}],
    [isNew ? 'Add mine' : 'Use mine', async () => { await open(name); commit(target, mine); }],
  ]);
};
const inWords = answer => answer.absent ? 'not in this video' : answer.windows.map(span).join(', ') || many(Object.keys(answer.grades).length, 'grade');

const showSaved = () => {
  const note = $('#saved');
  note.textContent = !answers ? `Not saved: ${many(queue.length, 'change')}. costl label does not answer; start it again.` : queue.length ? 'Saving…' : 'Saved';
  note.classList.toggle('busy', answers && queue.length > 0);
  note.classList.toggle('alarm', !answers);
};
const alertWith = (text, buttons, name = '') => {
  const box = make('div', {className: 'alert', dataset: {name}}, make('p', {textContent: text}));
  box.setAttribute('role', 'alert');
  for (const [label, act] of buttons) {
    box.append(make('button', {type: 'button', textContent: label, onclick: () => { box.remove(); act(); }}));
  }
  $('#alerts').append(box);
};
const problem = (name, text) => {
  const old = $(`.alert[data-name="${name}"]`);
  if (old && old.firstChild.textContent === text) return;
  if (old) old.remove();
  if (text) alertWith(text, [], name);
};
let noticed = 0;
const showSigns = reply => {
  problem('file', reply.problem);
  reply.notices.slice(noticed).forEach(text => alertWith(text, [['Close', () => {}]]));
  noticed = reply.notices.length;
  showIndex(reply.index);
};

const load = async () => {
  try {
    const reply = await ask('/label/state');
    const restarted = state && state.session !== reply.session;
    if (restarted) noticed = 0;
    state = reply;
    byName = new Map(reply.videos.map(one => [one.name, one]));
    count = reply.count;
    $('#export').download = reply.file;
    showSigns(reply);
    listVideos();
    const chosen = current ? current.name : new URLSearchParams(location.search).get('video');
    const same = byName.get(chosen) || state.videos[0];
    const fits = current && same.name === current.name && facts;
    current = fits ? same : null;
    if (fits) absorb(same.name, (await ask(`/label/labels/${same.key}`)).labels); else await open(same.name);
    if (fits && restarted) {
      player.show(player.now);
      propose();
    }
    answers = true;
    draw();
  } catch {
    answers = false;
    await pause(RETRY_MS);
    await load();
  }
  showSaved();
};
const poll = async () => {
  for (;;) {
    await pause(POLL_MS);
    if (!state || !current) continue;
    try {
      const reply = await ask(`/label/changes?count=${count}&video=${encodeURIComponent(current.name)}`);
      answers = true;
      if (reply.session !== state.session) { await load(); continue; }
      count = reply.count;
      showSigns(reply);
      if (reply.counts) Object.entries(reply.counts).forEach(([name, number]) => { byName.get(name).labels = number; });
      if (reply.sentences) state.sentences = [...new Set([...reply.sentences, ...state.sentences])];
      if (reply.labels) absorb(current.name, reply.labels);
      if (reply.proxy && facts) showProxy(reply.proxy);
      if (reply.counts) { listVideos(); draw(); }
    } catch {
      answers = false;
    }
    showSaved();
  }
};

// The list of videos.
const listVideos = () => {
  const words = $('#filter').value.toLowerCase().split(/\s+/).filter(Boolean);
  let videos = state.videos.filter(one => words.every(word => one.name.toLowerCase().includes(word)));
  if ($('#order').value === 'name') videos = [...videos].sort((a, b) => a.name.localeCompare(b.name, 'en', {numeric: true}));
  redraw($('#videos'), ...videos.map(one => {
    const button = make('button', {type: 'button', className: 'video', title: one.name, dataset: {name: one.name, focus: one.name}},
      make('span', {className: 'name', textContent: one.file}),
      make('span', {className: `count${one.labels ? '' : ' none'}`, textContent: one.labels || '–', title: many(one.labels, 'label')}));
    if (one.folder) button.append(make('span', {className: 'in', textContent: one.folder}));
    if (current && current.name === one.name) button.setAttribute('aria-current', 'true');
    return make('li', {}, button);
  }));
  showCoverage();
};
const showCoverage = () => {
  const labelled = state.videos.filter(one => one.labels).length;
  const total = state.videos.reduce((sum, one) => sum + one.labels, 0);
  const elsewhere = state.elsewhere ? `, ${state.elsewhere.toLocaleString('en')} of videos that are not here` : '';
  $('#coverage').textContent = `${labelled.toLocaleString('en')} of ${many(state.videos.length, 'video')} labelled: ${many(total, 'label')}${elsewhere}`;
};
const markVideo = () => {
  if (!current) return;
  if (labelsOf.has(current.name)) current.labels = labels().length;
  const before = $('.video[aria-current]');
  const button = $(`.video[data-name="${CSS.escape(current.name)}"]`);
  if (before && before !== button) before.removeAttribute('aria-current');
  if (button) {
    const number = button.querySelector('.count');
    number.textContent = current.labels || '–';
    number.classList.toggle('none', !current.labels);
    button.setAttribute('aria-current', 'true');
  }
  showCoverage();
};
const step = by => {
  const buttons = [...document.querySelectorAll('.video')];
  const at = buttons.findIndex(button => button.dataset.name === current.name);
  const next = buttons[Math.min(Math.max(at + by, 0), buttons.length - 1)];
  if (next && next.dataset.name !== current.name) {
    open(next.dataset.name);
  }
};
const open = async name => {
  if (current && current.name === name && facts) return;
  const own = current = byName.get(name);
  facts = null;
  selected = null;
  renaming = null;
  draft = {start: null, end: null};
  proposals = [];
  curve = [];
  zoom = 1;
  player.leave();
  history.replaceState(null, '', `?video=${encodeURIComponent(name)}`);
  document.title = `${own.file} – Label – CoSTL`;
  $('#title').textContent = own.file;
  $('#folder').textContent = own.folder;
  $('#wait').textContent = own.problem ? '' : 'Reading the video';
  say('');
  draw();
  const listed = $('.video[aria-current]');
  if (listed) $('#videos').scrollTop = Math.max(0, listed.offsetTop - $('#videos').clientHeight / 2);
  try {
    const [known, playback] = await Promise.all([ask(`/label/labels/${own.key}`), own.problem ? null : ask(`/label/playback/${own.key}`)]);
    if (current !== own) return;
    absorb(name, known.labels);
    if (!playback) throw Object.assign(new Error(own.problem), {reply: {problem: own.problem}});
    facts = playback;
    $('#wait').textContent = '';
    player.enter();
  } catch (error) {
    if (current !== own) return;
    if (!error.reply) throw error;
    $('#wait').textContent = error.reply.problem || 'The file is gone, or cannot be read.';
  }
  draw();
  propose();
};

// Playing: the video, its proxy, or single pictures where the browser can play neither.
const player = {
  pictures: false,
  proxy: false,
  zero: 0,  // the `currentTime` at time 0 of the video
  second: 0,  // of the picture
  back: 0,  // how fast it plays backwards
  until: Infinity,  // where it stops
  timer: 0,
  followed: false,  // by the playhead
  enter() {
    this.proxy = false;
    this.show(0);
  },
  show(second) {
    this.pictures = false;
    this.zero = this.proxy ? 0 : facts.start_s;  // a proxy has the times of the video
    this.second = second;
    video.hidden = false;
    $('#picture').hidden = $('#proxy').hidden = true;
    video.src = `/label/${this.proxy ? 'proxies' : 'videos'}/${current.key}`;
  },
  leave() {
    this.stop();
    video.removeAttribute('src');
    video.load();
    video.hidden = false;
    $('#picture').hidden = true;
    $('#proxy').hidden = true;
    this.second = 0;
    this.pictures = false;
  },
  get now() {
    if (!facts) return 0;
    const second = this.pictures || !video.readyState ? this.second : video.currentTime - this.zero;
    return Math.min(Math.max(second, 0), facts.duration_s);
  },
  get playing() {
    return Boolean(this.back || (this.pictures ? this.timer : !video.paused));
  },
  seek(second) {
    if (!facts) return;
    this.second = Math.min(Math.max(second, 0), facts.duration_s);
    if (this.pictures) this.picture(); else if (video.readyState) video.currentTime = this.zero + this.second;
    drawHead();
  },
  stop() {
    clearInterval(this.timer);
    this.timer = 0;
    this.back = 0;
    this.until = Infinity;
    if (!video.paused) video.pause();
    this.shown();
  },
  forward() {
    const rate = this.playing && !this.back ? Math.min(video.playbackRate * 2, 4) : 1;
    this.stop();
    video.playbackRate = rate;
    if (this.pictures) this.timer = setInterval(() => this.tick(rate), PICTURE_MS); else video.play().catch(() => {});
    this.shown();
  },
  backward() {
    const rate = this.back ? Math.min(this.back * 2, 4) : 1;
    this.stop();
    this.back = rate;
    this.timer = setInterval(() => this.tick(-rate), this.pictures ? PICTURE_MS : PICTURE_MS / 5);
    this.shown();
  },
  tick(rate) {
    if (!this.pictures && video.seeking) return;  // a slow seek plays more slowly
    if (this.pictures && !$('#picture').complete) return;
    const next = this.now + rate * (this.pictures ? PICTURE_MS : PICTURE_MS / 5) / 1000;
    this.seek(next);
    if (next <= 0 || next >= facts.duration_s) this.stop();
  },
  toggle() {
    if (this.playing) { this.stop(); return; }
    const [start, end] = selectedSpan();
    this.forward();
    if (start <= this.now && this.now < end) this.until = end;
  },
  shown() {
    const rate = this.back ? -this.back : video.playbackRate;
    $('#play .sign').textContent = this.playing ? '❚❚' : '▶';
    $('#play .unseen').textContent = this.playing ? 'Stop' : 'Play';
    $('#play').setAttribute('aria-pressed', String(this.playing));
    $('#speed').textContent = this.playing && rate !== 1 ? `${rate}×` : '';
    if (!this.followed) follow();
  },
  picture() {
    $('#picture').src = `/label/pictures/${current.key}?at=${this.second.toFixed(3)}`;
  },
  cannotPlay() {
    if (!facts || this.pictures) return;
    if (!this.proxy && facts.proxy.state === 'ready') { this.useProxy(); return; }
    this.stop();
    this.pictures = true;
    video.hidden = true;
    $('#picture').hidden = false;
    this.seek(this.second);
    showProxy(facts.proxy);
  },
  useProxy() {
    this.proxy = true;
    this.show(this.second);
  },
};
video.addEventListener('error', async () => {
  const own = current;
  if (!facts || !video.getAttribute('src')) return;
  player.second = player.now;
  const there = await ask(`/label/playback/${own.key}`).catch(() => null);  // or has the server ended?
  if (there && current === own && facts) player.cannotPlay();
});
video.addEventListener('loadedmetadata', () => {
  if (!video.videoWidth) { player.cannotPlay(); return; }  // only its sound can be played
  video.currentTime = player.zero + player.second;
});
for (const name of ['play', 'pause', 'ended', 'ratechange']) video.addEventListener(name, () => player.shown());
for (const name of ['seeked', 'timeupdate']) video.addEventListener(name, () => drawHead());
const follow = () => {
  if (player.now >= player.until) {
    const end = player.until;
    player.stop();
    player.seek(end);
  }
  drawHead();
  player.followed = player.playing;
  if (player.followed) requestAnimationFrame(follow);
};
const showProxy = ({state: now, done: frames = 0, total = 0, error = ''}) => {
  facts.proxy = {state: now, done: frames, total, error};
  if (!player.pictures) return;
  if (now === 'ready') { player.useProxy(); return; }
  const working = now === 'waiting' || now === 'running';
  $('#proxy').hidden = false;
  $('#make-proxy').hidden = working;
  $('#proxy-bar').hidden = !working;
  $('#proxy-bar').max = total || 1;
  if (total) $('#proxy-bar').value = frames; else $('#proxy-bar').removeAttribute('value');
  $('#proxy-text').textContent = error || (working ? 'Making a copy that plays. You can label meanwhile.' : 'This browser cannot play the file, so these are single pictures.');
};
$('#make-proxy').addEventListener('click', async () => {
  const own = current;
  const reply = await order(`/label/proxies/${own.key}`).then(response => response.json()).catch(() => null);
  if (reply && current === own) showProxy(reply);
});

// Moments.
const round = second => Math.round(second * 1000) / 1000;
const setEnd = which => {
  if (!facts) return;
  const now = round(player.now);
  if (selected && selected.label && selected.at === null) selected = null;
  if (selected && selected.label) {
    const {label, at} = selected;
    const [start, end] = label.answer.windows[at];
    const window = which === 'start' ? [now, end] : [start, now];
    if (!(window[0] < window[1])) { say('The end must come after the start.', true); return; }
    const windows = label.answer.windows.map((one, i) => i === at ? window : one).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    say('');
    selected.at = windows.findIndex(one => one[0] === window[0] && one[1] === window[1]);
    commit(label, {...label.answer, windows});
    return;
  }
  const target = selected ? selected.proposal : draft;
  if (selected) {
    const moved = {...target, [which]: now};
    if (!(moved.start < moved.end)) { say('The end must come after the start.', true); return; }
    Object.assign(target, moved);
  } else {
    draft = {...draft, [which]: now};
    if (draft.start !== null && draft.end !== null && !(draft.start < draft.end)) draft[which === 'start' ? 'end' : 'start'] = null;
  }
  say('');
  draw();
};
const addWindow = (text, window) => {
  const label = labelFor(text) || {id: '', version: '', pending: 0, raters: 0, answer: null};
  const before = label.answer || fresh(text);
  if (before.windows.some(one => one[0] === window[0] && one[1] === window[1])) { say('This moment is there already.', true); return false; }
  const windows = [...before.windows, window].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  commit(label, {...before, windows, absent: false});
  return true;
};
const writeSentence = text => {
  sentence.value = text;
  hideKnown();
  propose();
};
const add = () => {
  const text = oneLine(sentence.value);
  if (!facts) return;
  if (!text) { sentence.focus(); say('Say what happens here.', true); return; }
  if (renaming) { rename(text); return; }
  if (draft.start === null || draft.end === null) {
    say(`Set the ${draft.start === null ? (draft.end === null ? 'start with I and the end with O' : 'start with I') : 'end with O'} first.`, true);
    blurSentence();
    return;
  }
  if (addWindow(text, [draft.start, draft.end])) {
    say(`“${text}”, ${span([draft.start, draft.end])}`);
    draft = {start: null, end: null};
  }
  writeSentence(text);
  blurSentence();
  draw();
};
const addAbsent = () => {
  const text = oneLine(sentence.value);
  if (!facts) return;
  if (!text) { sentence.focus(); say('Say what is not in this video.', true); return; }
  const label = labelFor(text) || {id: '', version: '', pending: 0, raters: 0, answer: null};
  if (label.answer && (label.answer.windows.length || Object.keys(label.answer.grades).length)) { say('It has moments or grades here. Remove them first.', true); return; }
  commit(label, {...fresh(text), absent: true});
  say(`“${text}” is not in this video.`);
  draft = {start: null, end: null};
  blurSentence();
  draw();
};
const rename = text => {
  const label = renaming;
  if (labels().some(other => other !== label && other.answer.query === text)) { say('This video has a label with that sentence.', true); return; }
  renaming = null;
  commit(label, {...label.answer, query: text});
  blurSentence();
  draw();
};
const remove = (label, at) => {
  const windows = at === null ? [] : label.answer.windows.filter((_, i) => i !== at);
  const stays = at !== null && (windows.length || Object.keys(label.answer.grades).length);
  selected = null;
  commit(label, stays ? {...label.answer, windows} : null);
};
const selectedSpan = () => {
  if (!selected) return [0, 0];
  return selected.proposal ? [selected.proposal.start, selected.proposal.end] : selected.label.answer.windows[selected.at] || [0, 0];
};
const removeSelected = () => {
  if (selected && selected.label) remove(selected.label, selected.at); else if (selected) decide(false);
};
const startRenaming = () => {
  if (!selected || !selected.label) { say('Select a moment first, with ↑ and ↓.', true); return; }
  renaming = selected.label;
  writeSentence(renaming.answer.query);
  draw();
  sentence.focus();
};
const moments = () => labels().flatMap(label => label.answer.windows.map((window, at) => ({label, at, window}))).sort((a, b) => a.window[0] - b.window[0] || a.window[1] - b.window[1]);
const select = (label, at) => {
  const window = label.answer.windows[at];
  selected = {label, at: window ? at : null};
  renaming = null;
  say('');
  const known = !sentence.value || state.sentences.includes(oneLine(sentence.value)) || labelFor(oneLine(sentence.value));
  if (known && sentence.value !== label.answer.query) writeSentence(label.answer.query);
  if (window) player.seek(window[0]);
  draw();
};
const walk = by => {
  const all = moments();
  if (!all.length) return;
  const at = selected && selected.label ? all.findIndex(one => one.label === selected.label && one.at === selected.at) : -1;
  const now = player.now;
  const near = by > 0 ? all.findIndex(one => one.window[0] > now) : all.map(one => one.window[0] < now).lastIndexOf(true);
  const next = at >= 0 ? all[Math.min(Math.max(at + by, 0), all.length - 1)] : all[near < 0 ? (by > 0 ? all.length - 1 : 0) : near];
  select(next.label, next.at);
};
const undo = async (from, to, side) => {
  const one = from.pop();
  if (!one) return;
  to.push(one);
  if (one.refused) {
    if (side === 'before') refused.delete(one.refused); else refused.add(one.refused);
    draw();
    return;
  }
  await open(one.name);
  selected = null;
  commit(one.label, one[side], {remember: false});
  say(side === 'before' ? 'Undone.' : 'Done again.');
};

// Sentences: those that are known are completed.
const learn = text => { if (!state.sentences.includes(text)) state.sentences.unshift(text); };
let option = -1;
const knownSentences = () => {
  const text = oneLine(sentence.value).toLowerCase();
  const fits = state.sentences.filter(one => one.toLowerCase().includes(text) && one !== oneLine(sentence.value));
  const begins = fits.filter(one => one.toLowerCase().startsWith(text));
  return [...new Set([...begins, ...fits])].slice(0, MOST_KNOWN);
};
const showKnown = () => {
  const all = knownSentences();
  option = Math.min(option, all.length - 1);
  $('#known').hidden = !all.length;
  sentence.setAttribute('aria-expanded', String(all.length > 0));
  $('#known').replaceChildren(...all.map((text, i) => {
    const item = make('li', {id: `known-${i}`, textContent: text, onpointerdown: event => { event.preventDefault(); writeSentence(text); }});
    item.setAttribute('role', 'option');
    item.setAttribute('aria-selected', String(i === option));
    return item;
  }));
  if (option >= 0) sentence.setAttribute('aria-activedescendant', `known-${option}`); else sentence.removeAttribute('aria-activedescendant');
};
const hideKnown = () => {
  option = -1;
  $('#known').hidden = true;
  sentence.setAttribute('aria-expanded', 'false');
  sentence.removeAttribute('aria-activedescendant');
};
const blurSentence = () => {
  sentence.blur();
  hideKnown();
};
sentence.addEventListener('input', () => { option = -1; showKnown(); propose(); draw(); });
sentence.addEventListener('blur', hideKnown);
sentence.addEventListener('focus', () => sentence.select());
sentence.addEventListener('keydown', event => {
  const all = $('#known').hidden ? [] : knownSentences();
  if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
    event.preventDefault();
    if (!all.length) { showKnown(); return; }
    option = (option + (event.key === 'ArrowDown' ? 1 : all.length + (option < 0 ? 0 : -1))) % all.length;
    showKnown();
  } else if (event.key === 'Tab' && !event.shiftKey && sentence.value && all.length) {
    event.preventDefault();
    writeSentence(all[Math.max(option, 0)]);
  } else if (event.key === 'Enter') {
    event.preventDefault();
    if (option >= 0) writeSentence(all[option]);
    else if (event.shiftKey) addAbsent();
    else add();
  } else if (event.key === 'Escape') {
    event.preventDefault();
    event.stopPropagation();
    if (!$('#known').hidden) { hideKnown(); return; }
    renaming = null;
    blurSentence();
    draw();
  }
});

// Proposals for the sentence in this video.
let asking = 0;
const propose = ({again = false} = {}) => {
  clearTimeout(asking);
  const text = oneLine(sentence.value);
  if (!again) {
    proposals = [];
    curve = [];
    if (selected && selected.proposal) selected = null;
    $('#offers').textContent = '';
  }
  if (!text || !facts) { draw(); return; }
  const own = current;
  asking = setTimeout(async () => {
    if (!again) $('#offers').textContent = 'Looking for proposals…';
    const reply = await order('/label/proposals', {video: own.name, sentence: text}).then(response => response.ok ? response.json() : null).catch(() => null);
    if (current !== own || oneLine(sentence.value) !== text) return;
    if (!reply) { $('#offers').textContent = ''; return; }
    if (reply.again) { propose({again: true}); return; }
    proposals = reply.spans.map(one => ({...one, text, start: round(one.start), end: Math.min(round(one.end), facts.duration_s), key: `${own.name}\n${text}\n${one.start}\n${one.end}`}));
    curve = reply.curve;
    $('#offers').textContent = reply.note;
    draw();
  }, PROPOSE_MS);
};
const overlap = (a, b) => {
  const both = Math.max(0, Math.min(a[1], b[1]) - Math.max(a[0], b[0]));
  return both / (a[1] - a[0] + b[1] - b[0] - both);
};
const offered = () => {
  const label = labelFor(oneLine(sentence.value));
  const windows = label ? label.answer.windows : [];
  return proposals.filter(one => !refused.has(one.key) && !windows.some(window => overlap(window, [one.start, one.end]) > 0.5)).sort((a, b) => a.start - b.start);
};
const selectProposal = proposal => {
  selected = {proposal};
  player.seek(proposal.start);
  say(`Proposal ${span([proposal.start, proposal.end])}: A accepts it, R refuses it, I and O move its ends.`);
  draw();
};
const nextProposal = by => {
  const all = offered();
  if (!all.length) { say(sentence.value ? 'No proposals for this sentence here.' : 'Write a sentence first: proposals are for a sentence.', true); return; }
  const at = selected && selected.proposal ? all.indexOf(selected.proposal) : by > 0 ? -1 : 0;
  selectProposal(all[(at + by + all.length) % all.length]);
};
const decide = accept => {
  const proposal = selected && selected.proposal;
  if (!proposal) { nextProposal(1); return; }
  const all = offered();
  const next = all[all.indexOf(proposal) + 1];
  selected = null;
  if (accept) {
    if (addWindow(proposal.text, [proposal.start, proposal.end])) say(`“${proposal.text}”, ${span([proposal.start, proposal.end])}`);
  } else {
    refused.add(proposal.key);
    done.push({refused: proposal.key});
    undone.length = 0;
    say('Refused.');
  }
  if (next && offered().includes(next)) selectProposal(next);
  draw();
};

// Grades of clips of two seconds.
const CLIP_S = 2;
const graded = () => (selected && selected.label) || labelFor(oneLine(sentence.value));
const clipNow = () => Math.min(Math.floor(player.now / CLIP_S + 1e-6), facts.clips - 1);
const clipsToGrade = label => {
  const windows = label ? label.answer.windows : [];
  const inside = i => windows.some(([start, end]) => start < (i + 1) * CLIP_S && end > i * CLIP_S);
  const all = Array.from({length: facts.clips}, (_, i) => i);
  const first = Math.max(0, Math.min(clipNow() - MOST_CLIPS / 2, facts.clips - MOST_CLIPS));
  const chosen = windows.length ? all.filter(i => inside(i) || String(i) in label.answer.grades) : all.slice(first, first + MOST_CLIPS);
  return {clips: chosen.slice(0, MOST_CLIPS * 5), inside};
};
const grade = (clip, value) => {
  const text = oneLine(sentence.value);
  const label = graded() || (text ? {id: '', version: '', pending: 0, raters: 0, answer: null} : null);
  if (!label) { say('Select a moment, or write a sentence: grades are for a sentence.', true); return; }
  if (label.raters > 1 || label.raters < 0) { say('Its grades come from several people, and cannot be changed here.', true); return; }
  const before = label.answer || fresh(text);
  commit(label, {...before, absent: false, grades: {...before.grades, [clip]: value}});
  const {clips} = clipsToGrade(label);
  const next = clips.find(one => one > clip);
  if (next !== undefined) player.seek(next * CLIP_S);
};
const drawGrades = () => {
  $('#grades').hidden = !grading || !facts;
  document.body.classList.toggle('grading', grading);
  $('#grading').setAttribute('aria-pressed', String(grading));
  if ($('#grades').hidden) return;
  const label = graded();
  const {clips, inside} = clipsToGrade(label);
  const grades = label ? label.answer.grades : {};
  const missing = clips.filter(i => inside(i) && !(i in grades)).length;
  const several = label && (label.raters > 1 || label.raters < 0);
  $('#grades-text').textContent = !label && !oneLine(sentence.value) ? 'Select a moment, or write a sentence: grades are for a sentence.'
    : several ? 'Several people have graded these clips: this is the mean, and cannot be changed here.'
      : `“${label ? label.answer.query : oneLine(sentence.value)}”: press 0 to 4 for the clip at the playhead.${Object.keys(grades).length && missing ? ` ${many(missing, 'clip')} inside the moments without a grade ${missing === 1 ? 'counts' : 'count'} as 0.` : ''}`;
  const now = clipNow();
  redraw($('#clips'), ...clips.map(i => {
    const button = make('button', {type: 'button', className: `clip${inside(i) ? ' inside' : ''}${i === now ? ' now' : ''}`, dataset: {clip: i, focus: `clip ${i}`}},
      make('span', {className: 'at', textContent: clock(i * CLIP_S, 0)}), i in grades ? String(grades[i]) : '·');
    button.setAttribute('aria-label', `Clip at ${clock(i * CLIP_S, 0)}, ${i in grades ? `grade ${grades[i]}` : 'no grade'}`);
    return make('li', {}, button);
  }));
};

// Drawing.
const draw = () => {
  if (!state) return;
  drawTimeline();
  drawLabels();
  drawGrades();
  markVideo();
  for (const selector of ['#play', '#set-start', '#set-end', '#grading', '#sentence', '#add', '#absent']) $(selector).disabled = !facts;
  $('#undo').disabled = !done.length;
  $('#redo').disabled = !undone.length;
  $('#actions').hidden = !selected;
  $('#actions').dataset.of = selected && selected.proposal ? 'proposal' : 'moment';
  $('#add').textContent = renaming ? 'Rename' : 'Add';
  showSaved();
};
const percent = second => `${100 * second / facts.duration_s}%`;
const laneOf = spans => {  // spans that overlap lie in lanes below each other
  const ends = [];
  return spans.map(([start, end]) => {
    let lane = ends.findIndex(other => other <= start);
    if (lane < 0) lane = ends.length;
    ends[lane] = end;
    return lane;
  });
};
const place = (container, elements, spans) => {
  const lanes = laneOf(spans);
  container.style.height = `${30 * (Math.max(-1, ...lanes) + 1)}px`;
  elements.forEach((element, i) => {
    element.style.left = percent(spans[i][0]);
    element.style.width = percent(spans[i][1] - spans[i][0]);
    element.style.top = `${30 * lanes[i] + 2}px`;
  });
  redraw(container, ...elements);
};
const drawTimeline = () => {
  for (const selector of ['#own', '#offered', '#ticks']) if (!facts) $(selector).replaceChildren();
  if (!facts) { $('#curve').replaceChildren(); return; }
  $('#timeline .inner').style.width = `${100 * zoom}%`;
  const text = oneLine(sentence.value);
  const all = moments().map(({label, at, window}) => {
    const isSelected = selected && selected.label === label && selected.at === at;
    const classes = ['span', label.pending ? 'pending' : '', isSelected ? 'selected' : '', text && label.answer.query !== text && !isSelected ? 'other' : ''];
    const button = make('button', {type: 'button', className: classes.filter(Boolean).join(' '), textContent: label.answer.query, title: `${label.answer.query}, ${span(window)}`,
      dataset: {focus: `${label.id} ${at}`}, onclick: () => select(label, at)});
    button.setAttribute('aria-label', `${label.answer.query}, ${span(window)}`);
    return [button, window];
  });
  if (draft.start !== null || draft.end !== null) {
    const start = draft.start === null ? Math.max(0, draft.end - 0.2) : draft.start;
    const end = draft.end === null ? Math.max(player.now, start + 0.2) : draft.end;
    all.push([make('span', {className: 'span draft', textContent: 'new'}), [start, Math.min(end, facts.duration_s)]]);
    all.sort((a, b) => a[1][0] - b[1][0]);
  }
  place($('#own'), all.map(one => one[0]), all.map(one => one[1]));
  const offers = offered();
  place($('#offered'), offers.map(one => {
    const chosen = selected && selected.proposal === one;
    const button = make('button', {type: 'button', className: `span proposal${chosen ? ' selected' : ''}`, textContent: one.score.toFixed(2), title: `Proposal ${span([one.start, one.end])}`,
      dataset: {focus: one.key}, onclick: () => selectProposal(one)});
    button.setAttribute('aria-label', `Proposal ${span([one.start, one.end])}, score ${one.score.toFixed(2)}`);
    return button;
  }), offers.map(one => [one.start, one.end]));
  drawCurve();
  drawTicks();
  drawHead();
};
const drawCurve = () => {
  const [low, high] = [Math.min(...curve), Math.max(...curve)];
  const points = curve.map((value, i) => `${Math.min(1, (i + 0.5) * CLIP_S / facts.duration_s)},${0.95 - 0.85 * (value - low) / (high - low || 1)}`);
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'polyline');
  line.setAttribute('points', points.join(' '));
  $('#curve').replaceChildren(...(curve.length > 1 ? [line] : []));
};
const drawTicks = () => {
  const width = $('#timeline .inner').clientWidth || 600;
  const least = facts.duration_s * 70 / width;
  const every = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600].find(one => one >= least) || 7200;
  const ticks = Array.from({length: Math.ceil(facts.duration_s / every)}, (_, i) => i * every).filter(one => one + least / 2 < facts.duration_s);
  $('#ticks').replaceChildren(...ticks.map(second => {
    const tick = make('span', {textContent: clock(second, 0)});
    tick.style.left = percent(second);
    return tick;
  }));
};
const drawHead = () => {
  $('#time').replaceChildren(make('b', {textContent: clock(player.now, 2)}), ` / ${clock(facts ? facts.duration_s : 0)}`);
  if (!facts) return;
  $('#head').style.left = percent(player.now);
  if (draft.start !== null && draft.end === null) {
    const open = $('.span.draft');
    if (open) open.style.width = percent(Math.max(player.now - draft.start, 0.2));
  }
  if (zoom > 1) {
    const box = $('#timeline');
    const x = player.now / facts.duration_s * box.scrollWidth;
    if (x < box.scrollLeft + 20 || x > box.scrollLeft + box.clientWidth - 40) box.scrollLeft = x - box.clientWidth / 3;
  }
  if (grading) {
    const now = String(clipNow());
    for (const clip of document.querySelectorAll('.clip')) clip.classList.toggle('now', clip.dataset.clip === now);
  }
};
const drawLabels = () => {
  const all = labels();
  $('#no-labels').hidden = all.length > 0 || !facts;
  redraw($('#labels'), ...all.map(label => {
    const {query, windows, grades, absent} = label.answer;
    const chips = windows.map((window, at) => {
      const chosen = selected && selected.label === label && selected.at === at;
      return make('button', {type: 'button', className: `chip${chosen ? ' selected' : ''}`, textContent: span(window), dataset: {focus: `chip ${label.id} ${at}`}, onclick: () => select(label, at)});
    });
    const graded = Object.keys(grades).length;
    if (absent) chips.push(make('span', {className: 'chip fact', textContent: 'not in this video'}));
    if (label.open) chips.push(make('span', {className: 'chip fact', textContent: 'no answer yet'}));
    if (graded) chips.push(make('span', {className: 'chip fact', textContent: many(graded, 'grade')}));
    const removing = make('button', {type: 'button', className: 'remove', textContent: '×', title: 'Remove', dataset: {focus: `remove ${label.id}`}, onclick: () => remove(label, null)});
    removing.setAttribute('aria-label', `Remove “${query}”`);
    const item = make('li', {className: `label${selected && selected.label === label ? ' selected' : ''}`, dataset: {saved: String(!label.pending)}},
      make('div', {className: 'row'}, make('button', {type: 'button', className: 'sentence', textContent: query, dataset: {focus: `label ${label.id}`}, onclick: () => select(label, 0)}), removing),
      make('div', {className: 'chips'}, ...chips));
    if (label.pending) item.append(make('p', {className: 'state', textContent: answers ? 'saving…' : 'not saved'}));
    return item;
  }));
};

// The index, from which proposals come.
const showIndex = ({state: now, text, error, done: ready, total}) => {
  const line = now === 'running' ? `Proposals: ${text[0].toLowerCase()}${text.slice(1)}` : now === 'failed' ? `No proposals: ${error}` : now === 'stopped' ? 'The index for proposals was stopped.' : '';
  $('#index-text').textContent = line;
  $('#index-order').hidden = now === 'ready';
  $('#index-order').textContent = now === 'running' ? 'Cancel' : now === 'failed' ? 'Try again' : 'Go on';
  $('#index-order').dataset.order = now === 'running' ? 'stop' : 'start';
  const before = $('#index').dataset.state;
  $('#index').dataset.state = now;
  if ((before === 'running' && now !== before) || (now === 'running' && !proposals.length && ready && total)) propose({again: true});
};
$('#index-order').addEventListener('click', async event => {
  const reply = await order(`/label/index/${event.currentTarget.dataset.order}`).then(response => response.json()).catch(() => null);
  if (reply) showIndex(reply);
});

// Keys and clicks.
const KEYS = {
  ' ': () => player.toggle(),
  k: () => player.stop(),
  j: () => player.backward(),
  l: () => player.forward(),
  ArrowLeft: event => player.seek(player.now - (event.shiftKey ? 10 : 1)),
  ArrowRight: event => player.seek(player.now + (event.shiftKey ? 10 : 1)),
  ',': () => { player.stop(); player.seek(player.now - facts.frame_s); },
  '.': () => { player.stop(); player.seek(player.now + facts.frame_s); },
  Home: () => player.seek(0),
  End: () => player.seek(facts.duration_s),
  i: () => setEnd('start'),
  o: () => setEnd('end'),
  Enter: event => {
    if (event.shiftKey) { addAbsent(); return; }
    sentence.focus();
    showKnown();
  },
  ArrowUp: () => walk(-1),
  ArrowDown: () => walk(1),
  e: () => startRenaming(),
  Delete: () => removeSelected(),
  p: event => nextProposal(event.shiftKey ? -1 : 1),
  a: () => decide(true),
  r: () => decide(false),
  g: () => { grading = !grading; draw(); },
  z: event => event.shiftKey ? undo(undone, done, 'after') : undo(done, undone, 'before'),
  y: () => undo(undone, done, 'after'),
  '[': () => step(-1),
  ']': () => step(1),
  '/': () => { if ($('#show-videos').offsetParent) openList(true); $('#filter').focus(); $('#filter').select(); },
  '+': () => setZoom(1),
  '=': () => setZoom(1),
  '-': () => setZoom(-1),
  m: () => { video.muted = !video.muted; say(video.muted ? 'Sound off.' : 'Sound on.'); },
  '?': () => $('#keys').showModal(),
  Escape: () => {
    renaming = null;
    if (selected) selected = null; else draft = {start: null, end: null};
    say('');
    draw();
  },
};
KEYS.Backspace = KEYS.Delete;
const ALWAYS = ['[', ']', '/', '?', 'z', 'y', 'Escape'];  // also for a video that cannot be read
const setZoom = by => {
  zoom = ZOOMS[Math.min(Math.max(ZOOMS.indexOf(zoom) + by, 0), ZOOMS.length - 1)];
  draw();
};
document.addEventListener('keydown', event => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const control = event.ctrlKey || event.metaKey;
  const typing = event.target.matches('input, select, textarea');
  if ($('#keys').open || event.altKey || (control && (typing || !'zy'.includes(key))) || !state || !current) return;
  if (typing) {
    if (key === 'Escape') event.target.blur();
    return;
  }
  const presses = event.target.matches('button, a') && !event.target.matches('.span, .chip, .clip, .sentence, .video');
  if ((key === ' ' || key === 'Enter') && presses) return;
  if (grading && facts && /^[0-4]$/.test(key)) { event.preventDefault(); grade(clipNow(), Number(key)); return; }
  const act = KEYS[key];
  if (!act || !(facts || ALWAYS.includes(key))) return;
  if (key === 'Enter' && event.target.matches('button')) return;  // it presses the button
  event.preventDefault();
  act(event);
});
$('#play').addEventListener('click', () => player.toggle());
$('#set-start').addEventListener('click', () => setEnd('start'));
$('#set-end').addEventListener('click', () => setEnd('end'));
$('#undo').addEventListener('click', () => undo(done, undone, 'before'));
$('#redo').addEventListener('click', () => undo(undone, done, 'after'));
$('#grading').addEventListener('click', () => { grading = !grading; draw(); });
$('#accept').addEventListener('click', () => decide(true));
$('#refuse').addEventListener('click', () => decide(false));
$('#change').addEventListener('click', startRenaming);
$('#remove').addEventListener('click', removeSelected);
$('#marks').addEventListener('click', event => {
  if (facts && event.target.matches('button')) grade(clipNow(), Number(event.target.textContent));
});
$('#absent').addEventListener('click', addAbsent);
$('#new').addEventListener('submit', event => { event.preventDefault(); add(); });
$('#clips').addEventListener('click', event => {
  const clip = event.target.closest('.clip');
  if (clip) player.seek(Number(clip.dataset.clip) * CLIP_S);
});
$('#videos').addEventListener('click', event => {
  const button = event.target.closest('.video');
  if (!button) return;
  openList(false);
  open(button.dataset.name);
  if ($('#show-videos').offsetParent) $('#title').focus();
});
const openList = on => $('#show-videos').setAttribute('aria-expanded', String(on));
$('#show-videos').addEventListener('click', event => openList(event.currentTarget.getAttribute('aria-expanded') === 'false'));
$('#filter').addEventListener('input', listVideos);
$('#filter').addEventListener('keydown', event => {
  const first = $('.video');
  if (event.key === 'Enter' && first) { first.click(); event.target.blur(); }
});
$('#order').addEventListener('change', async () => {
  if ($('#order').value === 'suggested') await load(); else listVideos();
});
$('#timeline').addEventListener('click', event => {
  if (!facts || event.target.closest('.span')) return;
  const box = $('#timeline .inner').getBoundingClientRect();
  player.seek((event.clientX - box.left) / box.width * facts.duration_s);
});
$('#show-keys').addEventListener('click', () => $('#keys').showModal());
$('#hide-keys').addEventListener('click', () => $('#keys').close());
window.addEventListener('beforeunload', event => { if (queue.length) event.preventDefault(); });
window.addEventListener('resize', () => { if (facts) drawTicks(); });

load().then(poll);
