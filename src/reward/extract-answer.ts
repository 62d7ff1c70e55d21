/**
 * Reads the tags a completion was asked to write. Plain index searches instead of regular expressions: a completion is whatever the
 * policy came up with, and a lazy pattern takes quadratic time on thousands of unclosed tags.
 */

const OPEN = "<answer>";
const CLOSE = "</answer>";

/**
 * Characters that Python's `str.strip()` and `\s` remove. JavaScript's `trim()` differs: it keeps U+001C to U+001F and U+0085 and
 * removes U+FEFF. Rewards follow the seed, which is Python.
 */
const PYTHON_SPACE = new Set(
  [
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680",
    "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
  ].join(""),
);

/** Whether Python counts the character as white space. */
export function isSpace(character: string | undefined): boolean {
  return character !== undefined && PYTHON_SPACE.has(character);
}

/** Python's `text.strip()`. */
export function strip(text: string): string {
  let start = 0;
  let end = text.length;
  while (start < end && isSpace(text[start])) start++;
  while (end > start && isSpace(text[end - 1])) end--;
  return text.slice(start, end);
}

/**
 * The stripped content of the first `<answer> ... </answer>`, line breaks allowed, or null where there is none: the seed's
 * `re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)`. A nested opening tag is content, and the first closing tag ends it.
 */
export function extractAnswer(text: string): string | null {
  const open = text.indexOf(OPEN);
  if (open < 0) return null;
  // If nothing closes the first opening tag, nothing closes a later one either.
  const close = text.indexOf(CLOSE, open + OPEN.length);
  return close < 0 ? null : strip(text.slice(open + OPEN.length, close));
}
