'use strict';
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
