'use strict';
// Sentences: those that are known are completed.
const learn = text => { if (!state.sentences.includes(text)) state.sentences.unshift(text); };
let option = -1;
const knownSentences = () => {
  const text = oneLine(sentence.value).toLowerCase();
  const fits = state.sentences.filter(one => one.toLowerCase().includes(text) && one !== oneLine(sentence.value));
  const begins = fits.filter(one => one.toLowerCase().startsWith(text));
  return [...new Set([...begins, ...fits])].slice(0, MOST_KNOWN);
};
const showKnown = () => {
  const all = knownSentences();
  option = Math.min(option, all.length - 1);
  $('#known').hidden = !all.length;
  sentence.setAttribute('aria-expanded', String(all.length > 0));
  $('#known').replaceChildren(...all.map((text, i) => {
    const item = make('li', {id: `known-${i}`, textContent: text, onpointerdown: event => { event.preventDefault(); writeSentence(text); }});
    item.setAttribute('role', 'option');
    item.setAttribute('aria-selected', String(i === option));
    return item;
  }));
  if (option >= 0) sentence.setAttribute('aria-activedescendant', `known-${option}`); else sentence.removeAttribute('aria-activedescendant');
};
const hideKnown = () => {
  option = -1;
  $('#known').hidden = true;
  sentence.setAttribute('aria-expanded', 'false');
  sentence.removeAttribute('aria-activedescendant');
};
const blurSentence = () => {
  sentence.blur();
  hideKnown();
};
sentence.addEventListener('input', () => { option = -1; showKnown(); propose(); draw(); });
sentence.addEventListener('blur', hideKnown);
sentence.addEventListener('focus', () => sentence.select());
sentence.addEventListener('keydown', event => {
  const all = $('#known').hidden ? [] : knownSentences();
  if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
    event.preventDefault();
    if (!all.length) { showKnown(); return; }
    option = (option + (event.key === 'ArrowDown' ? 1 : all.length + (option < 0 ? 0 : -1))) % all.length;
    showKnown();
  } else if (event.key === 'Tab' && !event.shiftKey && sentence.value && all.length) {
    event.preventDefault();
    writeSentence(all[Math.max(option, 0)]);
  } else if (event.key === 'Enter') {
    event.preventDefault();
    if (option >= 0) writeSentence(all[option]);
    else if (event.shiftKey) addAbsent();
    else add();
  } else if (event.key === 'Escape') {
    event.preventDefault();
    event.stopPropagation();
    if (!$('#known').hidden) { hideKnown(); return; }
    renaming = null;
    blurSentence();
    draw();
  }
});
