'use strict';
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
  if ($('dialog[open]') || event.altKey || (control && (typing || !'zy'.includes(key))) || !state || !current) return;
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
  if ($('#order').value === 'suggested') await load({reorder: true}); else listVideos();
});
$('#timeline').addEventListener('click', event => {
  if (!facts || event.target.closest('.span')) return;
  const box = $('#timeline .inner').getBoundingClientRect();
  player.seek((event.clientX - box.left) / box.width * facts.duration_s);
});
$('#show-keys').addEventListener('click', () => $('#keys').showModal());
$('#hide-keys').addEventListener('click', () => $('#keys').close());
$('#show-exports').addEventListener('click', () => $('#exports').showModal());
$('#hide-exports').addEventListener('click', () => $('#exports').close());
window.addEventListener('beforeunload', event => { if (queue.length) event.preventDefault(); });
window.addEventListener('resize', () => { if (facts) drawTicks(); });

load().then(poll);
