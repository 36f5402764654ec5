'use strict';
const $ = selector => document.querySelector(selector);
const $$ = selector => [...document.querySelectorAll(selector)];
const form = $('#search');
const query = $('#query');
const results = $('#results');
const status = $('#status');
const FILTERS = ['within', 'after', 'before', 'longer'];
const PAGE = 24;  // moments
const HOVER_MS = 350;
const SLIDES = 8;
const SLIDE_MS = 700;

const post = (path, body, signal) => fetch(path, {
  method: 'POST',
  headers: {'Content-Type': 'application/json'},
  body: JSON.stringify(body),
  signal,
});
async function* lines(response) {
  if (!response.ok) throw new Error(response.statusText);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = '', more = await reader.read(); !more.done; more = await reader.read()) {
    const parts = (rest + more.value).split('\n');
    rest = parts.pop();
    yield* parts.map(JSON.parse);
  }
}
const many = (count, noun) => `${count.toLocaleString('en')} ${noun}${count === 1 ? '' : 's'}`;

// Searching. The address of the page holds the sentence and the filters, so that Back and bookmarks work.
let running = null;
let unindexed = false;  // the last search came before anything was indexed
const values = () => Object.fromEntries(['q', ...FILTERS].map(name => [name, form.elements[name].value.trim()]));
const toAddress = () => {
  const parameters = new URLSearchParams(Object.entries(values()).filter(([, value]) => value));
  return parameters.size ? `?${parameters}` : location.pathname;
};
const fromAddress = () => {
  const parameters = new URLSearchParams(location.search);
  for (const name of ['q', ...FILTERS]) form.elements[name].value = parameters.get(name) || '';
};
const showFilters = () => {
  const count = FILTERS.filter(name => values()[name]).length;
  $('#show-filters').textContent = count ? `Filters (${count})` : 'Filters';
  $('#clear-filters').hidden = !count;
};
const say = (text, busy = false) => {
  status.textContent = text;
  status.classList.toggle('busy', busy);
  status.classList.toggle('unseen', Boolean($('.nothing, .problem')));  // they say the same
};
const show = html => {
  stop();
  results.innerHTML = html;
  results.classList.remove('stale');
  const first = $('.card');
  if (first) makeCurrent(first);
  $$('.frame img').forEach(image => image.addEventListener('error', () => lose(image.closest('.card')), {once: true}));
  countSelected();
};
const search = async ({top = PAGE} = {}) => {
  if (running) running.abort();
  const own = running = new AbortController();
  const {q, ...filters} = values();
  showFilters();
  $('#intro').hidden = Boolean(q);
  document.title = q ? `${q} – CoSTL` : 'CoSTL';
  if (!q) { say(''); show(''); return false; }
  results.classList.add('stale');
  try {
    let done = null;
    for await (const reply of lines(await post('/library/search', {query: q, ...filters, top: String(top)}, own.signal))) {
      if (running !== own) return false;
      if ('html' in reply) done = reply; else say(reply.text, true);
    }
    if (!done) throw new Error('the reply is not complete');
    unindexed = Boolean(done.unindexed);
    show(done.html);
    say(done.summary);
    return true;
  } catch {
    if (running === own) { say(''); show($('#failure').innerHTML); }
    return false;
  }
};
const searchAnew = () => {
  if (toAddress() !== location.search) history.pushState(null, '', toAddress());
  return search();
};
const clearFilters = () => {
  FILTERS.forEach(name => { form.elements[name].value = ''; });
  searchAnew();
};
form.addEventListener('submit', event => { event.preventDefault(); searchAnew(); });
FILTERS.forEach(name => form.elements[name].addEventListener('change', searchAnew));
$('#clear-filters').addEventListener('click', () => { clearFilters(); query.focus(); });
$('#show-filters').addEventListener('click', event => {
  const button = event.currentTarget;
  button.setAttribute('aria-expanded', String(button.getAttribute('aria-expanded') === 'false'));
});
window.addEventListener('popstate', () => { fromAddress(); search(); });

// Walking. One card at a time is in the order of the Tab key.
const cards = () => $$('.card').filter(card => card.offsetParent);
const makeCurrent = card => $$('.card').forEach(one => {
  one.querySelectorAll('a, button, input').forEach(part => { part.tabIndex = one === card ? 0 : -1; });
});
const go = card => {
  if (!card) return;
  if (playing && playing.card !== card) stop();
  makeCurrent(card);
  card.querySelector('.play').focus({preventScroll: true});
  card.scrollIntoView({block: 'nearest'});
};
const step = (card, key) => {
  const all = cards();
  const at = all.indexOf(card);
  if (key === 'Home') return all[0];
  if (key === 'End') return all[all.length - 1];
  if (key === 'ArrowLeft' || key === 'ArrowRight') return all[at + (key === 'ArrowLeft' ? -1 : 1)];
  // The nearest one in the next row; the last row and another list may be shorter.
  const down = key === 'ArrowDown';
  const box = card.getBoundingClientRect();
  const tops = all.map(one => one.getBoundingClientRect().top);
  const others = [...new Set(tops.filter(top => down ? top > box.top + 1 : top < box.top - 1))].sort((a, b) => a - b);
  const row = down ? others[0] : others[others.length - 1];
  const distance = one => Math.abs(one.getBoundingClientRect().left - box.left);
  return all.filter((_, i) => tops[i] === row).sort((a, b) => distance(a) - distance(b))[0];
};
document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches('input:not([type="checkbox"]), select, textarea');
  const card = event.target.closest('.card');
  const key = event.key;
  if (key === 'Escape' && playing) stop();
  else if (typing) {
    if (key === 'ArrowDown' && event.target === query && cards().length) { event.preventDefault(); go(cards()[0]); }
  } else if (key === '/') {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (key === 'm' && playing) setSound(!sound);
  else if (card && key === 'x') card.querySelector('.select input').click();
  else if (card && /^Arrow|^Home$|^End$/.test(key)) { event.preventDefault(); go(step(card, key)); }
});
results.addEventListener('focusin', event => {
  const card = event.target.closest('.card');
  if (card) makeCurrent(card);
});

// Playing a moment in its card. A video that this browser cannot play is shown as pictures, one after the other.
let playing = null;
let sound = false;
const still = matchMedia('(prefers-reduced-motion: reduce)');
const setSound = on => {
  sound = on;
  if (!playing) return;
  if (playing.video) playing.video.muted = !on;
  playing.card.querySelector('.sound').setAttribute('aria-pressed', String(on));
};
const stop = () => {
  if (!playing) return;
  const {card, video, frame, timer} = playing;
  playing = null;
  cancelAnimationFrame(frame);
  clearInterval(timer);
  if (video) { video.removeAttribute('src'); video.load(); video.remove(); }
  card.querySelectorAll('.slide').forEach(one => one.remove());
  card.querySelector('.play').setAttribute('aria-pressed', 'false');
  card.querySelector('.sound').hidden = true;
  card.querySelector('.head').setAttribute('visibility', 'hidden');
  if (!card.matches('.lost')) write(card, '');
};
const write = (card, text) => { card.querySelector('.message').textContent = text; };
const lose = card => {
  if (playing && playing.card === card) stop();
  card.classList.add('lost');
  card.querySelector('.frame').classList.add('gone');
  write(card, 'The file is gone, or cannot be read.');
};
const moveHead = (card, second) => {
  const head = card.querySelector('.head');
  head.setAttribute('visibility', 'visible');
  head.setAttribute('x1', second);
  head.setAttribute('x2', second);
};
const play = async (card, {pinned}) => {
  if (playing && playing.card === card) { playing.pinned = playing.pinned || pinned; return; }
  stop();
  const own = playing = {card, pinned};
  card.querySelector('.play').setAttribute('aria-pressed', 'true');
  const {key} = card.dataset;
  const response = await fetch(`/library/starts/${key}`).catch(() => null);
  if (playing !== own) return;
  if (!response || !response.ok) { lose(card); return; }
  const zero = (await response.json()).start_s;
  if (playing !== own) return;
  const [start, end] = [Number(card.dataset.start), Number(card.dataset.end)];
  const video = own.video = document.createElement('video');
  Object.assign(video, {muted: !sound, playsInline: true, preload: 'auto', src: `/library/videos/${key}`, className: 'waiting'});
  const isNow = () => playing === own;
  const begin = () => { video.currentTime = zero + start; };
  video.addEventListener('error', () => { if (isNow()) playSlides(own, start, end); });
  video.addEventListener('loadedmetadata', () => {
    if (!isNow()) return;
    if (!video.videoWidth) { playSlides(own, start, end); return; }  // only its sound can be played
    begin();
    video.play().catch(() => { video.muted = true; video.play().catch(() => {}); });  // sound needs a click on the page first
    const sounds = card.querySelector('.sound');
    sounds.hidden = false;
    sounds.setAttribute('aria-pressed', String(sound));
    follow();
  });
  video.addEventListener('seeked', () => video.classList.remove('waiting'));
  video.addEventListener('ended', () => { if (isNow()) { begin(); video.play().catch(() => {}); } });
  const follow = () => {
    if (!isNow() || !own.video) return;
    const second = video.currentTime - zero;
    if (!video.seeking) {
      if (second >= end) begin();
      moveHead(card, Math.min(Math.max(second, start), end));
    }
    own.frame = requestAnimationFrame(follow);
  };
  card.querySelector('.frame img').after(video);
};
const playSlides = (own, start, end) => {
  const {card} = own;
  own.video.remove();
  own.video = null;
  card.querySelector('.sound').hidden = true;
  write(card, 'This browser cannot play the file, so these are single pictures.');
  const times = Array.from({length: SLIDES}, (_, i) => start + (i + 0.5) / SLIDES * (end - start));
  const slides = times.map(time => {
    const image = new Image();
    image.className = 'slide';
    image.alt = '';
    image.src = `/library/frames/${card.dataset.key}?at=${time.toFixed(3)}`;
    return image;
  });
  let at = -1;
  const next = () => {
    const following = (at + 1) % SLIDES;
    if (!slides[following].complete) return;
    at = following;
    if (slides[at].naturalWidth) {
      card.querySelectorAll('.slide').forEach(one => one.remove());
      card.querySelector('.frame img').after(slides[at]);
      moveHead(card, times[at]);
    }
  };
  own.timer = setInterval(next, SLIDE_MS);
  next();
};

let hover = 0;
results.addEventListener('pointerover', event => {
  const frame = event.target.closest('.frame');
  if (!frame || event.pointerType !== 'mouse' || still.matches || frame.contains(event.relatedTarget)) return;
  clearTimeout(hover);
  hover = setTimeout(() => play(frame.closest('.card'), {pinned: false}), HOVER_MS);
});
results.addEventListener('pointerout', event => {
  const frame = event.target.closest('.frame');
  if (!frame || frame.contains(event.relatedTarget)) return;
  clearTimeout(hover);
  if (playing && !playing.pinned && playing.card.contains(frame)) stop();
});

// Selecting and exporting.
const selected = () => $$('.card.selected');
const countSelected = () => {
  const exporting = $('#export');
  if (!exporting) return;
  const count = selected().length;
  const all = Number($('.found').dataset.count);
  exporting.hidden = !count && !all;
  $('#chosen').textContent = count ? `${many(count, 'moment')} selected` : `All ${many(all, 'moment')}`;
  $('#unselect').hidden = !count;
};
const select = (box, on) => {
  box.checked = on;
  box.closest('.card').classList.toggle('selected', on);
  countSelected();
};
const download = ({name, content}) => {
  const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([bytes]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};
const exportMoments = async () => {
  const message = $('#export .message');
  message.textContent = '';
  const ranks = selected().map(card => Number(card.dataset.rank));
  try {
    const response = await post('/library/export', {search: $('.found').dataset.search, ranks, format: $('#export select').value});
    const reply = await response.json();
    if (!reply.problem) download(reply);
    message.textContent = reply.problem || reply.notes.join(' ');
  } catch {
    message.textContent = 'The demo does not answer. Look at its terminal.';
  }
};
results.addEventListener('change', event => {
  if (event.target.matches('.select input')) select(event.target, event.target.checked);
});
results.addEventListener('submit', event => { event.preventDefault(); exportMoments(); });
results.addEventListener('click', async event => {
  const button = event.target.closest('button');
  if (!button) return;
  const card = button.closest('.card');
  if (button.matches('.sound')) setSound(!sound);
  else if (button.matches('.play')) {
    clearTimeout(hover);
    if (playing && playing.card === card && playing.pinned) stop(); else play(card, {pinned: true});
  } else if (button.id === 'unselect') selected().forEach(one => select(one.querySelector('.select input'), false));
  else if (button.matches('.clear-filters')) clearFilters();
  else if (button.id === 'show-below') {
    const below = $('#below');
    below.hidden = !below.hidden;
    button.setAttribute('aria-expanded', String(!below.hidden));
    button.dataset.show = button.dataset.show || button.textContent;
    button.textContent = below.hidden ? button.dataset.show : 'Hide these moments';
  } else if (button.id === 'more') {
    const before = Number($('.found').dataset.count);
    const ranks = selected().map(one => one.dataset.rank);
    if (!await search({top: before + PAGE})) return;
    ranks.forEach(rank => select($(`.card[data-rank="${rank}"] .select input`), true));
    go(cards()[before] || cards()[before - 1]);
  }
});

// The index.
const length = hours => hours < 1 ? many(Math.round(60 * hours), 'minute') : `${hours.toLocaleString('en', {maximumFractionDigits: 1})} hours`;
const showIndex = reply => {
  const now = reply.state === 'running';
  const panel = $('#index');
  panel.hidden = reply.state === 'ready';
  panel.classList.toggle('failed', reply.state === 'failed');
  $('#index-stop').hidden = $('#index-bar').hidden = !now;
  $('#index-start').hidden = now;
  $('#index-start').textContent = reply.state === 'failed' ? 'Try again' : 'Go on';
  $('#index-name').textContent = reply.name || '';
  if (now) {
    $('#index-text').textContent = reply.text;
    if (reply.total) { $('#index-bar').max = reply.total; $('#index-bar').value = reply.done; } else $('#index-bar').removeAttribute('value');
    return;
  }
  $('#index-text').textContent = reply.error || `Stopped. ${many(reply.videos, 'video')} can be searched${reply.unfinished ? `, ${reply.unfinished.toLocaleString('en')} cannot yet` : ''}.`;
  $('#library').textContent = `${many(reply.videos, 'video')}, ${length(reply.hours)}`;
  $('#folders').replaceChildren(...reply.folders.map(folder => Object.assign(document.createElement('option'), {value: folder})));
  if (unindexed && reply.videos) search();
  $('#failed').hidden = !reply.failed.length;
  $('#failed summary').textContent = `${many(reply.failed.length, 'file')} cannot be read`;
  $('#failed ul').replaceChildren(...reply.failed.map(([name, reason]) => {
    return Object.assign(document.createElement('li'), {textContent: reason.startsWith(name) ? reason : `${name}: ${reason}`});
  }));
};
const watchIndex = async () => {
  try {
    for await (const reply of lines(await fetch('/library/index'))) showIndex(reply);
  } catch {
    showIndex({state: 'failed', error: 'The demo does not answer. Look at its terminal.', videos: 0, hours: 0, folders: [], failed: []});
  }
};
$('#index-stop').addEventListener('click', () => post('/library/index/stop', {}));
$('#index-start').addEventListener('click', async () => {
  await post('/library/index/start', {}).catch(() => {});
  watchIndex();
});

fromAddress();
watchIndex();
search();
