'use strict';
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
