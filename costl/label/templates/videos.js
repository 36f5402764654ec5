'use strict';
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
