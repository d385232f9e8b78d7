/** The next round: its settings, all that it will do as a list, and the button that starts it. */

import { at, button, element } from "../common/dom.js";
import { makeField, makeInput, showCommand } from "./fields.js";

const PLAN_AFTER_MS = 250;

/** Fill the section. */
export async function mountRound(section) {
  section.className = "tr-round";
  section.setAttribute("aria-labelledby", "tr-round-title");
  const title = element("h3", "Next round");
  title.id = "tr-round-title";
  const intro = element("p", "");
  const form = element("div", "");
  const folded = element("details", "");
  const grid = element("div", "");
  grid.className = folded.className = "tr-grid";
  folded.className = "";
  folded.append(element("summary", "More settings"), grid);
  const notes = element("div", "");
  const list = element("ol", "");
  list.className = "tr-plan";
  const faults = element("div", "");
  faults.setAttribute("aria-live", "polite");
  const start = button("Start the round", () => begin(round));
  start.className = "tr-primary";
  const done = element("div", "");
  done.setAttribute("role", "status");
  section.replaceChildren(title, intro, form, folded, notes, list, faults, start, done);
  const round = { intro, form, folded: grid, notes, list, faults, start, done, fields: new Map(), asked: 0, timer: 0, number: 0 };
  await plan(round, {});
}

async function plan(round, values) {
  const number = ++round.asked;
  let answer;
  try {
    const response = await fetch(at(`/api/train/round?${new URLSearchParams(values)}`));
    if (!response.ok) throw new Error();
    answer = await response.json();
  } catch {
    round.start.disabled = true;
    return round.faults.replaceChildren(line("The plan could not be made; load the page anew.", "fr-error"));
  }
  if (number !== round.asked) return;
  if (!round.fields.size) makeForm(round, answer);
  round.number = answer.round;
  round.intro.textContent =
    `From the judgments so far to the next pairs to judge, as ${answer.plan.length || "some"} runs that wait for one another. ` +
    `What round ${answer.round} makes lies in ${answer.folder}. Nothing is started before you press the button.`;
  round.notes.replaceChildren(...answer.notes.map((text) => line(text, "fr-note tr-note")));
  round.list.replaceChildren(...answer.plan.map(showRun));
  showErrors(round, answer.errors);
}

function line(text, className) {
  const made = element("p", text);
  made.className = className;
  if (className === "fr-error") made.setAttribute("role", "alert");
  return made;
}

function makeForm(round, answer) {
  const changed = () => {
    clearTimeout(round.timer);
    round.timer = setTimeout(() => plan(round, collect(round)), PLAN_AFTER_MS);
  };
  const { default: restorer, ...spec } = answer.restorer;
  round.restorer = makeInput(spec, [restorer], changed);
  const grid = element("div", "");
  grid.className = "tr-grid";
  grid.append(round.restorer.element);
  for (const field of answer.fields) {
    const made = makeField({ ...field, key: `round.${field.name}` }, field.default, undefined, changed);
    round.fields.set(field.name, made);
    (field.shown ? grid : round.folded).append(made.element);
  }
  round.form.replaceChildren(grid);
}

function collect(round) {
  const values = { restorer: round.restorer.values()[0] ?? "" };
  for (const [name, field] of round.fields) if (field.isChanged()) values[name] = field.value();
  return values;
}

function showRun(run) {
  const made = element("li", "");
  const words = element("p", `${run.words[0].toUpperCase()}${run.words.slice(1)}`);
  const where = [run.device && `on ${run.device}`, run.after.length && `after step ${run.after.map((place) => place + 1).join(", ")}`];
  const more = where.filter(Boolean).join(", ");
  if (more) {
    const note = element("span", ` (${more})`);
    note.className = "fr-note";
    words.append(note);
  }
  const command = element("code", "");
  showCommand(command, run.command);
  made.append(words, command);
  return made;
}

function showErrors(round, errors) {
  round.restorer.setError(errors.restorer);
  for (const [name, field] of round.fields) field.setError(errors[name]);
  round.faults.replaceChildren(...(errors[""] ? [line(errors[""], "fr-error")] : []));
  round.start.disabled = Object.keys(errors).length > 0;
}

async function begin(round) {
  round.start.disabled = true; // pressed twice, it starts once
  round.done.replaceChildren();
  let answer;
  try {
    const response = await fetch(at("/api/train/round"), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ round: round.number, values: collect(round) }),
    });
    answer = await response.json();
  } catch {
    answer = {};
  }
  if (!answer.runs) return showErrors(round, answer.errors ?? { "": answer.error ?? "The server does not take this." });
  const said = element("p", `Round ${round.number} was started: `);
  said.className = "tr-done";
  answer.runs.forEach((id, place) => {
    const link = element("a", `run ${id}`);
    link.href = at(`/admin/runs#run=${id}`);
    said.append(...(place ? [", ", link] : [link]));
  });
  said.append(".");
  round.done.append(said);
  await plan(round, collect(round));
  round.start.disabled = true; // the next one is not meant yet
}
