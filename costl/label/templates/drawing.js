'use strict';
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
