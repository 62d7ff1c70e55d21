/** 1 for a text with two letters e or more, else 0: groups of a random policy are often all alike. */
export default async function manyE({ completions }) {
  return completions.map((text) => (text.split("e").length > 2 ? 1 : 0));
}
