// The page: the address says what is asked, and everything else follows from it.

import { search, Trouble } from "./api.js";
import { makeDetails } from "./details.js";
import { byId, closeOnOutside, element, number, withProgress } from "./elements.js";
import { makeFilters } from "./filters.js";
import { Grid } from "./grid.js";
import { makeMap } from "./map.js";
import { showParts } from "./parts.js";
import { makeSelection } from "./selection.js";
import { activeFilters, addressOf, isQuery, parameters, readBox, stateOfAddress } from "./state.js";

const FIRST = 120;
const setup = JSON.parse(document.body.dataset.setup);
let state = stateOfAddress(location.search);
let running = null; // what stops the search under way
let map = null;
let shown = 0; // the place of the hit whose details are open

const grid = new Grid(byId("grid"), byId("hits"), {
  fetchPage: (offset, k) => withProgress(search(parameters(state), { offset, k, ...upload(), signal: running?.signal })),
  open: (place) => showHit(place),
  changed: () => { selection.show(); map?.show(grid.loaded, { fit: false }); },
  hover: (hit) => map?.mark(hit ? hit.row : null),
  failed: (error) => showTrouble(error),
});
const selection = makeSelection(setup, grid);
const filters = makeFilters(setup, (values) => go({ ...state, values: { ...state.values, ...values } }), takeBox);
const details = makeDetails(setup, {
  like: (hit) => addImage(hit, "plus_like"),
  unlike: (hit) => addImage(hit, "minus_like"),
  step: (by) => { if (grid.hits.has(shown + by)) { grid.focus(shown + by, { steal: false }); showHit(shown + by); } },
  closed: () => grid.focus(shown), // not where the focus was when the details were opened
  text: () => state.values.q ?? "",
});

function takeBox() {
  if (!byId("map-panel").hidden && map) return map.box();
  mapButton.click();
  return null;
}

const upload = () => ({ upload: state.upload, uploadWeight: state.uploadWeight });

/** Ask something else: a new place in the browser's history. */
function go(next) {
  state = next;
  history.pushState(null, "", addressOf(state));
  run();
}

function addImage(hit, kind) {
  const nothing = !isQuery(state);
  if (nothing && kind === "plus_like") return go({ ...state, values: { ...state.values, like: hit.image_id } });
  const parts = state.parts.filter((part) => part.value !== hit.image_id);
  return go({ ...state, parts: [...parts, { kind, weight: kind === "minus_like" ? 0.5 : 1, value: hit.image_id }] });
}

function showHit(place) {
  const hit = grid.hits.get(place);
  if (!hit) return;
  shown = place;
  details.open(hit);
}

async function run() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  byId("words").value = state.values.q ?? "";
  document.title = state.values.q ? `${state.values.q} · cmpagl` : document.title;
  showParts(state, go);
  filters.show(state);
  byId("trouble").hidden = true;
  byId("start").hidden = isQuery(state);
  if (!isQuery(state)) return showNothing();
  byId("hits").setAttribute("aria-busy", "true");
  try {
    const answer = await withProgress(search(parameters(state), { k: FIRST, ...upload(), signal }));
    showAnswer(answer);
  } catch (error) {
    if (error.name === "AbortError") return;
    showNothing();
    showTrouble(error);
  } finally {
    if (!signal.aborted) byId("hits").removeAttribute("aria-busy");
  }
}

function showAnswer(answer) {
  const found = answer.total === 1 ? "1 image" : `${number(answer.total)} images`;
  byId("bar").hidden = answer.total === 0;
  byId("count").textContent = `${found}, best first · ${answer.took_ms < 10 ? answer.took_ms.toFixed(1) : Math.round(answer.took_ms)} ms`;
  byId("notes").replaceChildren(...(answer.total ? answer.notes : []).map((note) => element("p", {}, note)));
  grid.selected.clear();
  grid.reset(answer.reachable, answer.hits);
  selection.show();
  map?.show(answer.hits);
  if (!answer.total) showTrouble(new Trouble("No image passes the filters.", "Loosen one, or clear them all."), "empty");
}

function showNothing() {
  grid.selected.clear();
  grid.reset(0);
  byId("bar").hidden = true;
  byId("notes").replaceChildren();
  map?.show([]);
}

function showTrouble(error, kind = "") {
  const known = error instanceof Trouble;
  const again = element("button", { type: "button", onclick: run }, "Try again");
  const clear = element("button", { type: "button", onclick: () => filters.clear() }, "Clear the filters");
  const isRefused = known && error.status && error.status < 500;
  byId("trouble").replaceChildren(
    element("p.said", {}, known ? error.message : `The page failed: ${error.message}`),
    element("p", {}, known ? error.hint : "Load it again."),
    ...(kind === "empty" || (isRefused && activeFilters(state)) ? [clear] : isRefused ? [] : [again]),
  );
  byId("trouble").hidden = false;
}

function toggle(button, panel, open = panel.hidden) {
  panel.hidden = !open;
  button?.setAttribute("aria-expanded", String(open));
  grid.render();
}

const filtersButton = byId("show-filters");
const mapButton = byId("show-map");
filtersButton.addEventListener("click", () => {
  toggle(filtersButton, byId("filters"));
  if (!byId("filters").hidden) byId("filters").querySelector("input").focus();
});
mapButton?.addEventListener("click", async () => {
  toggle(mapButton, byId("map-panel"));
  if (byId("map-panel").hidden) return;
  map ??= await withProgress(makeMap(setup, {
    open: (row) => { const place = grid.placeOf(row); grid.focus(place, { steal: false }); showHit(place); },
    hover: (row) => { grid.mark(row); if (row !== null) grid.focus(grid.placeOf(row), { steal: false }); },
  }));
  map.resize();
  map.show(grid.loaded);
});
byId("show-keys").addEventListener("click", () => byId("keys").showModal());
closeOnOutside(byId("keys"));

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const { q, parts } = readBox(byId("words").value);
  const values = { ...state.values };
  delete values.q;
  if (q) { values.q = q; delete values.like; }
  go({ ...state, values, parts: [...state.parts, ...parts] });
});
byId("file").addEventListener("change", (event) => { takeImage(event.target.files[0]); event.target.value = ""; });

function takeImage(file) {
  if (!file) return;
  const values = { ...state.values };
  delete values.like;
  go({ ...state, values, upload: file, uploadWeight: 1 });
}

document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])][0];
  if (file) { event.preventDefault(); takeImage(file); }
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  if (event.dataTransfer?.files.length) { event.preventDefault(); takeImage(event.dataTransfer.files[0]); }
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("input:not([type=checkbox]), select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const hit = grid.hits.get(grid.focused);
  if (event.key === "/") byId("words").focus();
  else if (event.key === "?") byId("keys").showModal();
  else if (event.key === "f") filtersButton.click();
  else if (event.key === "m") mapButton?.click();
  else if (event.key === "l" && hit && grid.total) addImage(hit, "plus_like");
  else if (event.key === "n" && hit && grid.total) addImage(hit, "minus_like");
  else if (event.key === "ArrowDown" && grid.total && !byId("grid").contains(document.activeElement)) grid.focus(grid.focused);
  else return;
  event.preventDefault();
});
addEventListener("popstate", () => { state = stateOfAddress(location.search); run(); });

run();
