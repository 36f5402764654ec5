'use strict';
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
