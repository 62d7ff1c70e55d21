/** A reward that a random policy earns in varying amounts: the share of the letter e in the completion. */
export default function shareOfE({ completions }) {
  return completions.map((text) => (text.length === 0 ? 0 : text.split("e").length / (text.length + 1)));
}
