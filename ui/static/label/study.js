// @ts-check
/** Show a participant of a study how far they are, with a way out, and no more of the page than they need. */

import { $ } from "../common/dom.js";

/** @typedef {{stage: string, answers: number, wanted: number, warned: boolean}} Study `answers` in whole steps */

export const WARNING =
  "Some of your answers did not fit pairs whose answer is known. Please look closely at both images; if this goes on, your part may be stopped.";

/**
 * Whether this page is where the participant is; else it is the study's own.
 * @param {Study} study
 */
export const isAtWork = ({ stage }) => stage === "qualification" || stage === "task";

/** @param {Study} study */
export const nameProgress = ({ stage, answers, wanted }) =>
  stage === "qualification" ? "first questions" : `${answers} of ${wanted}`;

/** Leave out what only people with an account have. */
export function setUpStudy() {
  $("sign-out-form").hidden = $("sign-out-everywhere").hidden = true;
  $("stop").hidden = false;
}
