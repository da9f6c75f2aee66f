// The query as the address has it: the parameters of /api/search, so that a link says everything.

const SINGLE = ["q", "like", "bbox", "near", "within", "from", "to", "path", "scene", "min_score", "diverse", "rerank"];
const MANY = ["plus", "minus", "plus_like", "minus_like"];
export const FILTERS = ["bbox", "near", "within", "from", "to", "path", "scene", "min_score", "diverse"];

/** A part of the query beside the main text: {kind: "plus" | "minus" | "plus_like" | "minus_like", weight, value}. */
function partOf(kind, text) {
  const found = /^(\d+(?:\.\d+)?):([\s\S]*)$/.exec(text);
  return found ? { kind, weight: Number(found[1]), value: found[2] } : { kind, weight: 1, value: text };
}

export function partText(part) {
  const needsWeight = part.weight !== 1 || /^\d+(\.\d+)?:/.test(part.value);
  return needsWeight ? `${Number(part.weight.toFixed(2))}:${part.value}` : part.value;
}

export function emptyState() {
  return { values: {}, parts: [], upload: null, uploadWeight: 1 };
}

export function stateOfAddress(search) {
  const given = new URLSearchParams(search);
  const state = emptyState();
  for (const name of SINGLE) if (given.has(name) && given.get(name) !== "") state.values[name] = given.get(name);
  for (const name of MANY) for (const text of given.getAll(name)) state.parts.push(partOf(name, text));
  return state;
}

/** The parameters that ask for it; an image that was sent is not among them. */
export function parameters(state) {
  const asked = new URLSearchParams();
  for (const name of SINGLE) if (state.values[name]) asked.set(name, state.values[name]);
  for (const part of state.parts) asked.append(part.kind, partText(part));
  return asked;
}

export function addressOf(state) {
  const asked = parameters(state).toString();
  return asked ? `/?${asked}` : "/";
}

export function isQuery(state) {
  return Boolean(state.values.q || state.values.like || state.upload || state.parts.some((one) => one.kind.startsWith("plus")));
}

export function activeFilters(state) {
  return FILTERS.filter((name) => state.values[name]).length;
}

/** What the search box says: words, then +words or -words, each with a weight before a colon if it is not 1. */
export function readBox(text) {
  const pieces = text.split(/(?:^|\s)([+-])(?=\S)/);
  const parts = [];
  for (let place = 1; place < pieces.length; place += 2) {
    const words = pieces[place + 1].trim();
    if (words) parts.push(partOf(pieces[place] === "+" ? "plus" : "minus", words));
  }
  return { q: pieces[0].trim(), parts };
}
