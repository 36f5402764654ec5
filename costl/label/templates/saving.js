'use strict';
// Edits go to the server one after the other. A conflict is shown; what is not on the disk is not shown as saved.
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

const inOrderOf = (before, videos) => {
  const places = new Map(before.map((one, i) => [one.name, i]));
  const placeOf = one => places.get(one.name) ?? places.size;
  videos.sort((a, b) => placeOf(a) - placeOf(b));
};
const load = async ({reorder = false} = {}) => {
  try {
    const reply = await ask('/label/state');
    const restarted = state && state.session !== reply.session;
    if (restarted) noticed = 0;
    if (state && !reorder) inOrderOf(state.videos, reply.videos);  // so that the next video stays the next one
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
    await load({reorder});
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
