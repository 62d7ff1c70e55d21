/** What the readers of all layouts share. */

import { DataError } from "../errors.ts";
import type { RecordPlace } from "../types.ts";
import type { PromptTemplate } from "./question.ts";

/** What a reader of one layout needs to know besides the record. */
export interface ReadContext {
  mediaRoot: string;
  seed: number;
  shuffleOptions: boolean;
  template: PromptTemplate;
  source: RecordPlace;
}

/** Typed access to the fields of one record; whatever is missing or of another type is a DataError that names file, line and field. */
export class Fields {
  readonly record: Record<string, unknown>;
  readonly #where: RecordPlace & { sampleId?: string };

  constructor(record: Record<string, unknown>, where: RecordPlace & { sampleId?: string }) {
    this.record = record;
    this.#where = where;
  }

  has(name: string): boolean {
    return this.record[name] !== undefined && this.record[name] !== null;
  }

  text(name: string): string {
    const value = this.record[name];
    if (typeof value === "string" && value !== "") return value;
    return this.fail(name, "a non-empty string");
  }

  /** A string, or a number or boolean written as one. */
  scalar(name: string): string {
    const value = this.record[name];
    if (typeof value === "number" || typeof value === "boolean") return String(value);
    return this.text(name);
  }

  texts(name: string): string[] {
    const value = this.record[name];
    if (Array.isArray(value) && value.every((item) => typeof item === "string")) return value;
    return this.fail(name, "a list of strings");
  }

  /** A string or a list of them; none where the field is absent. */
  textOrTexts(name: string): string[] {
    if (!this.has(name)) return [];
    return typeof this.record[name] === "string" ? [this.text(name)] : this.texts(name);
  }

  fail(name: string, expected: string): never {
    const value = this.record[name];
    const got = value === undefined ? "it is missing" : `got ${JSON.stringify(value)?.slice(0, 80)}`;
    const isMissing = !this.has(name) || value === "";
    throw new DataError({ ...this.#where, field: name, isMissing }, `field "${name}" must be ${expected}, ${got}`);
  }

  error(problem: string): DataError {
    return new DataError(this.#where, problem);
  }
}
