// The filters: everything in them is in the address too.

import { byId, element } from "./elements.js";
import { FILTERS, activeFilters } from "./state.js";

/** setup: what the index has. changed(values): filters were set; mapBox(): the box that the map shows, or null. */
export function makeFilters(setup, changed, mapBox) {
  const panel = byId("filters");
  const fields = {
    scene: text("Scene", "a file's name, as in *.tif"),
    path: text("Path", "as in */harbour/*"),
    ...(setup.dates ? { from: text("From", "2024, 2024-05 or 2024-05-31"), to: text("To", "2024, 2024-05 or 2024-05-31") } : {}),
    ...(setup.places ? { bbox: text("Box", "west,south,east,north") } : {}),
    min_score: element("input", { type: "number", step: "0.01", min: "-10", max: "10", placeholder: "any" }),
  };
  const diverse = element("input", { type: "checkbox" });
  const names = { scene: "Scene", path: "Path", from: "From", to: "To", bbox: "Box in degrees", min_score: "Least score" };
  const rows = Object.entries(fields).map(([name, field]) => element("label.field", {}, element("span", {}, names[name]), field));
  const inView = element("button.quiet", { type: "button", onclick: () => { fields.bbox.value = mapBox() ?? fields.bbox.value; apply(); } }, "Take the map's view");
  const form = element(
    "form", {},
    element("h2", {}, "Filters"),
    ...rows,
    setup.places ? inView : null,
    element("label.tickbox", {}, diverse, element("span", {}, "Hide near-duplicates")),
    element("div.buttons", {},
      element("button", { type: "submit" }, "Apply"),
      element("button.quiet", { type: "button", onclick: () => changed(Object.fromEntries(FILTERS.map((name) => [name, ""]))) }, "Clear")),
  );
  const apply = () => {
    const values = Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.value.trim()]));
    changed({ ...values, diverse: diverse.checked ? "true" : "" });
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); apply(); });
  diverse.addEventListener("change", apply);
  panel.replaceChildren(form);

  return {
    show(state) {
      for (const [name, field] of Object.entries(fields)) field.value = state.values[name] ?? "";
      diverse.checked = state.values.diverse === "true";
      const count = activeFilters(state);
      byId("filter-count").hidden = count === 0;
      byId("filter-count").textContent = String(count);
    },
  };
}

function text(label, placeholder) {
  return element("input", { type: "text", placeholder, autocomplete: "off", spellcheck: "false" });
}
