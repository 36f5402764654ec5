'use strict';
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
