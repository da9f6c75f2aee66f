// The filters: everything in them is in the address too.

import { byId, element, toast } from "./elements.js";
import { FILTERS, activeFilters } from "./state.js";

/** setup: what the index has. changed(values): filters were set; mapBox(): the box of the map, null if it was closed. */
export function makeFilters(setup, changed, mapBox) {
  const panel = byId("filters");
  const fields = {
    scene: text("Scene", "a file's name, as in *.tif"),
    path: text("Path", "as in */harbour/*"),
    ...(setup.dates ? { from: text("From", "2024, 2024-05 or 2024-05-31"), to: text("To", "2024, 2024-05 or 2024-05-31") } : {}),
    ...(setup.places ? { bbox: text("Box", "west,south,east,north"), near: text("Near", "longitude,latitude"), within: text("Within", "as in 500m or 5km") } : {}),
    min_score: element("input", { type: "number", step: "0.01", min: "-10", max: "10", placeholder: "any" }),
  };
  const diverse = element("input", { type: "checkbox" });
  const names = { scene: "Scene", path: "Path", from: "From", to: "To", bbox: "Box in degrees", near: "Near, in degrees", within: "Within", min_score: "Least score" };
  const rows = Object.entries(fields).map(([name, field]) => element("label.field", {}, element("span", {}, names[name]), field));
  const takeView = () => {
    const box = mapBox();
    if (box === null) return toast("The map is open now: move it, then take its view.");
    fields.bbox.value = box;
    return apply();
  };
  const inView = element("button.quiet", { type: "button", onclick: takeView }, "Take the map's view");
  const clear = () => changed(Object.fromEntries(FILTERS.map((name) => [name, ""])));
  const form = element(
    "form", {},
    element("h2", {}, "Filters"),
    ...rows,
    element("label.tickbox", {}, diverse, element("span", {}, "Hide near-duplicates")),
    element("div.buttons", {},
      element("button", { type: "submit" }, "Apply"),
      element("button.quiet", { type: "button", onclick: clear }, "Clear")),
  );
  const apply = () => {
    const values = Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.value.trim()]));
    changed({ ...values, diverse: diverse.checked ? "true" : "" });
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); apply(); });
  diverse.addEventListener("change", apply);
  fields.bbox?.closest("label").after(inView);
  panel.replaceChildren(form);

  return {
    clear,
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
