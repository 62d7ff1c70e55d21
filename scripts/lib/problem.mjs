/** Something the user can mend: one message, and the command that mends it. Never shown with a stack trace. */
export class SetupProblem extends Error {
  /**
   * @param {string} message what is wrong
   * @param {string} [remedy] the command (or setting) that mends it
   */
  constructor(message, remedy) {
    super(message);
    this.name = "SetupProblem";
    this.remedy = remedy;
  }
}

/** A problem as the lines to print; other errors keep their stack, because they are bugs of these scripts. */
export function describeProblem(error) {
  if (error instanceof SetupProblem || error?.remedy !== undefined) {
    return `set-up stopped: ${error.message}${error.remedy ? `\n  to mend it: ${error.remedy}` : ""}`;
  }
  return `set-up failed unexpectedly, please report this:\n${error?.stack ?? error}`;
}
