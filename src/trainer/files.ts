/** Files and folders that are there as a whole or not at all, also after a power cut. */

import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeSync,
} from "node:fs";
import path from "node:path";

/** Creates or replaces a file: whoever reads it sees the old content or the new, never a part. */
export function replaceFile(file: string, content: string): void {
  const temporary = `${file}.tmp`;
  const bytes = Buffer.from(content);
  try {
    const descriptor = openSync(temporary, "w");
    try {
      for (let done = 0; done < bytes.length; ) done += writeSync(descriptor, bytes, done);
      fsyncSync(descriptor);
    } finally {
      closeSync(descriptor);
    }
    renameSync(temporary, file);
  } catch (error) {
    rmSync(temporary, { force: true }); // a full disk is not kept full
    throw error;
  }
}

/** Creates or replaces a symbolic link to a sibling: whoever follows it comes to the old one or the new. */
export function replaceLink(link: string, sibling: string): void {
  const temporary = path.join(path.dirname(link), `.${path.basename(link)}.tmp`);
  rmSync(temporary, { force: true }); // of a process that was killed
  symlinkSync(sibling, temporary);
  renameSync(temporary, link);
  flush(path.dirname(link));
}

/**
 * Creates or replaces a folder: `fill` writes into a hidden sibling, which is flushed to the disk and takes the name at the end.
 * What an earlier attempt left half-written is removed, and what this one has written when it fails.
 */
export function replaceFolder(folder: string, fill: (temporary: string) => void): void {
  const parent = path.dirname(folder);
  const hidden = `.${path.basename(folder)}.`;
  mkdirSync(parent, { recursive: true });
  const [temporary, old] = ["tmp", "old"].map((end) => path.join(parent, hidden + end)) as [string, string];
  for (const earlier of [temporary, old]) rmSync(earlier, { recursive: true, force: true }); // no others: .env.local is not ours beside `env`
  mkdirSync(temporary);
  try {
    fill(temporary);
    flushTree(temporary);
  } catch (error) {
    rmSync(temporary, { recursive: true, force: true }); // a full disk is not kept full
    throw error;
  }
  if (existsSync(folder)) {
    renameSync(folder, old);
    renameSync(temporary, folder);
    rmSync(old, { recursive: true });
  } else {
    renameSync(temporary, folder);
  }
  flush(parent);
}

function flushTree(folder: string): void {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const inside = path.join(folder, entry.name);
    if (entry.isDirectory()) flushTree(inside);
    else flush(inside);
  }
  flush(folder);
}

function flush(file: string): void {
  const descriptor = openSync(file, "r");
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}
