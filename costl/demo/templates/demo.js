// The page alone decides what it shows: a reply is visible only while its own query and video are on the page. So no order
// in which requests and replies arrive can lose the reply to the newest question.
const work = element.querySelector('.work');
const place = element.querySelector('.reply');
const player = () => document.querySelector('#costl-player video');
const asked = () => ({
  query: (document.querySelector('#costl-query textarea, #costl-query input') || {value: ''}).value.trim(),
  video: (player() || {dataset: {video: ''}}).dataset.video,
});
const same = (a, b) => a.query === b.query && a.video === b.video;
const opening = () => Number(document.body.dataset.opening || 0) > 0;  // see `_OPENING` in app.py
let turns = 0;  // how often the user has asked
let running = null;  // the newest question without a complete reply
let replied = null;  // the question whose reply is in `place`

const show = (question, html) => { place.innerHTML = html; replied = question; sync(); choose('0'); moveHead(); };
const text = name => element.querySelector(`template.${name}`).innerHTML;
const end = () => { running = null; work.hidden = true; };
const stop = () => { running.abort.abort(); end(); };
const sync = () => {
  const now = asked();
  const last = running || replied;
  if (running && running.video !== now.video) stop();
  // A question that came before its video is asked again when the video is there.
  if (last && !last.video && now.video && last.query === now.query) { replied = null; ask(); }
  place.hidden = !(replied && same(replied, now));
};

const ask = async () => {
  const turn = ++turns;
  const {query} = asked();
  while (opening()) await new Promise(resolve => setTimeout(resolve, 30));
  const question = {query, video: asked().video, abort: new AbortController()};
  if (turn !== turns || (running && same(running, question))) return;
  const before = running;
  running = question;
  try {
    const response = await fetch('ask', {
      method: 'POST',
      headers: {'Content-Type': 'application/json'},
      body: JSON.stringify({query, video: question.video}),
      signal: question.abort.signal,
    });
    if (!response.ok) throw new Error(response.statusText);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = '', more = await reader.read(); !more.done; more = await reader.read()) {
      if (before) before.abort.abort();  // only now, so that an extraction that both need goes on
      const lines = (rest + more.value).split('\n');
      rest = lines.pop();
      if (running === question) lines.map(JSON.parse).forEach(reply => receive(question, reply));
    }
    if (running === question) throw new Error('the reply is not complete');
  } catch {
    if (running === question) { end(); show(question, text('failed')); }
  } finally {
    if (before) before.abort.abort();
  }
};
const receive = (question, reply) => {
  if ('html' in reply) { end(); show(question, reply.html); return; }
  if (work.hidden) {
    work.hidden = false;
    work.scrollIntoView({block: 'nearest'});
  }
  work.querySelector('span').textContent = reply.text;
  const bar = work.querySelector('progress');
  if (reply.total) { bar.max = reply.total; bar.value = reply.done; } else { bar.removeAttribute('value'); }
};

const choose = rank => {
  place.querySelectorAll('.moment, .mark').forEach(one => one.classList.toggle('chosen', one.dataset.rank === rank));
  place.querySelectorAll('.heatmap').forEach(one => { one.hidden = one.dataset.rank !== rank; });
};
const jump = second => {
  const video = player();
  if (!video) return;
  video.scrollIntoView({block: 'nearest'});
  video.currentTime = Number(video.dataset.start) + second;
  video.play().catch(() => {});  // refused for a file that this browser cannot play
};
const moveHead = () => place.querySelectorAll('.curve').forEach(curve => {
  const video = player();
  const second = video ? video.currentTime - Number(video.dataset.start) : 0;
  const fraction = Math.max(0, Math.min(1, second / Number(curve.dataset.duration)));
  curve.querySelector('.head').style.left = 100 * fraction + '%';
});
element.addEventListener('click', event => {
  const moment = event.target.closest('.moment');
  const plot = event.target.closest('.plot');
  if (event.target.closest('.cancel')) { const question = running; stop(); show(question, text('cancelled')); }
  else if (moment) { choose(moment.dataset.rank); jump(Number(moment.dataset.start)); }
  else if (plot) {
    const box = plot.getBoundingClientRect();
    jump((event.clientX - box.left) / box.width * Number(plot.parentElement.dataset.duration));
  }
});
document.addEventListener('costl-ask', ask);
document.addEventListener('timeupdate', moveHead, true);
document.addEventListener('seeking', moveHead, true);
document.addEventListener('input', sync, true);
new MutationObserver(sync).observe(document.querySelector('#costl-player'), {childList: true, subtree: true});
